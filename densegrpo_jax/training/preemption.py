"""Stopping early without losing work: SIGTERM or SIGINT asks the loop to stop, a second signal ends the process at once.

A process ends with ``FINISHED`` when training is complete, with ``RESUMABLE`` when it was asked to stop and the same command
continues it, and with anything else when it failed.
"""

import concurrent.futures
import contextlib
import os
import signal
import time

import jax

FINISHED = 0
RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again


class Preempted(Exception):
    """Raised inside the loop once a stop was requested; what is under way is given up, the last completed update is kept."""


class StopRequest:
    """Whether a signal has asked this process to stop."""

    def __init__(self):
        self.signal_name: str | None = None

    @property
    def requested(self) -> bool:
        return self.signal_name is not None

    def check(self) -> None:
        """Raises Preempted if a stop was requested."""
        if self.requested:
            raise Preempted(f'stopped by {self.signal_name}')

    def wait(self, value, poll_seconds: float = 0.02):
        """Waits for device arrays or futures, but not a moment longer than the stop request: then it raises Preempted.

        ``jax.block_until_ready`` would sit in C++ until the device is done, and a rollout may take minutes.

        Args:
          value: a pytree of jax Arrays and concurrent Futures.

        Returns:
          The same pytree, arrays ready and futures replaced by their results (a future's exception is raised).
        """
        leaves, structure = jax.tree.flatten(value)
        for leaf in leaves:
            while not _ready(leaf):
                self.check()
                time.sleep(poll_seconds)
        self.check()
        return jax.tree.unflatten(structure, [leaf.result() if _is_future(leaf) else leaf for leaf in leaves])


def _is_future(leaf) -> bool:
    return isinstance(leaf, concurrent.futures.Future)


def _ready(leaf) -> bool:
    if _is_future(leaf):
        return leaf.done()
    return leaf.is_ready() if isinstance(leaf, jax.Array) else True


@contextlib.contextmanager
def handle_stop_signals(signals=(signal.SIGTERM, signal.SIGINT)):
    """Yields a StopRequest that the given signals set; the previous handlers return afterwards. Main thread only.

    The second signal has the system's default action, so that it works even while the process is deep inside a compiler.
    """
    stop = StopRequest()
    previous = {}

    def on_signal(number, frame):
        del frame
        stop.signal_name = signal.Signals(number).name
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        note = f'{stop.signal_name}: saving the last completed update, then exit {RESUMABLE}. Once more: stop at once.\n'
        os.write(2, note.encode())  # no buffered stream here: the signal may have come in the middle of a write to one

    try:
        for each in signals:
            previous[each] = signal.signal(each, on_signal)
        yield stop
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
