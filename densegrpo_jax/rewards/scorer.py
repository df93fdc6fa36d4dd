"""Scoring on worker threads, so that the host scores one batch of images while the device samples
the next.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

import numpy as np

from densegrpo_jax.rewards.base import (
    Reward,
    RewardError,
    Scores,
    at_least_one,
    check_batch,
    check_scores,
    interrupt,
)
from densegrpo_jax.runtime.cores import cpu_cores
from densegrpo_jax.runtime.named import failure

CHUNK_SIZE = 16


class ScorerCounts(NamedTuple):
    """Running totals since the scorer was made.

    images: images submitted. scored: the distinct images that the reward scored. invalid: images
    that came back without a valid score. cpu_seconds: processor time of the worker threads.
    """

    images: int = 0
    scored: int = 0
    invalid: int = 0
    cpu_seconds: float = 0.0


class Scorer:
    """Scores batches of images on a bounded pool of threads.

    Scores identical (image, prompt, metadata) triples of one batch once: a dense rollout has many.

    Args:
      reward: called from every worker thread at once.
      workers: threads; 0 = one per core that this process may use.
      chunk_size: most images per call; by default the reward's `batch_size`, else CHUNK_SIZE. A
        reward without a `batch_size` gets fewer where that keeps all workers busy.
      max_pending: most batches that may be unfinished; beyond that `submit` waits.

    Raises:
      ValueError: an argument below 1 (`workers`: below 0).
    """

    def __init__(
        self,
        reward: Reward,
        workers: int = 0,
        *,
        chunk_size: int | None = None,
        max_pending: int = 4,
    ):
        workers = workers or cpu_cores()
        sizes = {} if chunk_size is None else {'chunk_size': chunk_size}
        at_least_one('scorer', workers=workers, max_pending=max_pending, **sizes)
        self._reward = reward
        self.workers = workers
        self._chunk_size = chunk_size
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix='reward')
        self._slots = threading.BoundedSemaphore(max_pending)
        self._lock = threading.Lock()
        self._counts = ScorerCounts()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the reward's scores."""
        return self._reward.names

    @property
    def counts(self) -> ScorerCounts:
        return self._counts

    def submit(
        self,
        images: np.ndarray,
        prompts: Sequence[str],
        metadata: Sequence[dict] | None = None,
        *,
        some_valid: bool = True,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> Future[Scores]:
        """Starts scoring; the future's result is the `Scores` of all N images in the same order.

        The future raises RewardError: the reward's own, or one that names whatever else the reward
        raised.

        Args:
          images: uint8 [N, H, W, 3]; not copied, so leave them alone until the future is done.
          prompts, metadata: N each; metadata None stands for empty dicts.
          some_valid: whether it is an error if no image gets a valid score.
          while_waiting: called repeatedly while `max_pending` batches are unfinished; may raise.

        Raises:
          TypeError, ValueError: malformed arguments, or a prompt that the reward cannot score.
            RuntimeError: closed.
        """
        images, prompts = np.asarray(images), list(prompts)
        metadata = [{}] * len(prompts) if metadata is None else list(metadata)
        check_batch(images, prompts, metadata)
        self._reward.check(prompts, metadata)
        first, inverse = _distinct(images, prompts, metadata)
        if not len(first):
            raise ValueError('there are no images to score')
        chunks = np.array_split(first, -(-len(first) // self._most(len(first))))

        result = Future()
        # only close(cancel=True) cancels a batch, not its future
        result.set_running_or_notify_cancel()
        failed = threading.Event()
        while not self._slots.acquire(timeout=0.05):
            while_waiting()
        try:
            futures = [
                self._pool.submit(self._score, rows, images, prompts, metadata, failed)
                for rows in chunks
            ]
        except RuntimeError:  # closed
            self._slots.release()
            raise
        _when_all_done(futures, lambda: self._finish(result, futures, inverse, some_valid))
        return result

    def close(self, cancel: bool = False) -> None:
        """Waits for submitted batches (with `cancel`, cancels those not begun and interrupts those
        that wait for servers), then ends the threads.
        """
        if cancel:
            interrupt([self._reward])
        self._pool.shutdown(wait=True, cancel_futures=cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_) -> None:
        self.close(cancel=kind is not None)

    def _most(self, images: int) -> int:
        """Most images per call, of so many in all."""
        at_once = getattr(self._reward, 'batch_size', None)  # a remote reward may lower it
        share = at_once or -(-images // self.workers)
        return min(self._chunk_size or at_once or CHUNK_SIZE, share)

    def _score(self, rows, images, prompts, metadata, failed: threading.Event) -> Scores | None:
        if failed.is_set():  # another chunk of the batch has already raised
            return None
        start = time.thread_time()
        try:
            scores = self._reward(
                images[rows], [prompts[i] for i in rows], [metadata[i] for i in rows]
            )
            check_scores(scores, self._reward, len(rows))
        except RewardError:
            failed.set()
            raise
        except BaseException as error:  # a SystemExit too: the batch would wait for ever
            failed.set()
            raise RewardError(f'reward {self._reward.name!r} failed: {failure(error)}') from error
        finally:
            self._count(scored=len(rows), cpu_seconds=time.thread_time() - start)
        return scores

    def _finish(
        self, result: Future, futures: list[Future], inverse: np.ndarray, some_valid: bool
    ) -> None:
        self._slots.release()
        try:
            if any(future.cancelled() for future in futures):
                raise RewardError('the scorer was closed before it had scored this batch')
            for error in (future.exception() for future in futures):
                if error is not None:
                    raise error
            parts = [future.result() for future in futures]
            valid = np.concatenate([part.valid for part in parts])[inverse]
            values = {
                name: np.concatenate([part.values[name] for part in parts])[inverse]
                for name in self._reward.names
            }
            self._count(images=len(valid), invalid=int((~valid).sum()))
            if some_valid and not valid.any():
                raise RewardError(
                    f'reward {self._reward.name!r} could not score any of {len(valid)} images; '
                    'the log says why'
                )
            result.set_result(Scores(values, valid))
        except Exception as error:  # noqa: BLE001 (the future raises it again)
            result.set_exception(error)

    def _count(self, **more: float) -> None:
        with self._lock:
            self._counts = ScorerCounts(
                **{key: value + more.get(key, 0) for key, value in self._counts._asdict().items()}
            )


def _distinct(
    images: np.ndarray, prompts: list[str], metadata: list[dict]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the distinct (image, prompt, metadata) triples, and for every row the position of
    its triple among them.
    """
    seen, first, inverse = {}, [], []
    for i, (image, prompt, extra) in enumerate(zip(images, prompts, metadata)):
        digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest()
        position = seen.setdefault((digest, prompt, repr(extra)), len(first))
        if position == len(first):
            first.append(i)
        inverse.append(position)
    return np.array(first, int), np.array(inverse, int)


def _when_all_done(futures: list[Future], then: Callable[[], None]) -> None:
    """Calls `then` once, when the last of `futures` is done or cancelled."""
    lock, left = threading.Lock(), len(futures)

    def one_done(_):
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            then()

    for future in futures:
        future.add_done_callback(one_done)
