"""Stopping early without losing work: SIGTERM or SIGINT asks the loop to stop; a second signal ends
the process at once.

A process ends with ``FINISHED`` when training is complete, with ``RESUMABLE`` when it was asked to
stop and the same command continues it, with ``UNJOINED`` when other processes of its run did not
come, and with anything else when it failed.
"""

import concurrent.futures
import contextlib
import math
import os
import signal
import time

import jax

from densegrpo_jax.runtime.communicator import Communicator, Preempted

FINISHED = 0
RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again
# EX_UNAVAILABLE: whoever started the processes must start all of them again. This one alone would
# wait for the others in vain, for as long as a supervisor starts it again.
UNJOINED = 69


class StopRequest:
    """Whether a signal has asked this process, or another one of the run, to stop.

    In a run of several processes all stop at the same place: a process that stops leaves the common
    rounds (`Communicator`), and notices if another has left them.

    Args:
      communicator: of the run's processes; None: of this process alone.
    """

    def __init__(self, communicator: Communicator | None = None):
        self.signal_name: str | None = None
        self.communicator = communicator or Communicator()
        self.communicator.before_round = self.check

    @property
    def requested(self) -> bool:
        return self.signal_name is not None

    def check(self) -> None:
        """Raises Preempted if a stop was requested, in all processes of the run, and
        OtherProcessFailed if another one has ended with an error.

        Others may have passed this call before they hear of it. So they must come to a round or a
        `wait` next: where processes wait for each other in another way, as in `Agreement`, at a
        barrier or for a program of all devices, call `communicator.exchange` instead.
        """
        if not self.requested and self.communicator.someone_leaves():
            self.signal_name = 'another process of the run'
        if self.requested:
            self.communicator.leave()
            raise Preempted(f'stopped by {self.signal_name}')

    def leave(self, reason: str, seconds: float = math.inf) -> None:
        """Stops the other processes of the run, if this one stops for its own reason: they raise
        Preempted, this call returns.

        Raises:
          TimeoutError: they did not stop within `seconds`.
        """
        self.signal_name = reason
        self.communicator.leave(seconds)

    def wait(self, value, poll_seconds: float = 0.02):
        """Waits for device arrays or futures; raises Preempted as soon as a stop is requested.

        ``jax.block_until_ready`` would block in C++ until the device is done, and a rollout may
        take minutes.

        Args:
          value: a pytree of jax Arrays and concurrent Futures.
          poll_seconds: the longest pause between two looks.

        Returns:
          The same pytree, with arrays ready and futures replaced by their results; raises a
          future's exception.
        """
        leaves, structure = jax.tree.flatten(value)
        pause = 0.001  # what takes milliseconds is not waited for longer
        for leaf in leaves:
            while not _ready(leaf):
                self.check()
                time.sleep(pause)
                pause = min(2 * pause, poll_seconds)
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
def handle_stop_signals(communicator: Communicator | None = None):
    """Yields a StopRequest (of the `communicator`) that a stop signal sets; afterwards restores the
    previous handlers. Main thread only.

    A second SIGTERM or SIGINT has the system's default action, so that it works even while the
    process is deep inside a compiler. SIGHUP and SIGUSR1 ask for a stop too but never end the
    process, because they come in addition to those signals: systemd sends SIGHUP right after
    SIGTERM to the processes of a closed session, and a supervisor (launch/supervise.sh) passes on
    as SIGUSR1 a signal that the terminal has sent to both. An ignored SIGHUP (nohup) stays ignored.
    Afterwards SIGUSR1 does nothing: a late one must not end the work that follows the save.
    """
    stop = StopRequest(communicator)
    signals, previous = (signal.SIGTERM, signal.SIGINT), {}

    def on_signal(number, frame):
        del frame
        if number not in signals and stop.requested:
            return
        stop.signal_name = signal.Signals(number).name
        note = f'{stop.signal_name}: saving what is complete, then exit {RESUMABLE}.'
        if number in signals:
            for each in signals:
                signal.signal(each, signal.SIG_DFL)
            note += ' A second signal stops at once.'
        try:
            # no buffered stream here: the signal may interrupt a write to one
            os.write(2, f'{note}\n'.encode())
        # the terminal is gone, as after SIGHUP: messages about the save must not make it fail
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
