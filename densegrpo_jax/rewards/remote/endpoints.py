"""Several servers of one reward: retries with back-off and jitter, failover, and an end if all stay
unreachable.

There are two kinds of failure. A server that does not answer (refused, timed out, cut off, busy) is
an outage: the call waits up to `give_up_s` for any server. A server that answers an error or
nonsense is up and wrong: the call tries `retries` more times, on another server if there is one,
because waiting is unlikely to help.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from densegrpo_jax.rewards.base import RewardError, RewardsGone
from densegrpo_jax.rewards.remote.connection import TRANSPORT_ERRORS, Answer, Interrupted, request
from densegrpo_jax.runtime.reading import parse_json

log = logging.getLogger(__name__)

T = TypeVar('T')
# try again later: the server, or a proxy in front of it, does not object to the request itself
BUSY = (408, 429, 502, 503, 504)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
MOST_JSON = 1 << 20  # bytes of an answer in JSON: brackets take up to 36 times as much memory


class BadAnswer(Exception):
    """A complete but unusable answer; another server, or the same one later, may do better."""


def low_high(key: str, range: Sequence[float], of: str) -> tuple[float, float]:
    """The `range` option of a reward that servers compute. Raises ValueError, naming `key`, unless
    it is two numbers in order.
    """
    if len(range) != 2 or not range[0] < range[1]:
        raise ValueError(f'{key} is {range}; expected (lowest, highest) {of}')
    return float(range[0]), float(range[1])


class _Endpoint:
    """One server: until when it rests, its number of failures in a row, and the last failure."""

    def __init__(self, url: str):
        self.url, self.resting_until, self.failures, self.error = url, 0.0, 0, 'not asked yet'


class Endpoints:
    """Servers of one reward at their addresses, shared by the threads that score.

    Args:
      key: name of the reward, for messages.
      urls: base URLs, comma-separated or a sequence.
      timeout_s: of one request, from its start to the last byte of the answer.
      retries: how often a call is repeated after an unusable answer.
      give_up_s: how long a call may last while no server gives any of this reward's calls a usable
        answer.
      token_env: name of the environment variable with the bearer token; '' = none.
      rng: source of the jitter.

    Raises:
      ValueError: an option out of range, a malformed URL, a missing token.
    """

    def __init__(
        self,
        key: str,
        urls: str | Sequence[str],
        *,
        timeout_s: float,
        retries: int,
        give_up_s: float,
        token_env: str,
        rng: random.Random,
    ):
        urls = [url.strip() for url in (urls.split(',') if isinstance(urls, str) else urls)]
        if not any(urls):
            raise ValueError(
                f'reward {key!r} has no servers; name them in its option urls: '
                'http://HOST:PORT,http://HOST:PORT,...'
            )
        self._endpoints = [_Endpoint(_base_url(key, url)) for url in urls]
        if not (timeout_s > 0 and retries >= 0 and give_up_s >= 0):
            raise ValueError(
                f'{key}: timeout_s {timeout_s}, retries {retries}, give_up_s {give_up_s}; expected '
                '> 0, >= 0 and >= 0'
            )
        self._key, self._timeout_s, self._retries, self._give_up_s = (
            key,
            timeout_s,
            retries,
            give_up_s,
        )
        self._headers = {}
        if token_env:
            self._headers['Authorization'] = f'Bearer {read_token(token_env)}'
        self._rng = rng
        self._lock, self._interrupted = threading.Lock(), threading.Event()
        self._turn, self._last_good = 0, 0.0

    def __len__(self) -> int:
        return len(self._endpoints)

    def call(
        self, method: str, path: str, body: bytes, media_type: str, read: Callable[[Answer], T]
    ) -> T:
        """The result of `read` for the first answer that it accepts.

        Args:
          read: turns an answer of any status outside BUSY into the result, or raises BadAnswer.
            Any other error that it raises ends the call.

        Raises:
          RewardsGone: no usable answer for `give_up_s`.
          RewardError: too many unusable answers, or `interrupt` was called.
        """
        started, wrong, last = time.monotonic(), 0, None
        headers = {**self._headers, 'Content-Type': media_type} if body else self._headers
        while True:
            endpoint = last = self._next(started, last)
            retry_after = None
            try:
                answer = request(
                    method,
                    endpoint.url + path,
                    body,
                    headers,
                    timeout_s=self._timeout_s,
                    stop=self._interrupted,
                )
                if answer.status not in BUSY:
                    result = read(answer)
                    self._succeeded(endpoint)
                    return result
                error, retry_after = describe(answer), answer.retry_after
            except Interrupted:
                continue  # and `_next` raises
            except TRANSPORT_ERRORS as failure:
                error = (
                    f'{type(failure).__name__}: {failure}'
                    if str(failure)
                    else type(failure).__name__
                )
            except BadAnswer as failure:
                error, wrong = str(failure), wrong + 1
            self._failed(endpoint, error, retry_after)
            if wrong > self._retries:
                raise RewardError(
                    f'reward {self._key!r}: {wrong} unusable answers, the last from '
                    f'{endpoint.url}: {error}'
                )
            if time.monotonic() >= self._limit(started):
                failures = '; '.join(
                    f'{endpoint.url} ({endpoint.error})' for endpoint in self._endpoints
                )
                raise RewardsGone(
                    f'reward {self._key!r}: no usable answer for {self._give_up_s:g} s '
                    f'({self._key}.give_up_s) from {failures}. Start the servers, or name others '
                    'in the option urls, and run the same command again'
                )

    def interrupt(self) -> None:
        """Soon ends the running calls, and all later ones, with a RewardError; a connection that is
        being made is completed first.
        """
        self._interrupted.set()

    def _limit(self, started: float) -> float:
        return max(started, self._last_good) + self._give_up_s

    def _next(self, started: float, last: _Endpoint | None) -> _Endpoint:
        """The next server that does not rest, `last` only if it is the only one. Waits for a server
        at most until the limit.
        """
        while True:
            if self._interrupted.is_set():
                raise RewardError(f'reward {self._key!r}: scoring was interrupted')
            with self._lock:
                now, endpoints = time.monotonic(), self._endpoints
                self._turn = (self._turn + 1) % len(endpoints)
                inturn = endpoints[self._turn :] + endpoints[: self._turn]
                if awake := [endpoint for endpoint in inturn if endpoint.resting_until <= now]:
                    return min(awake, key=lambda endpoint: endpoint is last)
                soonest = min(inturn, key=lambda endpoint: endpoint.resting_until)
                pause = min(soonest.resting_until, self._limit(started)) - now
            if pause <= 0:
                return soonest  # the last try
            self._interrupted.wait(pause)

    def _succeeded(self, endpoint: _Endpoint) -> None:
        with self._lock:
            endpoint.resting_until, endpoint.failures, self._last_good = 0.0, 0, time.monotonic()

    def _failed(self, endpoint: _Endpoint, error: str, retry_after: float | None) -> None:
        """Lets the server rest: as long as it asked for, else by exponential back-off with full
        jitter.
        """
        with self._lock:
            endpoint.error, now = error, time.monotonic()
            if endpoint.resting_until > now:
                return  # another thread has seen the same failure
            if retry_after is not None:
                pause = min(retry_after, LONGEST_PAUSE_S) + self._rng.uniform(0, FIRST_PAUSE_S)
            else:
                pause = self._rng.uniform(
                    0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(endpoint.failures, 10))
                )
                endpoint.failures += 1
            endpoint.resting_until = now + pause
        log.warning('reward %r: %s: %s; next try in %.1f s', self._key, endpoint.url, error, pause)


def describe(answer: Answer) -> str:
    """Status and beginning of an answer, for a message."""
    text = printable(answer.body[:300].decode('utf-8', 'replace').strip())
    return f'status {answer.status}' + (f': {text}' if text else '')


def printable(text: str) -> str:
    """Text from elsewhere for a terminal or a log: without line ends and control sequences."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def ok(answer: Answer) -> Answer:
    """The answer, if its status is 200. Raises BadAnswer."""
    if answer.status != 200:
        raise BadAnswer(describe(answer))
    return answer


def json_of(answer: Answer) -> dict[str, Any]:
    """The JSON object in an answer. Raises ValueError if it is none, or larger than MOST_JSON."""
    if len(answer.body) > MOST_JSON:
        raise ValueError(f'{len(answer.body)} bytes, where at most {MOST_JSON} are expected')
    return parse_json(answer.body.decode(), 'the answer')


def read_json(answer: Answer, pick: Callable[[Any], T]) -> T:
    """`pick` applied to the JSON object in an answer. Raises BadAnswer if that fails."""
    try:
        return pick(json_of(ok(answer)))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadAnswer(
            f'{answer.url} gave an unexpected answer: {error!r} in {answer.body[:200]!r}'
        ) from error


def read_token(variable: str) -> str:
    """The token in an environment variable. Raises ValueError if there is none, or if a header
    cannot carry it.
    """
    token = os.environ.get(variable, '').strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError(
            f'the environment variable {variable} (token_env) must hold a token of printable '
            'ASCII; it is empty or does not'
        )
    return token


def _base_url(key: str, url: str) -> str:
    try:
        parts = urlsplit(url)
        right = (
            parts.scheme in ('http', 'https')
            and parts.hostname
            and parts.port != 0
            and '@' not in url
        )
    except ValueError:  # a port that is not a number
        right = False
    if not right or parts.query or parts.fragment:
        raise ValueError(
            f'{key}.urls: {url!r} is not a base URL; expected http://HOST:PORT or '
            'https://HOST/PATH, without credentials'
        )
    return url.rstrip('/')
