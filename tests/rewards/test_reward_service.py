"""The reward service and its command over real sockets: what they refuse, and how they stop."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import msgpack
import numpy as np
import pytest

from densegrpo_jax.rewards import RewardError, Scorer, build_reward
from densegrpo_jax.rewards.remote import protocol
from densegrpo_jax.rewards.remote.protocol import Request, encode_request
from densegrpo_jax.rewards.remote.serve import served
from densegrpo_jax.rewards.remote.service import fingerprint
from tests.rewards.loopback import (
    PixelReward,
    assert_own_scores,
    batch,
    client,
    pictures,
    service,
    serving,
)

ROOT = pathlib.Path(__file__).parents[2]


def ask(url, body=None, **headers):
    """Status, headers and JSON of an answer."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, headers), timeout=10
        ) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def test_an_endless_request_is_refused_before_it_is_all_in_memory():
    with serving(service(max_request_bytes=100_000).app) as url:
        host, port = url.removeprefix('http://').split(':')
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        parts = (b'x' * 50_000 for _ in range(7))
        connection.request(
            'POST', '/score', parts, {'Transfer-Encoding': 'chunked'}, encode_chunked=True
        )
        answer = connection.getresponse()
        assert answer.status == 413 and 'larger than 100000 bytes' in answer.read().decode()
        connection, sent = http.client.HTTPConnection(host, int(port), timeout=10), []
        with contextlib.suppress(ConnectionError):
            parts = (sent.append(1) or b'x' * 50_000 for _ in range(600))
            headers = {'Transfer-Encoding': 'chunked', 'Connection': 'close'}
            connection.request('POST', '/score', parts, headers, encode_chunked=True)
        assert len(sent) < 600


def test_info_health_and_token(monkeypatch):
    monkeypatch.setenv('TOKEN_OF_THE_TEST', 'secret')
    with serving(service(token='secret').app) as url:
        status, _, health = ask(url + '/health')
        assert status == 200 and health == {
            'status': 'ok',
            'pending': 0,
            'max_queue': 16,
            'images': 0,
            'invalid': 0,
        }
        for headers in ({}, {'Authorization': 'Bearer secre'}, {'Authorization': 'secret'}):
            assert ask(url + '/info', **headers)[0] == 401
            assert ask(url + '/score', b'x', **headers)[0] == 401
        status, _, info = ask(url + '/info', Authorization='Bearer secret')
        assert (status, info['protocol'], info['fingerprint']) == (200, 1, 'f00')
        assert info['names'] == ['pixel', 'mean'] and info['range'] == [0.0, 1.0]
        asked = batch(2)
        assert_own_scores(client(url, token_env='TOKEN_OF_THE_TEST')(*asked), asked)
        with pytest.raises(RewardError, match='status 401.*token'):
            client(url, retries=0)(*asked)
    with pytest.raises(ValueError, match='NOT_SET_ANYWHERE'):
        client(url, token_env='NOT_SET_ANYWHERE')


def test_bad_requests_are_refused_by_field(healthy):
    message = msgpack.unpackb(encode_request(Request('a', *batch(1))))
    for changes, words in (
        ({'prompts': []}, 'metadata'),
        ({'shape': [1, 2, 3]}, 'shape'),
        ({'prompts': ['unscorable']}, 'prompt 0'),
    ):
        status, _, refusal = ask(healthy + '/score', msgpack.packb({**message, **changes}))
        assert status == 422 and words in refusal['error']


class Needs(PixelReward):
    """Expects metadata, and says so only by the error."""

    def check(self, prompts, metadata):
        return [extra['answer'].lower() for extra in metadata]


@pytest.mark.parametrize(
    ('reward', 'extra', 'words'),
    [
        ('ocr', {'target': 5}, "prompt 0, 'p': its target is 5"),
        ('needs', {}, "KeyError: 'answer'"),
        ('needs', {'answer': 5}, 'AttributeError: .*lower'),
    ],
)
def test_metadata_that_a_reward_cannot_use_is_refused_at_the_check(reward, extra, words):
    made = Needs() if reward == 'needs' else build_reward({'reading': {'kind': reward}})
    with serving(service(made).app) as url:
        with pytest.raises(ValueError, match=f'cannot score the prompts: {words}'):
            client(url, names=made.names).check(['p'], [extra])
        with pytest.raises(RewardError, match=f'status 422.*{words}'):
            client(url, names=made.names, retries=0)(pictures(1), ['p'], [extra])


def test_a_full_queue_is_told_to_come_back_and_does():
    gate, asked = threading.Event(), batch(1)
    inside = threading.Event()
    reward = PixelReward(lambda images: (inside.set(), gate.wait(20)))
    with serving(service(reward, max_queue=1).app) as url, Scorer(client(url), 2) as scorer:
        first = scorer.submit(*asked)
        assert inside.wait(10)
        # more than fits into the buffers of a connection
        status, headers, refusal = ask(url + '/score', bytes(8_000_000))
        assert status == 429 and headers['Retry-After'] == '1' and '1 requests' in refusal['error']
        second = scorer.submit(*batch(1, seed=1))
        gate.set()
        assert_own_scores(first.result(20), asked)
        assert_own_scores(second.result(20), batch(1, seed=1))


def test_a_request_whose_sender_has_gone_is_not_scored(monkeypatch):
    gate, inside, read, scored = threading.Event(), threading.Event(), threading.Semaphore(0), []
    reward = PixelReward(
        lambda images: (scored.append(int(images[0, 0, 0, 1])), inside.set(), gate.wait(20))
    )
    decode = protocol.decode_request
    monkeypatch.setattr(protocol, 'decode_request', lambda body: (decode(body), read.release())[0])
    first, gone, last = (batch(1, seed) for seed in range(3))
    with serving(service(reward, workers=1).app) as url, Scorer(client(url), 2) as scorer:
        answer = scorer.submit(*first)
        assert inside.wait(10) and read.acquire(timeout=10)
        host, port = url.removeprefix('http://').split(':')
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request('POST', '/score', encode_request(Request('gone', *gone)))
        assert read.acquire(timeout=10)  # it has arrived, and waits for its turn
        connection.close()
        # what is answered after that has been seen after that
        assert ask(url + '/health')[2]['pending'] == 2
        gate.set()
        assert_own_scores(answer.result(20), first)
        assert_own_scores(client(url)(*last), last)
        assert scored == [int(asked[0][0, 0, 0, 1]) for asked in (first, last)]
        assert ask(url + '/health')[2]['pending'] == 0


def test_a_stop_finishes_what_is_under_way():
    gate, inside, asked = threading.Event(), threading.Event(), batch(2)
    reward = PixelReward(lambda images: (inside.set(), gate.wait(20)))
    with Scorer(client('http://x'), 1) as scorer:
        with serving(service(reward).app, closing=gate.set) as url:
            scorer._reward = client(url, retries=0, give_up_s=0)
            future = scorer.submit(*asked)
            assert inside.wait(10)
        assert_own_scores(future.result(20), asked)


def test_a_failing_reward_is_an_answer_and_not_the_end_of_the_server():
    broken = PixelReward(lambda images: 1 / 0)
    with serving(service(broken).app) as url:
        with pytest.raises(RewardError, match='status 500.*ZeroDivisionError'):
            client(url, retries=1)(*batch(1))
        broken.hook = None
        assert_own_scores(client(url)(*batch(1)), batch(1))


def test_a_reward_that_exits_fails_its_request_alone():
    """It kept its thread: the second such request stopped the server for good."""

    def leave(images):
        if images[0, 0, 0, 1] == 7:
            sys.exit(3)

    with serving(service(PixelReward(leave), workers=1).app) as url:
        images, *of = batch(1)
        images[0, 0, 0, 1] = 7
        for _ in range(2):
            with pytest.raises(RewardError, match='the reward failed.*SystemExit: 3'):
                client(url)(images, *of)
        images[0, 0, 0, 1] = 8
        assert_own_scores(client(url)(images, *of), (images, *of))


def test_what_is_served_and_its_fingerprint():
    assert served({'jpeg': {}}).names == ('jpeg',)
    assert served({'jpeg': {'weight': 2.0}}).names == ('total', 'jpeg')
    name = fingerprint(PixelReward(), {'pixel': {}}, '1')
    assert len(name) == 16 and name == fingerprint(PixelReward(), {'pixel': {}}, '1')
    assert (
        len(
            {
                name,
                fingerprint(PixelReward(), {'pixel': {'x': 1}}, '1'),
                fingerprint(PixelReward(), {'pixel': {}}, '2'),
                fingerprint(PixelReward(), {'pixel': {}}, '1', {'pixel': 'own code'}),
                fingerprint(PixelReward(), {'pixel': {}}, '1', {'pixel': 'edited'}),
            }
        )
        == 5
    )


def test_the_command_serves_and_stops_on_sigterm(tmp_path):
    config = tmp_path / 'jpeg.py'
    config.write_text(
        'from ml_collections import ConfigDict\n'
        "get_config = lambda: ConfigDict({'reward': {'jpeg': {'quality': 90}}})\n"
    )
    command = [
        sys.executable,
        '-m',
        'densegrpo_jax.reward_server',
        f'--config={config}',
        '--workers=1',
    ]
    process = subprocess.Popen(
        [*command, '--port=0'], cwd=ROOT, env=os.environ, stderr=subprocess.PIPE, text=True
    )
    try:
        url = re.search(r'http://\S+', process.stderr.readline())[0]
        asked = batch(3)
        found = client(url, names='jpeg', range=(-np.inf, 0))(*asked)
        np.testing.assert_array_equal(
            found.values['jpeg'], build_reward({'jpeg': {'quality': 90}})(*asked).values['jpeg']
        )
        port = url.rsplit(':', 1)[1]
        second = subprocess.run(
            [*command, f'--port={port}'], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert second.returncode == 2 and f'cannot listen on 127.0.0.1 port {port}' in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0 and 'stopped' in process.stderr.read()
    finally:
        process.kill()
        process.wait()


def health(port):
    with urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=30) as answer:
        return answer.read()


def test_the_command_ends_though_a_reward_hangs(tmp_path):
    """It waited for the thread, which Python does not stop."""
    (tmp_path / 'sleeper.py').write_text(
        'import time\n\nfrom densegrpo_jax.rewards import JpegReward\n\n\n'
        'class Sleeper(JpegReward):\n    def __call__(self, *batch):\n        time.sleep(600)\n'
    )
    (tmp_path / 'own.py').write_text(
        'from ml_collections import ConfigDict\n'
        "get_config = lambda: ConfigDict({'reward': {'r': {'kind': 'sleeper:Sleeper'}}})\n"
    )
    command = [sys.executable, '-m', 'densegrpo_jax.reward_server', '--config=own.py']
    process = subprocess.Popen(
        [*command, '--port=0', '--drain_s=0'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': f'{ROOT}:{tmp_path}'},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(re.search(r'http://127.0.0.1:(\d+)', process.stderr.readline())[1])
        body = encode_request(Request('id', *batch(1)))
        with socket.create_connection(('127.0.0.1', port), 30) as sock:
            head = f'POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n'
            sock.sendall(head.encode() + body)
            deadline = time.monotonic() + 120
            while b'"pending":1' not in health(port):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            assert sock.recv(4096).startswith(b'HTTP/1.1 503') and process.wait(30) == 0
        assert 'requests that were not finished' in process.stderr.read()
    finally:
        process.kill()
        process.wait()
