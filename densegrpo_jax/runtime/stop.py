"""Stopping early without losing work: SIGTERM or SIGINT asks the loop to stop, a second of them
ends the process at once.

A process ends with ``FINISHED`` when training is complete, with ``RESUMABLE`` when it was asked to
stop and the same command continues it, and with anything else when it failed.

In a run of several processes all stop at the same place. Their loops go in step through numbered
rounds (`StopRequest.gather`), and a round ends in one of two ways, for all of them alike: with the
values of all, or with Preempted because one process was asked to stop before it had given its
value.
"""

import concurrent.futures
import contextlib
import io
import os
import signal
import time

import jax
import numpy as np

from densegrpo_jax.runtime.hosts import Hosts

FINISHED = 0
RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again


class Preempted(Exception):
    """Raised inside the loop once a stop was requested; what is under way is given up, the last
    completed update is kept.
    """


class StopRequest:
    """Whether a signal has asked this process, or another one of the run, to stop.

    Args:
      hosts: the processes of the run; None: this one alone.
    """

    POLL_SECONDS = 0.25  # between two looks at what the other processes want

    def __init__(self, hosts: Hosts | None = None):
        self.signal_name: str | None = None
        self.hosts = hosts or Hosts()
        self._round, self._looked, self._left = 0, 0.0, False

    @property
    def requested(self) -> bool:
        return self.signal_name is not None

    def check(self) -> None:
        """Raises Preempted if a stop was requested, in all processes of the run."""
        if (
            self.hosts.count > 1
            and not self.requested
            and time.monotonic() > self._looked + self.POLL_SECONDS
        ):
            self._looked = time.monotonic()
            if self.hosts.find(f'round/{self._round}/stop') is not None:
                self.signal_name = 'another process of the run'
        if self.requested:
            if self.hosts.count > 1 and not self._left:
                self.hosts.announce(f'round/{self._round}/stop')
                self._finish_round(None)
            raise Preempted(f'stopped by {self.signal_name}')

    def leave(self, reason: str) -> None:
        """Stops the other processes of the run where this one stops for a reason of its own: they
        raise Preempted, this call returns.
        """
        self.signal_name = reason
        with contextlib.suppress(Preempted):
            self.check()

    def gather(self, value: bytes = b'') -> list[bytes]:
        """The values of all processes, in their order; every process must come here equally often.
        Raises Preempted in all or none.
        """
        self.check()
        return [value] if self.hosts.count == 1 else self._finish_round(value)

    def merge(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Float arrays, equal shapes in all processes, NaN where another has the value -> whole
        arrays, in every process. As `gather`.
        """
        if self.hosts.count == 1:
            self.check()
            return arrays
        file = io.BytesIO()
        np.savez(file, **arrays)
        for given in self.gather(file.getvalue()):
            with np.load(io.BytesIO(given), allow_pickle=False) as other:
                for name, values in arrays.items():
                    np.copyto(values, other[name], where=np.isnan(values))
        return arrays

    def _finish_round(self, value: bytes | None) -> list[bytes]:
        """Gives this process's value (None: it stops) and waits for those of the others."""
        given = self.hosts.gather(
            f'round/{self._round}', b'stop' if value is None else b'go' + value
        )
        if self.hosts.primary and self._round > 1:
            # everyone has read it: they have answered in the round after
            self.hosts.forget(f'round/{self._round - 2}')
        self._round += 1
        if b'stop' in given:
            self.signal_name, self._left = self.signal_name or 'another process of the run', True
            raise Preempted(f'stopped by {self.signal_name}')
        return [one[2:] for one in given]

    def wait(self, value, poll_seconds: float = 0.02):
        """Waits for device arrays or futures, but not a moment longer than the stop request: then
        it raises Preempted.

        ``jax.block_until_ready`` would sit in C++ until the device is done, and a rollout may take
        minutes.

        Args:
          value: a pytree of jax Arrays and concurrent Futures.

        Returns:
          The same pytree, arrays ready and futures replaced by their results (a future's exception
          is raised).
        """
        leaves, structure = jax.tree.flatten(value)
        for leaf in leaves:
            while not _ready(leaf):
                self.check()
                time.sleep(poll_seconds)
        self.check()
        return jax.tree.unflatten(
            structure, [leaf.result() if _is_future(leaf) else leaf for leaf in leaves]
        )


def _is_future(leaf) -> bool:
    return isinstance(leaf, concurrent.futures.Future)


def _ready(leaf) -> bool:
    if _is_future(leaf):
        return leaf.done()
    return leaf.is_ready() if isinstance(leaf, jax.Array) else True


@contextlib.contextmanager
def handle_stop_signals(signals=(signal.SIGTERM, signal.SIGINT), hosts: Hosts | None = None):
    """Yields a StopRequest (of `hosts`) that a stop signal sets; the previous handlers return
    afterwards. Main thread only.

    The second of `signals` has the system's default action, so that it works even while the process
    is deep inside a compiler. SIGHUP and SIGUSR1 ask for a stop too, but never end the process,
    because they come beside those and not instead of them: systemd sends SIGHUP right after SIGTERM
    to what a session has left, and a supervisor (launch/supervise.sh) hands on as SIGUSR1 a signal
    that the terminal has given to both. An ignored SIGHUP (nohup) stays ignored. SIGUSR1 does
    nothing afterwards: one that comes late must not end what is left to do after the save.
    """
    stop = StopRequest(hosts)
    previous = {}

    def on_signal(number, frame):
        del frame
        if number not in signals and stop.requested:
            return
        stop.signal_name = signal.Signals(number).name
        note = f'{stop.signal_name}: saving what is complete, then exit {RESUMABLE}.'
        if number in signals:
            for each in signals:
                signal.signal(each, signal.SIG_DFL)
            note += ' Once more: stop at once.'
        try:
            # no buffered stream here: the signal may have come in the middle of a write to one
            os.write(2, f'{note}\n'.encode())
        # the terminal is gone, as after SIGHUP: what is said about the save must not make it fail
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    try:
        for each in (*signals, signal.SIGHUP, signal.SIGUSR1):
            if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN:
                previous[each] = signal.signal(each, on_signal)
        yield stop
    finally:
        # not SIG_IGN, which programs started later would inherit
        previous[signal.SIGUSR1] = lambda *_: None
        for each, handler in previous.items():
            signal.signal(each, handler)
