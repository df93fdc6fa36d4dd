"""Real HTTP servers on the loopback interface, well behaved and faulty, and a reward whose scores
say which picture they are of.
"""

import collections
import contextlib
import json
import socket
import threading
import time
import zlib

import msgpack
import numpy as np
import uvicorn

from densegrpo_jax.rewards.base import Scores, check_batch
from densegrpo_jax.rewards.remote.client import RemoteReward
from densegrpo_jax.rewards.remote.service import RewardService


class PixelReward:
    """A number in [0, 1) that depends on every pixel and the prompt, and the picture's mean. A
    picture that begins with 255 is invalid.
    """

    name, names, range = 'pixel', ('pixel', 'mean'), (0.0, 1.0)

    def __init__(self, hook=None):
        self.hook = hook

    def check(self, prompts, metadata):
        for i, prompt in enumerate(prompts):
            if 'unscorable' in prompt:
                raise ValueError(f'prompt {i}: {prompt!r} cannot be scored')

    def __call__(self, images, prompts, metadata):
        check_batch(images, prompts, metadata)
        if self.hook:
            self.hook(images)
        triples = zip(images, prompts, metadata)
        pixel = [
            zlib.crc32(image.tobytes() + f'{prompt}{extra}'.encode()) % 9973 / 9973
            for image, prompt, extra in triples
        ]
        valid = images[:, 0, 0, 0] != 255
        values = {
            'pixel': np.array(pixel, np.float32),
            'mean': images.mean((1, 2, 3)).astype(np.float32),
        }
        return Scores(
            {name: np.where(valid, value, np.float32(np.nan)) for name, value in values.items()},
            valid,
        )


class Steady:
    """A source of jitter without chance: every pause takes the same hundredth of a second."""

    def uniform(self, low, high):
        return min(0.01, high)


def pictures(count, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 5, 7, 3)).astype(np.uint8)
    images[:, 0, 0, 0] %= 255
    return images


def batch(count, seed=0):
    return (
        pictures(count, seed),
        [f'prompt {i % 3}' for i in range(count)],
        [{'i': i} for i in range(count)],
    )


def assert_own_scores(scores, asked):
    expected = PixelReward()(*asked)
    assert scores.valid.tolist() == expected.valid.tolist()
    for name, values in expected.values.items():
        np.testing.assert_array_equal(scores.values[name], values)


def service(reward=None, name='f00', **options):
    return RewardService(reward or PixelReward(), name, '0', **options)


def client(*urls, **options):
    options = {
        'names': ('pixel', 'mean'),
        'range': (0, 1),
        'timeout_s': 5.0,
        'give_up_s': 5.0,
        'make_rng': Steady,
        **options,
    }
    return RemoteReward(','.join(urls), **options)


@contextlib.contextmanager
def serving(app, port=0, closing=lambda: None, **options):
    """The address of `app` on a real server in a thread.

    `closing` is called once the server takes no new connection.
    """
    sock = socket.create_server(('127.0.0.1', port))
    sock.settimeout(None)
    settings = uvicorn.Config(
        app,
        **{'http': 'h11', **options},
        ws='none',
        log_config=None,
        log_level='critical',
        timeout_graceful_shutdown=10,
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={'sockets': [sock]})
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.005)
        yield f'http://127.0.0.1:{sock.getsockname()[1]}'
    finally:
        address, server.should_exit = sock.getsockname(), True
        while thread.is_alive() and accepts(address):
            time.sleep(0.005)
        closing()
        thread.join(60)
        assert not thread.is_alive()


def accepts(address):
    """Whether something listens there."""
    with contextlib.closing(socket.socket()) as sock:
        sock.settimeout(10)
        return sock.connect_ex(address) == 0


def unused_port():
    with socket.create_server(('127.0.0.1', 0)) as sock:
        return sock.getsockname()[1]


class Faulty:
    """An ASGI application around a good one, which answers the next requests to /score as `faults`
    says, then well again.

    A slow answer, which sets `held`, comes when the client has gone, however long that takes.
    """

    KINDS = (
        '500',
        'busy',
        'slow',
        'truncated',
        'cut',
        'garbage',
        'wrong count',
        'swapped',
        'nan',
        'infinite',
        'text',
        'out of range',
        'duplicate',
        'wrong version',
        'other reward',
        'other names',
        'extra key',
    )

    def __init__(self, app):
        self.app, self.faults, self.asked, self._earlier = app, collections.deque(), 0, b''
        self.held = threading.Event()

    async def __call__(self, scope, receive, send):
        if scope.get('path') != '/score':
            return await self.app(scope, receive, send)
        self.asked += 1
        fault = self.faults.popleft() if self.faults else None
        sent = []

        async def keep(message):
            sent.append(message)

        await self.app(scope, receive, keep)
        status, body = sent[0]['status'], b''.join(message.get('body', b'') for message in sent[1:])
        if fault == 'duplicate' and not self._earlier:
            fault = 'swapped'
        earlier, self._earlier = self._earlier, body
        headers, cut = [], None
        if fault == '500':
            status, body = (
                500,
                json.dumps({'error': 'the reward failed: CUDA out of memory'}).encode(),
            )
        elif fault == 'busy':
            status, body, headers = 429, b'{}', [(b'retry-after', b'0')]
        elif fault == 'slow':
            self.held.set()
            while (await receive())['type'] != 'http.disconnect':
                pass
        elif fault == 'truncated':
            cut = len(body) // 2
        elif fault == 'cut':
            raise ConnectionAbortedError('a fault that was asked for')
        elif fault == 'garbage':
            body = b'\xc1' + body
        elif fault == 'duplicate':
            body = earlier
        elif fault is not None:
            body = _tampered(fault, body)
        headers += [(b'content-length', str(len(body)).encode())] + [
            header for header in sent[0]['headers'] if header[0] == b'retry-after'
        ]
        await send({'type': 'http.response.start', 'status': status, 'headers': headers})
        await send({'type': 'http.response.body', 'body': body[:cut]})


def _tampered(fault, body):
    message = msgpack.unpackb(body)
    scores = message['scores']
    if fault == 'wrong count':
        scores.pop()
    elif fault == 'swapped':
        scores.append(scores.pop(0))
        if len(scores) == 1:
            scores[0][0] = b'x' * 16
    elif fault in ('nan', 'infinite', 'text', 'out of range'):
        scores[0][1] = [
            {'nan': float('nan'), 'infinite': 1e300, 'text': '1', 'out of range': 1.5}[fault],
            0.0,
        ]
    elif fault == 'wrong version':
        message['protocol'] = 2
    elif fault == 'other reward':
        message['fingerprint'] = 'f' * 16
    elif fault == 'other names':
        message['names'] = message['names'][::-1]
    elif fault == 'extra key':
        message['note'] = ''
    return msgpack.packb(message)
