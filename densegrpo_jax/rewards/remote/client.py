"""Remote reward: reward servers elsewhere score the images, over the protocol of
rewards/remote/protocol.py.

`python -m densegrpo_jax.reward_server` serves any reward of this package. A model that needs its
own environment (ImageReward, DeQA and other torch models) can be served there by any program that
answers GET /info and POST /score as rewards/remote/protocol.py says.
"""

import logging
import random
import secrets
import threading
from collections.abc import Callable, Sequence

import numpy as np

from densegrpo_jax.rewards.base import RewardError, Scores, at_least_one, check_batch
from densegrpo_jax.rewards.remote import protocol
from densegrpo_jax.rewards.remote.connection import Answer
from densegrpo_jax.rewards.remote.endpoints import (
    BadAnswer,
    Endpoints,
    describe,
    json_of,
    low_high,
    ok,
    printable,
    read_json,
)
from densegrpo_jax.runtime.reading import shaped

log = logging.getLogger(__name__)


class TooLarge(RewardError):
    """A server refuses requests of this size (status 413)."""


class RemoteReward:
    """Scores from servers that all serve one reward; calls of different threads go to them in turn.

    Every answer is checked against its request, see `protocol.decode_response`. An answer that
    fails the check is discarded and requested again, so an image gets its own scores or none. The
    first server to answer fixes the reward: answers of another reward, or of another version of it
    (a server restarted with something else), are refused.

    Args:
      urls: base URLs of the servers, comma-separated or a sequence.
      names: names of the scores; training uses names[0]. All servers must return exactly these.
      range: (lowest, highest) value of names[0]; values outside are refused.
      prefix: put before every name, for parts of a sum that return scores of the same name, and
        for a server of several rewards, whose sum is a `total` too.
      fingerprint: the fingerprint that the servers' /info must show; '' = whatever the first one
        shows. A run that continues, and an evaluation, refuse a fingerprint other than the one they
        began with anyway; set it to keep one reward over several runs.
      batch_size: images per request; halved when a server answers that the request is too large.
      timeout_s: of one request. retries: after unusable answers. give_up_s: how long to wait for
        unreachable servers before RewardsGone. token_env: the environment variable with the
        servers' token, '' = none. See `Endpoints`.
      make_rng: makes the source of the jitter.

    Raises:
      ValueError: an option missing or out of range.
    """

    name = 'remote'

    def __init__(
        self,
        urls: str | Sequence[str] = '',
        names: str | Sequence[str] = (),
        *,
        range: tuple[float, float] = (-np.inf, np.inf),
        prefix: str = '',
        fingerprint: str = '',
        batch_size: int = 16,
        timeout_s: float = 120.0,
        retries: int = 5,
        give_up_s: float = 600.0,
        token_env: str = '',
        make_rng: Callable[[], random.Random] = random.Random,
    ):
        names = (names,) if isinstance(names, str) else tuple(names)
        if not all(names) or not names or len(set(names)) < len(names):
            raise ValueError(
                f'remote.names is {names}; expected the names of the scores as the servers list '
                'them under /info'
            )
        self.range = low_high('remote.range', range, f'value of {names[0]!r}')
        at_least_one('remote', batch_size=batch_size)
        self._remote_names, self.names = names, tuple(prefix + name for name in names)
        self._fingerprint, self.batch_size = fingerprint, batch_size
        self._endpoints = Endpoints(
            'remote',
            urls,
            timeout_s=timeout_s,
            retries=retries,
            give_up_s=give_up_s,
            token_env=token_env,
            rng=make_rng(),
        )
        self._met, self._meeting, self._checked = False, threading.Lock(), set()

    @property
    def fingerprint(self) -> str:
        """The servers' fingerprint; asks a server if none has been asked. Raises as `check`."""
        self._meet()
        return self._fingerprint

    def check(self, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
        """Asks a server about the prompts that no server has accepted yet.

        Raises:
          ValueError: the server's reward cannot score a prompt, or a server has another reward.
          RewardError: as `__call__`.
        """
        self._meet()
        new = {
            repr(pair): pair for pair in zip(prompts, metadata) if repr(pair) not in self._checked
        }
        pairs, start, most = list(new.values()), 0, 256
        while start < len(pairs):
            part = pairs[start : start + most]
            try:
                body = protocol.encode_check(*map(list, zip(*part)))
            except protocol.TooManyValues:
                if len(part) == 1:
                    raise
                most = len(part) // 2
                continue
            self._endpoints.call('POST', '/check', body, protocol.MEDIA_TYPE, self._read_check)
            start += len(part)
        self._checked.update(new)

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]
    ) -> Scores:
        """Implements `Reward`. Raises RewardsGone if no server answers for `give_up_s`, RewardError
        if no answer is usable.
        """
        check_batch(images, prompts, metadata)
        self._meet()
        parts, start = [], 0
        while start < len(images):
            rows = slice(start, start + self.batch_size)
            try:
                parts.append(self._score(images[rows], list(prompts[rows]), list(metadata[rows])))
            except TooLarge:
                if len(images[rows]) == 1:
                    raise
                self.batch_size = len(images[rows]) // 2
                log.warning(
                    'remote: the servers refuse %d images at once; from now on %d',
                    len(images[rows]),
                    self.batch_size,
                )
            else:
                start = rows.stop
        values = {
            name: np.concatenate([values[remote] for values, _ in parts])
            for name, remote in zip(self.names, self._remote_names)
        }
        return Scores(values, np.concatenate([valid for _, valid in parts]))

    def interrupt(self) -> None:
        """Implements `Interruptible`."""
        self._endpoints.interrupt()

    def _score(
        self, images: np.ndarray, prompts: list[str], metadata: list[dict]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        request = protocol.Request(secrets.token_hex(8), images, prompts, metadata)

        def read(answer: Answer):
            if answer.status == 413:
                raise TooLarge(
                    f'{answer.url} refuses a request with {len(images)} images: {describe(answer)}'
                )
            try:
                return protocol.decode_response(
                    ok(answer).body, request, self._remote_names, self._fingerprint, self.range
                )
            except protocol.ProtocolError as error:
                raise BadAnswer(str(error)) from error

        return self._endpoints.call(
            'POST', '/score', protocol.encode_request(request), protocol.MEDIA_TYPE, read
        )

    def _meet(self) -> None:
        """Checks once that the servers serve what the configuration expects."""
        with self._meeting:
            if not self._met:
                self._fingerprint = self._endpoints.call('GET', '/info', b'', '', self._read_info)
                self._met = True

    def _read_info(self, answer: Answer) -> str:
        """The server's fingerprint. Raises ValueError if the server is of another kind than the
        configuration says.
        """
        names_of = lambda info: tuple(shaped(info['names'], [str], 'names'))
        found, names, number = read_json(
            answer, lambda info: (str(info['fingerprint']), names_of(info), info['protocol'])
        )
        for field, expected, value in (
            ('protocol', protocol.PROTOCOL, number),
            ('names', self._remote_names, names),
            ('fingerprint', self._fingerprint or found, found),
        ):
            if type(value) is not type(expected) or value != expected:  # True is 1
                raise ValueError(
                    f'{answer.url} has {field} {value!r}; this run expects {expected!r} '
                    f'(remote.{field})'
                )
        return found

    def _read_check(self, answer: Answer) -> None:
        if answer.status == 422:
            raise ValueError(f'{answer.url} cannot score the prompts: {_error(answer)}')
        # /check is optional: without it, prompts that cannot be scored show up later
        if answer.status != 404:
            ok(answer)


def _error(answer: Answer) -> str:
    """The message of a refusal."""
    try:
        return printable(str(json_of(answer)['error'])[:1000])
    except (ValueError, KeyError, TypeError):
        return describe(answer)
