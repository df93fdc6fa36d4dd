"""Connections that ask for nothing: closed in time, and few per address."""

import contextlib
import socket
import threading
import time
import urllib.request

import pytest

from densegrpo_jax.rewards.remote import service
from densegrpo_jax.rewards.remote.protocol import Request, encode_request
from densegrpo_jax.rewards.remote.service import RewardService
from densegrpo_jax.runtime import arrivals
from densegrpo_jax.runtime.arrivals import bounded, network_of
from tests.rewards.loopback import PixelReward, pictures, serving

HEALTH = b'GET /health HTTP/1.1\r\nHost: x\r\n\r\n'
SILENT = [b'', b'GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ']


@pytest.fixture
def server():
    """(seconds, most) -> the port of a server with these limits."""
    with contextlib.ExitStack() as stack:

        def start(seconds, most):
            app = RewardService(PixelReward(), 'f00', '1', token='secret').app
            url = stack.enter_context(serving(app, http=bounded(seconds, most)))
            return int(url.rpartition(':')[2])

        yield start


def connected(port, source='127.0.0.1', sent=b''):
    sock = socket.create_connection(('127.0.0.1', port), 30, source_address=(source, 0))
    sock.sendall(sent)
    return sock


def closed(sock):
    """Waits for the server to close the connection."""
    with sock, contextlib.suppress(ConnectionResetError):
        return sock.recv(1) == b''
    return True


def healthy(port):
    with urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=30) as answer:
        return answer.status == 200


@pytest.mark.parametrize('sent', SILENT)
def test_headers_that_do_not_come_end_the_connection(server, caplog, sent):
    port = server(0.2, 8)
    assert closed(connected(port, sent=sent))
    assert 'of 127.0.0.1, which has not sent the headers of a request in 0.2 s' in caplog.text


def test_so_does_a_second_request_on_a_connection_that_drips(server):
    port = server(0.2, 8)
    with connected(port, sent=b'GET /health HTTP/1.1\r\nHost: x\r\n\r\n') as sock:
        assert sock.recv(4096).startswith(b'HTTP/1.1 200')
        sock.sendall(b'GET /health HTTP/1.1\r\n')
        while sock.recv(4096):
            pass


@pytest.mark.parametrize('sent', SILENT)
def test_a_newcomer_takes_the_place_of_the_one_that_was_silent_the_longest(server, caplog, sent):
    """Behind one address, as of a tunnel, there may be others than those who only connect."""
    port = server(600, 5)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(port, '127.0.0.2', sent)) for _ in range(5)]
        assert healthy(port)
        held[0].sendall(b'G' if not sent else b'x')  # now another one is the longest silent
        with connected(port, '127.0.0.2', HEALTH) as other:
            assert other.recv(4096).startswith(b'HTTP/1.1 200')
        assert closed(held[1])
        assert 'of 127.0.0.2, which has 5 connections open that have not asked' in caplog.text
        held[0].sendall(b'ET /health HTTP/1.1\r\nHost: x\r\n\r\n' if not sent else b'\r\n\r\n')
        assert held[0].recv(4096).startswith(b'HTTP/1.1 200')


def test_bodies_that_do_not_come_make_room_too(caplog):
    """Headers without the body that they announce need no token either."""
    app = RewardService(PixelReward(), 'f00', '1', token='secret').app
    head = b'POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n'
    with serving(app, http=bounded(60, 8, 3)) as url, contextlib.ExitStack() as stack:
        port = int(url.rpartition(':')[2])
        held = [stack.enter_context(connected(port, '127.0.0.2', head)) for _ in range(3)]
        assert healthy(port)
        with connected(port, '127.0.0.2', HEALTH) as other:
            assert other.recv(4096).startswith(b'HTTP/1.1 200')
        assert closed(held[0]) and 'of 127.0.0.2, which has 3 connections open' in caplog.text
        held[1].sendall(b'123456789')
        assert held[1].recv(4096).startswith(b'HTTP/1.1 401')


def test_all_addresses_together_have_so_many(caplog):
    app = RewardService(PixelReward(), 'f00', '1', token='secret').app
    with serving(app, http=bounded(60, 8, 8, 5)) as url, contextlib.ExitStack() as stack:
        port = int(url.rpartition(':')[2])
        few = stack.enter_context(connected(port, '127.0.0.2'))
        held = [stack.enter_context(connected(port, '127.0.0.3')) for _ in range(4)]
        assert healthy(port)  # in the place of one of the address that has the most
        assert closed(held[0]) and 'of 127.0.0.3, which is one of 5 that are open' in caplog.text
        few.sendall(HEALTH)
        assert few.recv(4096).startswith(b'HTTP/1.1 200')


def test_a_request_that_is_being_answered_keeps_its_place():
    begun, may_end = threading.Event(), threading.Event()
    reward = PixelReward(lambda images: (begun.set(), may_end.wait(30)))
    body = encode_request(Request('a', pictures(1), ['x'], [{}]))
    head = f'POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n'.encode()
    with serving(RewardService(reward, 'f00', '1').app, http=bounded(60, 8, 1)) as url:
        port = int(url.rpartition(':')[2])
        with connected(port, '127.0.0.2', head + body) as asking:
            assert begun.wait(30) and closed(connected(port, '127.0.0.2', HEALTH))
            may_end.set()
            assert asking.recv(4096).startswith(b'HTTP/1.1 200')


@pytest.mark.parametrize('patience', [60.0, 0.2])
def test_a_client_that_takes_nothing_of_its_answer_makes_room_in_time(monkeypatch, patience):
    monkeypatch.setattr(arrivals, 'UNREAD_SECONDS', patience)

    async def app(scope, receive, send):
        if scope['path'] == '/health':
            body = b'ok'
        else:
            body = bytes(1 << 26)  # more than the buffers of both ends hold
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        await send({'type': 'http.response.body', 'body': body})

    with serving(app, http=bounded(60, 8, 1)) as url:
        port = int(url.rpartition(':')[2])
        with connected(port, '127.0.0.2', HEALTH.replace(b'health', b'large')) as asking:
            assert asking.recv(1) == b'H'  # the answer is on its way, and nothing more is read
            let_in, attempts = False, 0
            while not let_in and attempts < (1 if patience > 1 else 100):
                time.sleep(0.05)
                attempts += 1
                with contextlib.suppress(ConnectionError):
                    with connected(port, '127.0.0.2', HEALTH) as newcomer:
                        let_in = newcomer.recv(1) == b'H'
    assert let_in == (patience < 1)


@pytest.mark.parametrize(
    ('host', 'network'),
    [
        ('10.1.2.3', '10.1.2.3'),
        ('::ffff:10.1.2.3', '10.1.2.3'),
        ('2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'),
        ('2001:db8:1:2::9', '2001:db8:1:2::/64'),
        ('fe80::1%eth0', 'fe80::/64'),
        ('::1', '::/64'),
        ('testclient', 'testclient'),
    ],
)
def test_what_counts_as_one_address(host, network):
    assert network_of(host) == network


def test_a_body_that_stalls_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(service, 'IDLE_SECONDS', 0.2)
    app = RewardService(PixelReward(), 'f00', '1', token='secret').app
    head = (
        b'POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 9\r\n\r\n1'
    )
    with serving(app) as url:
        port = int(url.rpartition(':')[2])
        for token, status in ((b'secret', b'408'), (b'other', b'401')):
            with connected(port, sent=head % token) as sock:
                assert sock.recv(4096).startswith(b'HTTP/1.1 ' + status)


def test_a_body_that_is_refused_is_discarded_for_a_few_seconds_only(monkeypatch):
    monkeypatch.setattr(service, 'REFUSED_SECONDS', 0.3)
    app = RewardService(PixelReward(), 'f00', '1', token='secret').app
    head = b'POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n'
    with serving(app) as url, connected(int(url.rpartition(':')[2]), sent=head) as sock:
        sock.settimeout(0.05)
        for _ in range(200):
            sock.sendall(b'1')  # never idle
            with contextlib.suppress(TimeoutError):
                assert sock.recv(4096).startswith(b'HTTP/1.1 401')
                break
        else:
            pytest.fail('the body was waited for')


def test_a_request_is_not_timed_once_its_headers_are_there(server):
    port = server(0.2, 8)
    headers = (b'POST /score HTTP/1.1', b'Host: x', b'Authorization: Bearer secret')
    head = b'\r\n'.join([*headers, b'Content-Length: 4', b'', b''])
    with connected(port, sent=head) as sock:
        assert closed(connected(port))  # its own time is over, and the other one's would be
        sock.sendall(b'\x80\x80\x80\x80')
        assert sock.recv(4096).startswith(b'HTTP/1.1 422')
