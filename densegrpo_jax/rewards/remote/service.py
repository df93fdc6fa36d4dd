"""The reward server: an ASGI application that scores batches of images with any `Reward`.

    GET  /health  {status, pending, max_queue, images, invalid}; needs no token
    GET  /info    {protocol, package, version, fingerprint, names, range, max_request_bytes}
    POST /check   can these prompts be scored? 200, or 422 with a message that names the prompt
    POST /score   see rewards/remote/protocol.py

Refusals are JSON, {"error": message}: 401 wrong token, 408 the request does not arrive in time, 413
too large, 422 malformed or not scorable (the message names the field), 429 the queue is full (with
Retry-After), 500 the reward failed, 503 the server stops.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
from collections.abc import Mapping

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from densegrpo_jax.rewards.base import Reward
from densegrpo_jax.rewards.facts import weights
from densegrpo_jax.rewards.remote import protocol
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.trees import json_value

log = logging.getLogger(__name__)

# Time limits for a request to arrive, in all and without a byte: a dead sender must not keep a
# place in the queue.
READ_SECONDS = 60.0
IDLE_SECONDS = 10.0
REFUSED_SECONDS = 5.0  # for a body that is only discarded
RETRY_AFTER_SECONDS = 1
LONG_SECONDS = 300.0  # of scoring, after which the log says so


def fingerprint(reward: Reward, spec: dict, version: str, code: Mapping[str, str] = {}) -> str:
    """Identifies a reward by its configuration (JSON values), scores and range, by the version of
    the package that computes it, by its weights, and by the code of rewards of a user's own (name
    -> digest); 16 hex digits.
    """
    facts = [version, spec, list(reward.names), [repr(float(end)) for end in reward.range]]
    if code:
        facts.append(dict(code))
    if held := weights([reward]):
        facts.append({'weights': held})
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class RewardService:
    """One reward behind HTTP. `app` is the ASGI application.

    Memory is bounded by about 3 * max_queue * max_request_bytes (raw, decoded, as an array), and
    less than 40 MiB for the texts of each: a request gets its place in the queue before its body is
    read, and its values are counted before they are decoded.

    Args:
      reward: computes the scores; called from `workers` threads, each for one request at a time.
        Other requests wait for their turn.
      name: its `fingerprint`. version: of the package.
      token: bearer token that every request but /health must carry; '' = none.
      max_queue: most requests that wait or run; more are refused with 429.
      max_request_bytes: a larger body is refused as soon as its size shows.
    """

    def __init__(
        self,
        reward: Reward,
        name: str,
        version: str,
        *,
        token: str = '',
        workers: int = 2,
        max_queue: int = 16,
        max_request_bytes: int = 64 << 20,
    ):
        if max_queue < 1 or max_request_bytes < 1:
            raise ValueError(
                f'max_queue is {max_queue} and max_request_bytes {max_request_bytes}; expected at '
                'least 1'
            )
        self._reward, self._name, self._version, self._token = reward, name, version, token.encode()
        self._max_queue, self._max_request_bytes, self._pending = max_queue, max_request_bytes, 0
        self._scorer = Scorer(reward, workers, max_pending=max_queue)
        self._turns = asyncio.Semaphore(self._scorer.workers)
        self.app = Starlette(
            routes=[
                Route('/health', self._health),
                Route('/info', self._info),
                Route('/check', self._check, methods=['POST']),
                Route('/score', self._score, methods=['POST']),
            ],
            exception_handlers={HTTPException: _refuse, ClientDisconnect: _nobody},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app):
        yield
        # accepted requests are scored before the process ends
        await asyncio.to_thread(self._scorer.close)

    async def _health(self, request: Request) -> Response:
        counts = self._scorer.counts
        return JSONResponse(
            {
                'status': 'ok',
                'pending': self._pending,
                'max_queue': self._max_queue,
                'images': counts.images,
                'invalid': counts.invalid,
            }
        )

    async def _info(self, request: Request) -> Response:
        self._authorise(request)
        return JSONResponse(
            {
                'protocol': protocol.PROTOCOL,
                'package': 'densegrpo_jax',
                'version': self._version,
                'fingerprint': self._name,
                'names': list(self._reward.names),
                'range': json_value(list(self._reward.range)),
                'max_request_bytes': self._max_request_bytes,
            }
        )

    async def _check(self, request: Request) -> Response:
        async with self._place(request):
            with _unprocessable():
                prompts, metadata = await asyncio.to_thread(
                    protocol.decode_check, await self._read(request)
                )
                await asyncio.to_thread(self._reward.check, prompts, metadata)
        return JSONResponse({})

    async def _score(self, request: Request) -> Response:
        async with self._place(request):
            with _unprocessable():
                asked = await asyncio.to_thread(protocol.decode_request, await self._read(request))
            async with self._turns:
                # A sender whose time limit has passed is gone and asks again: scoring for nobody
                # would make the new request wait too long as well.
                if await request.is_disconnected():
                    raise ClientDisconnect
                with _unprocessable():
                    future = await asyncio.to_thread(
                        self._scorer.submit,
                        asked.images,
                        asked.prompts,
                        asked.metadata,
                        some_valid=False,
                    )
                try:
                    scores = await _noted(asyncio.wrap_future(future), len(asked.images))
                # any error of a reward: tell the caller, and keep serving
                except Exception as error:
                    log.exception('the reward failed on a request of %d images', len(asked.images))
                    raise HTTPException(
                        500, f'the reward failed: {type(error).__name__}: {error}'
                    ) from error
            # In the protocol an image has all of its scores or none: a score that is only logged
            # cannot be missing alone.
            valid = scores.valid & np.isfinite(list(scores.values.values())).all(0)
            answer = await asyncio.to_thread(
                protocol.encode_response,
                asked,
                self._reward.names,
                scores.values,
                valid,
                self._name,
            )
        return Response(answer, media_type=protocol.MEDIA_TYPE)

    @contextlib.asynccontextmanager
    async def _place(self, request: Request):
        """A place in the queue for an authorised request, taken before its body is read."""
        try:
            self._authorise(request)
            if self._pending >= self._max_queue:
                raise HTTPException(
                    429,
                    f'{self._pending} requests are waiting or running',
                    {'Retry-After': str(RETRY_AFTER_SECONDS)},
                )
        except HTTPException:
            with contextlib.suppress(HTTPException):
                await self._receive(request, -1, REFUSED_SECONDS)
            raise
        self._pending += 1
        try:
            yield
        except asyncio.CancelledError:  # the server has been told to stop, and waits no longer
            raise HTTPException(503, 'the server stops; ask another one, or again') from None
        finally:
            self._pending -= 1

    def _authorise(self, request: Request) -> None:
        given = request.headers.get('authorization', '').encode('latin-1')
        if self._token and not hmac.compare_digest(given, b'Bearer ' + self._token):
            raise HTTPException(401, 'wrong or missing token', {'WWW-Authenticate': 'Bearer'})

    async def _read(self, request: Request) -> bytearray:
        body = await self._receive(request, keep=self._max_request_bytes)
        if body is None:
            raise HTTPException(
                413,
                f'the request is larger than {self._max_request_bytes} bytes; send fewer images '
                'at once',
            )
        return body

    async def _receive(
        self, request: Request, keep: int, seconds: float = READ_SECONDS
    ) -> bytearray | None:
        """The body, or None if it is larger than `keep` bytes.

        A body that will be refused is still read and discarded, within limits: closing a connection
        with unread data would reset it, and the sender would not see the refusal.
        """
        body, size, loop = bytearray(), 0, asyncio.get_running_loop()
        end = loop.time() + seconds
        try:
            async with asyncio.timeout(min(IDLE_SECONDS, seconds)) as limit:
                async for chunk in request.stream():
                    limit.reschedule(min(end, loop.time() + IDLE_SECONDS))
                    size += len(chunk)
                    if size <= keep:
                        body += chunk
                    elif size > 4 * self._max_request_bytes:
                        break
        except TimeoutError as error:
            raise HTTPException(
                408,
                f'the request did not arrive within {seconds:g} s, or for {IDLE_SECONDS:g} s '
                'nothing of it did; send it again',
            ) from error
        return body if size <= keep else None


async def _noted(future: asyncio.Future, images: int):
    """The future's result; a line in the log whenever LONG_SECONDS have passed."""
    waited = 0.0
    while not (await asyncio.wait([future], timeout=LONG_SECONDS))[0]:
        waited += LONG_SECONDS
        log.warning(
            'a request of %d images has been with the reward for %g s; if it hangs, its thread is '
            'lost: restart the server',
            images,
            waited,
        )
    return future.result()


@contextlib.contextmanager
def _unprocessable():
    """Errors that the request caused become status 422."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise HTTPException(422, str(error)) from error
    except (LookupError, AttributeError) as error:  # of a check that expects other metadata
        raise HTTPException(422, f'{type(error).__name__}: {error}') from error


async def _refuse(request: Request, error: HTTPException) -> Response:
    return JSONResponse({'error': error.detail}, error.status_code, error.headers)


async def _nobody(request: Request, error: ClientDisconnect) -> Response:
    # the sender has gone, during its request or while it waited: nobody receives this
    return Response(status_code=400)
