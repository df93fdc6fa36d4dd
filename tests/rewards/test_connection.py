"""Requests over plain and encrypted connections: whole answers, and an end to every wait when the
caller is going.
"""

import concurrent.futures
import shutil
import socket
import ssl
import subprocess
import threading

import numpy as np
import pytest

from densegrpo_jax.rewards.remote.client import RemoteReward
from densegrpo_jax.rewards.remote.connection import Interrupted, request
from densegrpo_jax.rewards.remote.service import RewardService
from tests.rewards.loopback import PixelReward, Steady, pictures, serving


@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    """Files with a key and its own certificate, for 127.0.0.1."""
    if not shutil.which('openssl'):
        pytest.skip('needs the command openssl, to make a certificate')
    folder = tmp_path_factory.mktemp('tls')
    key, chain = str(folder / 'key.pem'), str(folder / 'certificate.pem')
    made = [
        'openssl',
        'req',
        '-x509',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:prime256v1',
        '-nodes',
        '-days',
        '2',
    ]
    names = ['-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1']
    subprocess.run([*made, *names, '-keyout', key, '-out', chain], check=True, capture_output=True)
    return chain, key


def test_scores_come_over_tls_from_a_server_that_is_trusted(certificate, monkeypatch):
    chain, key = certificate
    images, prompts, metadata = pictures(5), ['p'] * 5, [{}] * 5
    options = {'names': ('pixel', 'mean'), 'timeout_s': 20.0, 'give_up_s': 0.0, 'make_rng': Steady}
    with serving(
        RewardService(PixelReward(), 'f00', '0').app, ssl_certfile=chain, ssl_keyfile=key
    ) as url:
        url = url.replace('http:', 'https:')
        with pytest.raises(ssl.SSLCertVerificationError):
            request('GET', url + '/info', timeout_s=20.0, stop=threading.Event())
        monkeypatch.setenv('SSL_CERT_FILE', chain)
        scores = RemoteReward(url, **options)(images, prompts, metadata)
    np.testing.assert_array_equal(
        scores.values['pixel'], PixelReward()(images, prompts, metadata).values['pixel']
    )


STAGES = ('handshake', 'sending', 'waiting', 'reading')
CASES = [('http', stage) for stage in STAGES[1:]] + [('https', stage) for stage in STAGES]


@pytest.mark.parametrize(('scheme', 'stage'), CASES)
def test_a_stop_ends_every_wait_for_a_server_that_has_gone_silent(
    scheme, stage, certificate, monkeypatch
):
    chain, key = certificate
    monkeypatch.setenv('SSL_CERT_FILE', chain)
    stop, over = threading.Event(), threading.Event()

    def serve(listening):
        """Goes along with a client up to `stage`, says that it is to stop, and nothing to the
        client any more.
        """
        taken, _ = listening.accept()
        with taken:
            if stage != 'handshake' and scheme == 'https':
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(chain, key)
                taken = context.wrap_socket(taken, server_side=True)
            if stage in ('waiting', 'reading'):
                while not taken.recv(4096).endswith(b'end'):
                    pass
            if stage == 'reading':
                taken.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf')
            stop.set()
            over.wait(60)
            taken.close()

    with (
        socket.create_server(('127.0.0.1', 0)) as listening,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        server = pool.submit(serve, listening)
        try:
            # more than fits into the buffers of a connection
            body = bytes(32 << 20 if stage == 'sending' else 100) + b'end'
            with pytest.raises(Interrupted):
                request(
                    'POST',
                    f'{scheme}://127.0.0.1:{listening.getsockname()[1]}/score',
                    body,
                    timeout_s=60.0,
                    stop=stop,
                )
        finally:
            over.set()
        server.result(20)


def test_a_refusal_is_read_although_the_body_was_not():
    """A proxy answers when it has seen the headers, and closes: 413 must not look like an
    outage.
    """

    def refuse(listening):
        taken, _ = listening.accept()
        with taken:
            taken.recv(4096)
            taken.sendall(b'HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nsmall')

    with (
        socket.create_server(('127.0.0.1', 0)) as listening,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        server = pool.submit(refuse, listening)
        answer = request(
            'POST',
            f'http://127.0.0.1:{listening.getsockname()[1]}/score',
            bytes(32 << 20),
            timeout_s=20.0,
            stop=threading.Event(),
        )
        server.result(20)
    assert (answer.status, answer.body) == (413, b'small')


def test_a_wait_ends_at_its_time_limit_without_a_stop():
    with socket.create_server(('127.0.0.1', 0)) as listening, pytest.raises(TimeoutError):
        request(
            'GET',
            f'http://127.0.0.1:{listening.getsockname()[1]}/',
            timeout_s=0.3,
            stop=threading.Event(),
        )
