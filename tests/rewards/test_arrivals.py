"""Connections that ask for nothing: closed in time, and few per address."""

import contextlib
import socket
import urllib.request

import pytest
from loopback import PixelReward, serving

from densegrpo_jax.rewards.remote.service import RewardService
from densegrpo_jax.runtime.arrivals import bounded

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
def test_many_of_one_address_leave_the_others_alone(server, caplog, sent):
    port = server(600, 5)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(port, '127.0.0.2', sent)) for _ in range(5)]
        assert closed(connected(port, '127.0.0.2', sent))
        assert 'of 127.0.0.2, which has 5 connections open that have not asked' in caplog.text
        assert healthy(port)
        # One that ends makes room for another of the same address.
        held[0].sendall(b'1\r\n\r\n' if sent else b'GET /health HTTP/1.1\r\nHost: x\r\n\r\n')
        assert held[0].recv(4096).startswith(b'HTTP/1.1 200')
        with connected(port, '127.0.0.2', b'GET /health HTTP/1.1\r\nHost: x\r\n\r\n') as other:
            assert other.recv(4096).startswith(b'HTTP/1.1 200')


def test_an_address_has_so_many_connections_whatever_they_ask(caplog):
    """Headers without the body that they announce need no token either."""
    app = RewardService(PixelReward(), 'f00', '1', token='secret').app
    head = b'POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n'
    with serving(app, http=bounded(60, 8, 3)) as url, contextlib.ExitStack() as stack:
        port = int(url.rpartition(':')[2])
        held = [stack.enter_context(connected(port, '127.0.0.2', head)) for _ in range(3)]
        assert closed(connected(port, '127.0.0.2', head)) and healthy(port)
        assert 'of 127.0.0.2, which has 3 connections open' in caplog.text
        held[0].sendall(b'123456789')
        assert held[0].recv(4096).startswith(b'HTTP/1.1 401')
        for sock in held[1:]:
            sock.sendall(b'123456789')


def test_a_request_is_not_timed_once_its_headers_are_there(server):
    port = server(0.2, 8)
    headers = (b'POST /score HTTP/1.1', b'Host: x', b'Authorization: Bearer secret')
    head = b'\r\n'.join([*headers, b'Content-Length: 4', b'', b''])
    with connected(port, sent=head) as sock:
        assert closed(connected(port))  # its own time is over, and the other one's would be
        sock.sendall(b'\x80\x80\x80\x80')
        assert sock.recv(4096).startswith(b'HTTP/1.1 422')
