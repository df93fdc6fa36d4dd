"""Messages among the processes of a run outside compiled programs: bytes under names, through JAX's
coordination service.

Compiled programs communicate over the chips' own network, and wait there without a limit. Messages
whose wait must be able to end (scores, stop requests) go this way.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable

import jax
import numpy as np

# Marks that a process leaves for the others: it leaves the common rounds (`Communicator`), or it
# answers nothing more. FAILURE holds the error that ends the run.
LEAVING, ENDED, FAILURE = 'leaving', 'ended', 'failure'


class Preempted(Exception):
    """Raised inside the loop once a stop was requested; unfinished work is dropped, the last
    completed update is kept.
    """


class OtherProcessFailed(RuntimeError):
    """Another process of the run met a fatal error, and raises that error itself."""


class Hosts:
    """This process among `count`; the primary process, `index` 0, alone writes logs and images."""

    LOOK_SECONDS = 1.0  # between two looks whether a process that is waited for has ended

    def __init__(self, index: int = 0, count: int = 1, client=None):
        self.index, self.count, self._client = index, count, client

    @classmethod
    def current(cls) -> Hosts:
        """The processes that `startup.start_processes` has joined, or this process alone."""
        from jax._src import (
            distributed,  # the service has no public interface; only this class uses it
        )

        return cls(jax.process_index(), jax.process_count(), distributed.global_state.client)

    @property
    def primary(self) -> bool:
        return self.index == 0

    def put(self, name: str, value: bytes) -> None:
        """Stores `value` for all to read; a name is written once."""
        self._client.key_value_set_bytes(name, value)

    def announce(self, name: str) -> None:
        """Stores a mark; several processes may set the same one."""
        self._client.key_value_set_bytes(name, b'1', allow_overwrite=True)

    def find(self, name: str) -> bytes | None:
        """The value stored under `name`, None if there is none yet."""
        try:
            return self._client.key_value_try_get_bytes(name)
        except jax.errors.JaxRuntimeError as error:
            if 'NOT_FOUND' in str(error):
                return None
            raise

    def wait(self, name: str, seconds: float) -> bytes | None:
        """The value stored under `name`, or None if there is none within `seconds`."""
        try:
            return self._client.blocking_key_value_get_bytes(name, int(seconds * 1000))
        except jax.errors.JaxRuntimeError as error:
            if 'DEADLINE_EXCEEDED' in str(error):
                return None
            raise

    def share(
        self,
        folder: str,
        value: bytes,
        seconds: float = math.inf,
        join: Callable[[list[bytes]], list[bytes]] = list,
    ) -> list[bytes]:
        """The values of all processes, in their order, once all have given theirs. Each folder is
        used once.

        The primary process joins them, so that N processes make 2 N reads and not N^2. Usually
        there is no time limit: if a process dies, JAX's heartbeat ends this one.

        Args:
          join: what the primary process makes of the values; all then return that. Every process
            reads the result, so with many it should be shorter than all their values.

        Raises:
          TimeoutError: not all have given theirs within `seconds`.
          OtherProcessFailed, Preempted: one has ended before it gave its own, see `end`.
        """
        until = time.monotonic() + seconds
        if self.count == 1:
            return join([value])
        self.put(f'{folder}/{self.index}', value)
        if self.primary:
            given = join([self._await(f'{folder}/{i}', until) for i in range(self.count)])
            answer = json.dumps([len(one) for one in given]).encode() + b'\n' + b''.join(given)
            self.put(f'{folder}/all', answer)
        else:
            answer = self._await(f'{folder}/all', until)
        lengths, _, joined = answer.partition(b'\n')
        ends = np.cumsum([0, *json.loads(lengths)])
        return [joined[start:end] for start, end in zip(ends, ends[1:])]

    def _await(self, name: str, until: float) -> bytes:
        look = lambda: max(0.0, min(self.LOOK_SECONDS, until - time.monotonic()))
        while (value := self.wait(name, look())) is None:
            if self.find(ENDED) is not None:
                # the process may have answered just before it ended
                if (value := self.find(name)) is not None:
                    return value
                if failure := self.failure():
                    raise OtherProcessFailed(failure)
                raise Preempted('stopped by another process of the run')
            if time.monotonic() >= until:
                raise TimeoutError(f'no answer from the other processes of the run ({name})')
        return value

    def fail(self, error: Exception) -> None:
        """Tells the others which error ends this process; only the first of a run counts."""
        if self.count > 1 and self.failure() is None:
            said = f'process {self.index} of the run failed: {type(error).__name__}: {error}'
            self._client.key_value_set_bytes(FAILURE, said[:2000].encode(), allow_overwrite=True)

    def failure(self) -> str | None:
        """The error that was told first (`fail`), in words; None if there was none."""
        said = self.find(FAILURE) if self.count > 1 else None
        return None if said is None else said.decode()

    def behind(self, error: Exception) -> Exception:
        """What ends a process with `error`: OtherProcessFailed if another's error stopped it."""
        told = None
        if isinstance(error, Preempted):
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be gone
                told = self.failure()
        return OtherProcessFailed(told) if told else error

    def end(self) -> None:
        """Tells the others that this process gives no further value. Whoever waits for one then
        raises OtherProcessFailed, or Preempted if no error was told.
        """
        self.announce(ENDED)
        self.announce(LEAVING)

    def meet(self, name: str, seconds: float) -> bool:
        """Waits until all processes are here; False if some did not come in time. Each name is used
        once.
        """
        try:
            self._client.wait_at_barrier(name, int(seconds * 1000))
        except jax.errors.JaxRuntimeError:
            return False
        return True

    def forget(self, folder: str) -> None:
        """Removes everything stored under `folder`/."""
        self._client.key_value_delete(f'{folder}/')
