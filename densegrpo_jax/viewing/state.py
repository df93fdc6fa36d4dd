"""What a run is doing, and the command that goes on with it, told from its folder."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from densegrpo_jax.config.guard_keys import STOP
from densegrpo_jax.runtime.files import LOCK, Holder, holder

TRAINING = 'train'  # the name of that command in a lock
QUIET = 300.0  # seconds without news, and five iterations, that say nothing of a run
# what a run writes as it goes on, and at each of its starts
NEWS = ('metrics.jsonl', 'config.json', 'samples', 'groups', LOCK)
WARN = '--config.guard.action=warn'  # goes on after the guard's end

FINISHED, RUNNING, STOPPED, GUARDED = 'finished', 'running', 'stopped', 'ended by the guard'


class State(NamedTuple):
    """One of the above, or for how long there was no news; what to do then; and the flags with
    which the run goes on, None if no command may be offered.
    """

    name: str
    advice: str = ''
    flags: tuple[str, ...] | None = None


class Facts(NamedTuple):
    """What decides a run's state of its files.

    last: its newest update.
    end: FINISHED or GUARDED if that update is the end of the run, else ''.
    pace: seconds of the slowest of the last iterations.
    """

    last: int
    end: str
    pace: float


def facts_of(
    config: Mapping, action: str, summary: Mapping | None, rows: Sequence[Mapping]
) -> Facts:
    """action: its guard.action. rows: of its metrics."""
    last = max((row['step'] for row in rows), default=0)
    end = ''
    if ended_at(summary) == last:  # else it is of an earlier end
        guard = summary.get('guard') if summary else None
        if last == config.get('iterations'):
            end = FINISHED
        elif isinstance(guard, Mapping) and guard.get('stopped') is True and action == STOP:
            end = GUARDED
    seconds = [row['seconds/iteration'] for row in rows[-5:] if 'seconds/iteration' in row]
    return Facts(last, end, max(seconds, default=0.0))


def ended_at(summary: Mapping | None) -> int | None:
    """The updates of a run at its last end."""
    return summary.get('updates') if summary else None


def trains(held: Holder) -> bool:
    """Whether a training of this machine has the lock; earlier versions gave it no name."""
    return held.held is True and held.command in ('', TRAINING)


def state_of(folder: pathlib.Path, facts: Facts, ended: bool = False) -> State:
    """The state of a run.

    ended: the process of the run asks, at its end. It holds the lock still.
    """
    held = Holder(False) if ended else holder(folder)
    if trains(held):
        return State(RUNNING)
    if facts.end == FINISHED:
        return State(FINISHED)
    if facts.end == GUARDED:
        return State(GUARDED, 'go on all the same with', (WARN,))
    if held.held:
        wait = f'{held.command} writes to its folder; once that has ended, continue with'
        return State(STOPPED, wait, ())
    if held.held is False:
        return State(STOPPED, 'continue with', ())
    minutes = silent_minutes(folder)
    if 60 * minutes < max(QUIET, 5 * facts.pace):
        return State(RUNNING)
    # a second writer may be refused by no lock where this one cannot be seen
    return State(
        f'no news for {spoken(minutes)}',
        'whether it goes on cannot be told from here: look for its process before you start it '
        'again',
    )


def silent_minutes(folder: pathlib.Path) -> int:
    """Whole minutes since the run's last news; 0 if there are no files."""
    times = []
    for name in NEWS:
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(0, int(time.time() - max(times)) // 60) if times else 0


def spoken(minutes: int) -> str:
    """A time, as precisely as one wants to know it."""
    if minutes < 120:
        return f'{minutes} min'
    return f'{minutes // 60} h' if minutes < 48 * 60 else f'{minutes // 1440} days'
