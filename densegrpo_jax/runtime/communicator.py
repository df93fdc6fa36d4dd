"""Agreement among the processes of a running run: they exchange values in rounds.

The processes pass numbered rounds in step (`Communicator.exchange`). A round ends in one of two
ways, alike for all: with the values of all, or with Preempted because a process left before it had
given its value.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable

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

    def still_together(self) -> None:
        """A round that does not look for a stop of this process: raises Preempted, in all processes
        or in none, if another one has left.
        """
        if self.hosts.count > 1:
            self._finish_round(b'')

    def merge(self, tree):
        """A pytree of float arrays, NaN where another process has the value -> whole arrays, in
        every process.

        Structure and shapes must be equal in all processes; the input arrays may be written to.
        Raises as `exchange`.
        """
        if self.hosts.count == 1:
            self.before_round()
            return tree
        leaves, structure = jax.tree.flatten(tree)
        file = io.BytesIO()
        np.savez(file, *leaves)
        for given in self.exchange(file.getvalue()):
            with np.load(io.BytesIO(given), allow_pickle=False) as other:
                for i, leaf in enumerate(leaves):
                    np.copyto(leaf, other[f'arr_{i}'], where=np.isnan(leaf))
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

    def _finish_round(self, value: bytes | None, seconds: float = math.inf) -> list[bytes]:
        """Gives this process's value (None: it leaves) and waits for those of the others."""
        number, self._round = self._round, self._round + 1
        given = self.hosts.share(
            f'round/{number}', b'stop' if value is None else b'go' + value, seconds
        )
        if self.hosts.primary and number > 1:
            # all have read that round: they have answered in the round after it
            self.hosts.forget(f'round/{number - 2}')
        if b'stop' in given:
            self._over = True
            raise Preempted('stopped by another process of the run')
        return [one[2:] for one in given]
