"""What a run's folder tells: curves, evaluations, groups, configuration, cost. It reads files only,
so the run may be going on, on another machine too.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from densegrpo_jax.config.of_run import CONFIG
from densegrpo_jax.config.retired import renamed
from densegrpo_jax.config.schema import KEYS, default_config
from densegrpo_jax.runtime.files import LOCK, holder
from densegrpo_jax.runtime.reading import finite, kind, parse_json, read_json, shaped, shown
from densegrpo_jax.runtime.trees import dotted
from densegrpo_jax.viewing.command import COMMAND, NEWEST, continuing, read_command
from densegrpo_jax.viewing.folder import ENDS, inside, picture, real
from densegrpo_jax.viewing.state import (
    TRAINING,
    Facts,
    State,
    ended_at,
    facts_of,
    silent_minutes,
    spoken,
    state_of,
    trains,
)

SHEETS = 'samples', re.compile(r'step_(\d{6,9})\.png')  # of evaluations: folder, files
VERDICTS = 'guard', re.compile(r'verdict_(\d{6,9})\.png')  # of the guard
GROUP = re.compile(r'step_(\d{6,9})_(\d{1,9})\.json')  # in groups/
# what a group's file holds, as `viewing.groups` writes it; the page's script trusts it
_NUMBER = int | float | None
GROUP_FORM = {
    'step': int,
    'group': int,
    'prompt': str,
    'cell': [int],
    'columns': [{'points': [{'kind': str, 'k': int}]}],
    'transitions': [
        {'k_from': int, 'k_to': int, 'std': _NUMBER, 'row': int | None, 'together': int | None}
    ],
    'samples': [{'scores': {...: [_NUMBER]}, 'advantages': [_NUMBER]}],
}
# the keys of the configuration that the page reads; it lists the others
READ = ('label', 'iterations', 'rollout.prompts', 'rollout.group', 'eval.best', 'guard.action')
# of an evaluation where other rewards have scored before, code of the user's own: the update number
# of the first by those of now
SINCE = 'eval/since'
# of the metrics what rewards have said; in training, of the update before an evaluation too
_SCORES = re.compile(r'eval/(?!seconds$)|guard/(?!(kl|brake)$)|(?P<trained>train/reward)')
MAX_POINTS = 2000  # of a curve; longer ones are thinned
LONGEST = 10_000  # characters of a command that is shown
RECIPE = 'recipe.json'  # the configuration that the run's command names, in its folder
# what `read_run` reads; folders have the time of their newest file
READ_FILES = (
    *(CONFIG, 'metrics.jsonl', 'summary.json', 'samples', 'groups', 'guard'),
    *(COMMAND, NEWEST, RECIPE, *ENDS),
)
PATIENCE = 60  # minutes for which a machine that cannot be seen may be loading a model
SEVERAL = 'the run is of several processes: start all of them again, as before'


class Loading(FileNotFoundError):
    """A run's process may be there and has not begun: it reads its model first, for minutes."""


def read_runs(workdirs: Sequence[pathlib.Path], ended: bool = False) -> list[dict[str, Any]]:
    """`read_run` of each, with names that tell them apart."""
    named = zip(workdirs, names(workdirs))
    return [read_run(workdir, ended) | {'name': name} for workdir, name in named]


def names(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """The last parts of folders, as many as tell them apart."""
    folders = [workdir.resolve().parts for workdir in workdirs]
    found = []
    for folder in folders:
        others = [other for other in folders if other != folder]
        longer = range(1, len(folder))
        taken = lambda n: any(other[-n:] == folder[-n:] for other in others)  # noqa: B023
        found.append('/'.join(folder[-next((n for n in longer if not taken(n)), 1) :]))
    return found


def read_run(workdir: pathlib.Path, ended: bool = False) -> dict[str, Any]:
    """Everything that the page shows of a run, as JSON values.

    ended: the process of the run asks, at its end.

    Raises:
      Loading: the run has not begun.
      FileNotFoundError: the folder is not a run's.
      OSError, ValueError: its configuration cannot be read, or is not one of a training.
    """
    folder = real(workdir)
    config = _config(folder)
    (rows, lines), summary = _rows(folder), _json(folder, 'summary.json')
    groups, cut = _groups(folder)
    facts = facts_of(config, _value(config, 'guard.action'), summary, rows)
    state = state_of(folder, facts, ended)
    advice, command = _going_on(folder, state)
    first = read_command(folder).command
    ends = ENDS if ended_at(summary) == facts.last else ()  # else they are of an earlier end
    return {
        'name': folder.name,
        'folder': str(folder),
        'label': _value(config, 'label'),
        'updates': facts.last,
        'iterations': config.get('iterations', facts.last),
        'best': _value(config, 'eval.best'),
        'state': state.name,
        'advice': advice,
        'left': _left(config, rows, facts.last),
        'samples': _value(config, 'rollout.prompts') * _value(config, 'rollout.group'),
        'series': _series(rows),
        'sheets': _by_step(folder, *SHEETS),
        'verdicts': _by_step(folder, *VERDICTS),
        'groups': groups,
        'damaged': [
            f'{count} {what} cannot be read, and are left out'
            for count, what in ((lines, 'lines of metrics.jsonl'), (cut, 'records in groups/'))
            if count
        ],
        'changes': changes(config, _json(folder, RECIPE)),
        'command': first if len(first) <= LONGEST else f'{first[:LONGEST]} …',
        'continue': command,
        'pictures': [found for name in ends if (found := _picture(folder, name))],
    }


def _going_on(folder: pathlib.Path, state: State) -> tuple[str, str]:
    """What to do for a run to go on, and the command for it; '' where none may be offered."""
    if state.flags is None:
        return state.advice, ''
    if command := continuing(folder, state.flags):
        return state.advice, command
    return ', and with '.join([SEVERAL, *state.flags]), ''


def version(workdir: pathlib.Path) -> str:
    """Changes whenever `read_run` would; cheap."""
    folder, seen = real(workdir), []
    for name in READ_FILES:
        try:
            found = (folder / name).stat()
            seen.append(f'{found.st_mtime_ns}.{found.st_size}')
        except OSError:
            seen.append('-')
    files = ' '.join(seen)
    try:
        state = state_of(folder, _facts(folder, files))
        return f'{files} {state.name} {state.advice}'  # a run may stop without a word
    except (OSError, ValueError) as error:
        return f'{files} {error}'


@functools.lru_cache(maxsize=256)
def _facts(folder: pathlib.Path, files: str) -> Facts:
    """files: changes when the files do."""
    del files
    config = _config(folder)
    action = _value(config, 'guard.action')
    return facts_of(config, action, _json(folder, 'summary.json'), _rows(folder)[0])


def _config(folder: pathlib.Path) -> dict:
    """The configuration of a run. Raises as `read_run`."""
    path = inside(folder, CONFIG)
    if path is None:
        raise _absent(folder)
    config = read_json(path)
    _check_config(config, path)
    return config


def _absent(folder: pathlib.Path) -> FileNotFoundError:
    """The error for a folder whose configuration is not there."""
    path, held = folder / CONFIG, holder(folder)
    none = f'{folder} holds no run'
    if os.path.lexists(path):
        what = 'a link out of the folder' if path.is_file() else kind(path)
        return FileNotFoundError(f'{none}: its {CONFIG} is {what}, which is not read')
    begins = f'it writes its {CONFIG} when it begins'
    if trains(held):
        return Loading(f'{folder}: the run is still loading; {begins}')
    if held.held:
        return FileNotFoundError(f'{none}: there is no {CONFIG}; {held.command} writes there')
    if held.held is None and held.command in ('', TRAINING) and (folder / LOCK).is_file():
        minutes = silent_minutes(folder)
        silent = f'a process of another machine wrote there, the last time {spoken(minutes)} ago'
        if minutes < PATIENCE:
            return Loading(f'{folder}: {silent}; it may be loading a run: {begins}')
        return FileNotFoundError(f'{none}: there is no {CONFIG}; {silent}')
    return FileNotFoundError(
        f'{none}: there is no {CONFIG}; give the --workdir of a training that has begun. One that '
        'was started just now needs a minute for it'
    )


def changes(config: Mapping, recipe: Mapping | None) -> list[list]:
    """[key, value, the recipe's, default] of every key that differs from one of them, as text. The
    recipe's is None for all keys if it is not known.
    """
    default = dotted(json.loads(default_config().to_json_best_effort()))
    own = default if recipe is None else dotted(recipe)
    text = lambda value: value if isinstance(value, str) else json.dumps(value)
    of = lambda values, key: text(values[key]) if key in values else ''
    return [
        [key, text(value), None if recipe is None else of(own, key), of(default, key)]
        for key, value in sorted(dotted(config).items())
        if key != 'label' and any(key not in base or base[key] != value for base in (own, default))
    ]


def _value(config: Mapping, key: str) -> Any:
    """The value of a key of `READ`."""
    group, _, name = key.rpartition('.')
    return (config.get(group, {}) if group else config).get(name, KEYS[key].default)


def _json(folder: pathlib.Path, name: str) -> dict | None:
    """None if the file is absent, half written, or of another form."""
    path = inside(folder, name)
    try:
        return read_json(path) if path else None
    except (FileNotFoundError, ValueError):
        return None


def _picture(folder: pathlib.Path, name: str) -> dict[str, Any] | None:
    """A picture that may be shown, and its time in milliseconds: it may be made anew."""
    path = picture(folder, name)
    return {'file': name, 'at': path.stat().st_mtime_ns // 1_000_000} if path else None


def _check_config(config: Mapping, path: pathlib.Path) -> None:
    """Raises ValueError if a value that the page reads is not of its key's type, or if the key that
    every training has is absent.
    """
    if 'iterations' not in config:
        raise ValueError(f'{path} has no iterations: this is not the configuration of a training')
    for key in READ:
        group = key.rpartition('.')[0]
        whole = not group or isinstance(config.get(group, {}), Mapping)
        value = _value(config, key) if whole else config[group]
        if not whole or not KEYS[key].accepts(value):
            raise ValueError(
                f'{path}: {key}={shown(value)}: expected {KEYS[key].expected}; this is not the '
                'configuration of a training'
            )


def _rows(folder: pathlib.Path) -> tuple[list[dict], int]:
    """The records of the metrics with a step and numbers of the usual size, and how many lines are
    none; the last one may be half written.
    """
    rows, damaged, path = [], 0, inside(folder, 'metrics.jsonl')
    lines = path.read_bytes().splitlines() if path else []
    for number, line in enumerate(lines, 1):
        try:
            row = renamed('metrics', parse_json(line.decode(), str(path)))
            if type(row.get('step')) is int and finite(row['step']):
                rows.append({name: value for name, value in row.items() if finite(value)})
                continue
        except (AttributeError, ValueError):  # no text, no JSON, no mapping
            pass
        damaged += number < len(lines)
    return rows, damaged


def _series(rows: Sequence[Mapping]) -> dict[str, list[list]]:
    """name -> [updates, values]; the steps of a step-wise metric become their mean. Scores of other
    rewards than those of now are left out.
    """
    found: dict[str, list[list]] = {}
    since = _since(rows)
    for row in rows:
        by_step: dict[str, list[float]] = {}
        for name, value in row.items():
            if name in ('step', SINCE):
                continue
            of_reward = _SCORES.match(name) if since else None
            if of_reward and row['step'] < since + bool(of_reward['trained']):
                continue
            stem, step_wise, _ = name.partition('/step_')
            if step_wise:
                by_step.setdefault(f'steps/{stem}', []).append(value)
            else:
                _append(found, name, row['step'], value)
        for name, values in by_step.items():
            _append(found, name, row['step'], sum(values) / len(values))
    return {name: _thinned(points) for name, points in found.items()}


def _since(rows: Sequence[Mapping]) -> float:
    """Updates before the first evaluation by the rewards of now. The newest evaluation tells: a run
    may go back to the code that it had.
    """
    evaluated = (row for row in reversed(rows) if any(name.startswith('eval/') for name in row))
    return next(evaluated, {}).get(SINCE, 0)


def _append(series: dict[str, list[list]], name: str, step: int, value: float) -> None:
    points = series.setdefault(name, [[], []])
    points[0].append(step)
    points[1].append(float(f'{value:.6g}'))


def _thinned(points: list[list]) -> list[list]:
    """At most `MAX_POINTS`, evenly, and with the newest: that is what a run is followed for."""
    count = len(points[0])
    every = max(1, -(-(count - 1) // (MAX_POINTS - 1)))
    kept = sorted({*range(0, count, every), count - 1})
    return [[column[index] for index in kept] for column in points]


def _left(config: Mapping, rows: Sequence[Mapping], last: int) -> float | None:
    """Seconds that the updates left take, at the median of the last ones; without evaluations."""
    seconds = sorted(row['seconds/iteration'] for row in rows[-10:] if 'seconds/iteration' in row)
    if not seconds:
        return None
    return (config.get('iterations', last) - last) * seconds[len(seconds) // 2]


def _by_step(folder: pathlib.Path, within: str, named: re.Pattern) -> list[dict]:
    """The pictures of that name, in the order of their updates."""
    names = sorted(path.name for path in (folder / within).glob('*.png'))
    return [
        {'step': int(step[1])} | found
        for name in names
        if (step := named.fullmatch(name)) and (found := _picture(folder, f'{within}/{name}'))
    ]


def _groups(folder: pathlib.Path) -> tuple[list[dict], int]:
    """The groups on record whose image is there, in order, and how many records are none."""
    found, damaged = [], 0
    for path in sorted((folder / 'groups').glob('step_*.json')):
        name = f'groups/{path.name}'
        if not GROUP.fullmatch(path.name):
            continue
        described, image = _json(folder, name), _picture(folder, f'groups/{path.stem}.webp')
        try:
            group = shaped(described, GROUP_FORM, str(path))
        except ValueError:
            group = {}
        if image and group and group['samples'] and group['columns'] and len(group['cell']) == 2:
            found.append(group | image)
        else:
            damaged += 1
    return found, damaged
