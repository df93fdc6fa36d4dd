"""What a run is doing, and the command that goes on with it, told from its folder."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from densegrpo_jax.config.guard_keys import STOP
from densegrpo_jax.runtime.files import LOCK, is_held

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


def state_of(
    workdir: pathlib.Path,
    config: Mapping,
    action: str,
    summary: Mapping | None,
    rows: Sequence[Mapping],
    ended: bool,
) -> State:
    """The state of a run.

    Args:
      action: its guard.action.
      rows: of its metrics.
      ended: the process of the run asks, at its end. It holds the lock still.
    """
    held = False if ended else is_held(workdir)
    if held:
        return State(RUNNING)
    last = max((row['step'] for row in rows), default=0)
    if summary and summary.get('updates') == last:  # else it is of an earlier end
        if last == config.get('iterations'):
            return State(FINISHED)
        guard = summary.get('guard')
        if isinstance(guard, Mapping) and guard.get('stopped') is True and action == STOP:
            return State(GUARDED, 'go on all the same with', (WARN,))
    if held is False:
        return State(STOPPED, 'continue with', ())
    seconds = [row['seconds/iteration'] for row in rows[-5:] if 'seconds/iteration' in row]
    minutes = silent_minutes(workdir)
    if 60 * minutes < max(QUIET, 5 * max(seconds, default=0)):
        return State(RUNNING)
    # a second writer may be refused by no lock where this one cannot be seen
    return State(
        f'no news for {_spoken(minutes)}',
        'whether it goes on cannot be told from here: look for its process before you start it '
        'again',
    )


def signs(workdir: pathlib.Path) -> str:
    """Changes whenever `state_of` may with no change of the files that it reads; cheap."""
    held = is_held(workdir)
    return f'{held} {silent_minutes(workdir)}' if held is None else str(held)


def silent_minutes(workdir: pathlib.Path) -> int:
    """Whole minutes since the run's last news; 0 if there are no files."""
    times = []
    for name in NEWS:
        try:
            times.append((workdir / name).stat().st_mtime)
        except OSError:
            continue
    return max(0, int(time.time() - max(times)) // 60) if times else 0


def _spoken(minutes: int) -> str:
    if minutes < 120:
        return f'{minutes} min'
    return f'{minutes // 60} h' if minutes < 48 * 60 else f'{minutes // 1440} days'
