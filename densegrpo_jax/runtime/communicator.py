"""Agreement among the processes of a running run: they exchange values in rounds.

The processes pass numbered rounds in step (`Communicator.exchange`). A round ends in one of two
ways, alike for all: with the values of all, or with Preempted because a process left before it had
given its value.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from densegrpo_jax.runtime.hosts import LEAVING, Hosts, Preempted


class Communicator:
    """The rounds of a run.

    Args:
      hosts: the processes of the run; None: this process alone.

    Attributes:
      before_round: called before this process gives a value; may raise if this process no longer
        wants to wait for the others. A `StopRequest` puts its check here.
    """

    POLL_SECONDS = 0.25  # between two checks whether another process leaves

    def __init__(self, hosts: Hosts | None = None):
        self.hosts = hosts or Hosts()
        self.before_round: Callable[[], None] = lambda: None
        self._round, self._looked, self._over = 0, 0.0, False

    def exchange(self, value: bytes = b'') -> list[bytes]:
        """The values of all processes, in their order; all must call this equally often.

        Raises Preempted in all processes or in none, and OtherProcessFailed once another one has
        ended with an error.
        """
        self.before_round()
        return [value] if self.hosts.count == 1 else self._finish_round(value)

    def of_primary(self, value: Any) -> Any:
        """The primary process's JSON value, in all; those of others are not read. Raises as
        `exchange`.
        """
        own = json.dumps(value).encode() if self.hosts.primary else b''
        return json.loads(self.exchange(own)[0])

    def still_together(self) -> None:
        """A round that does not look for a stop of this process: raises Preempted, in all processes
        or in none, if another one has left.
        """
        if self.hosts.count > 1:
            self._finish_round(b'')

    def merge(self, tree):
        """A pytree of float arrays, NaN where another process has the value -> whole arrays, in
        every process; where several have one, that of the first of them.

        Structure, shapes and dtypes must be equal in all processes; the input arrays may be written
        to. Raises as `exchange`. A process sends what it has, and reads the arrays once.
        """
        if self.hosts.count == 1:
            self.before_round()
            return tree
        leaves, structure = jax.tree.flatten(tree)
        self.before_round()

        def join(given: list[bytes]) -> list[bytes]:
            whole = [np.full(leaf.shape, np.nan, leaf.dtype) for leaf in leaves]
            for part in reversed(given):  # the first is the last to write
                _write_part(whole, part)
            return [b''.join(leaf.tobytes() for leaf in whole)]

        (whole,), start = self._finish_round(_part(leaves), join=join), 0
        for leaf in leaves:
            values = np.frombuffer(whole, leaf.dtype, leaf.size, start)
            np.copyto(leaf, values.reshape(leaf.shape))
            start += leaf.nbytes
        return jax.tree.unflatten(structure, leaves)

    def someone_leaves(self) -> bool:
        """Whether another process leaves or has ended, or a round has ended for that reason; checks
        at most once per POLL_SECONDS.
        """
        if self.hosts.count == 1 or self._over:
            return self._over
        if time.monotonic() <= self._looked + self.POLL_SECONDS:
            return False
        self._looked = time.monotonic()
        return self.hosts.find(LEAVING) is not None

    def leave(self, seconds: float = math.inf) -> None:
        """Ends the current round, and with it all rounds: the others raise Preempted.

        Raises:
          TimeoutError: not all others reached its end within `seconds`.
          OtherProcessFailed: one of them has ended with an error.
        """
        if self.hosts.count > 1 and not self._over:
            self.hosts.announce(LEAVING)
            with contextlib.suppress(Preempted):
                self._finish_round(None, seconds)

    def _finish_round(
        self,
        value: bytes | None,
        seconds: float = math.inf,
        join: Callable[[list[bytes]], list[bytes]] = list,
    ) -> list[bytes]:
        """Gives this process's value (None: it leaves) and waits for those of the others, or for
        what process 0 makes of them (`join`).
        """
        number, self._round = self._round, self._round + 1

        def joined(given: list[bytes]) -> list[bytes]:
            if b'stop' in given:
                return [b'stop']
            return [b'go' + one for one in join([one[2:] for one in given])]

        own = b'stop' if value is None else b'go' + value
        given = self.hosts.share(f'round/{number}', own, seconds, joined)
        if self.hosts.primary and number > 1:
            # all have read that round: they have answered in the round after it
            self.hosts.forget(f'round/{number - 2}')
        if b'stop' in given:
            self._over = True
            raise Preempted('stopped by another process of the run')
        return [one[2:] for one in given]


def _part(leaves: list[np.ndarray]) -> bytes:
    """The numbers that this process has of the arrays: of each how many, where, and their values.
    Bytes without a format: most of an npz file of a few numbers is headers.
    """
    parts = []
    for leaf in leaves:
        flat = leaf.ravel()
        places = np.flatnonzero(~np.isnan(flat)).astype(np.uint32)
        parts += [np.uint32(len(places)), places, flat[places]]
    return b''.join(part.tobytes() for part in parts)


def _write_part(leaves: list[np.ndarray], part: bytes) -> None:
    """Writes what `_part` made into other arrays of the same shapes and dtypes."""
    start = 0

    def read(dtype, count: int) -> np.ndarray:
        nonlocal start
        found = np.frombuffer(part, dtype, count, start)
        start += found.nbytes
        return found

    for leaf in leaves:
        places = read(np.uint32, int(read(np.uint32, 1)[0]))
        leaf.reshape(-1)[places] = read(leaf.dtype, len(places))
