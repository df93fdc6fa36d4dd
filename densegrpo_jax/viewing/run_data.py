"""What a run's folder tells: curves, evaluations, groups, configuration, cost. It reads files only,
so the run may be going on, on another machine too.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from densegrpo_jax.config.retired import renamed
from densegrpo_jax.config.schema import KEYS, default_config
from densegrpo_jax.runtime.files import LOCK, is_held
from densegrpo_jax.runtime.reading import parse_json, read_json, shown
from densegrpo_jax.runtime.trees import dotted
from densegrpo_jax.viewing.command import continuing, read_command
from densegrpo_jax.viewing.state import signs, state_of

SHEET = re.compile(r'step_(\d{6,9})\.png')  # in samples/, of an evaluation
GROUP = re.compile(r'step_(\d{6,9})_(\d{1,9})\.json')  # in groups/
# what the page shows of a run's folder, and a server may send
PICTURES = re.compile(
    r'samples/step_\d{6,9}\.png|groups/step_\d{6,9}_\d{1,9}\.webp'
    r'|before_after\.png|reward_curve\.png'
)
# what a group's file holds, as `training.groups` writes it; the page's script trusts it
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
MAX_POINTS = 2000  # of a curve; longer ones are thinned
RECIPE = 'recipe.json'  # the configuration that the run's command names, in its folder


class Loading(FileNotFoundError):
    """A run's process is there and has not begun: it reads its model first, which takes minutes."""


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
      ValueError: its configuration is not one of a training.
    """
    config = _json(workdir / 'config.json')
    if config is None:
        if (workdir / LOCK).is_file() and is_held(workdir) is not False:
            raise Loading(
                f'{workdir}: the run is still loading; it writes its config.json when it begins'
            )
        raise FileNotFoundError(
            f'{workdir} holds no run: there is no config.json that can be read; give the --workdir '
            'of a training'
        )
    _check_config(config, workdir / 'config.json')
    rows = _rows(workdir / 'metrics.jsonl')
    summary = _json(workdir / 'summary.json')
    last = max((row['step'] for row in rows), default=0)
    series = _series(rows)
    action = _value(config, 'guard.action')
    state = state_of(workdir, config, action, summary, rows, ended)
    return {
        'name': workdir.resolve().name,
        'folder': str(workdir.resolve()),
        'label': _value(config, 'label'),
        'updates': last,
        'iterations': config.get('iterations', last),
        'best': _value(config, 'eval.best'),
        'state': state.name,
        'advice': state.advice,
        'left': _left(config, rows, last),
        'samples': _value(config, 'rollout.prompts') * _value(config, 'rollout.group'),
        'series': series,
        'sheets': _sheets(workdir),
        'groups': _groups(workdir),
        'changes': changes(config, _json(workdir / RECIPE)),
        'command': read_command(workdir)[0],
        'continue': '' if state.flags is None else continuing(workdir, state.flags),
        'pictures': [n for n in ('before_after.png', 'reward_curve.png') if picture(workdir, n)],
    }


def picture(workdir: pathlib.Path, name: str) -> pathlib.Path | None:
    """A picture of a run's folder that may be shown. None: it is absent, is none of the page's, or
    is a link out of the folder, which may lead to anything.
    """
    path = workdir / name
    if not PICTURES.fullmatch(name):
        return None
    try:
        inside = path.resolve().is_relative_to(workdir.resolve())
        return path if inside and path.is_file() else None
    except (OSError, RuntimeError):  # a link to itself
        return None


def version(workdir: pathlib.Path) -> str:
    """Changes whenever `read_run` would; cheap."""
    seen = []
    for name in ('config.json', 'metrics.jsonl', 'summary.json', 'samples', 'groups'):
        try:
            found = (workdir / name).stat()
            seen.append(f'{found.st_mtime_ns}.{found.st_size}')
        except OSError:
            seen.append('-')
    return ' '.join([*seen, signs(workdir)])  # a run may stop without a word


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


def _json(path: pathlib.Path) -> dict | None:
    """None if the file is absent, half written, or of another form."""
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        return None


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


def _rows(path: pathlib.Path) -> list[dict]:
    """The records with a step and numbers of the usual size; the last line may be half written."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = renamed('metrics', parse_json(line.decode(), str(path)))
            if type(row.get('step')) is int and _is_number(row['step']):
                rows.append({name: value for name, value in row.items() if _is_number(value)})
        except ValueError:
            continue
    return rows


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _series(rows: Sequence[Mapping]) -> dict[str, list[list]]:
    """name -> [updates, values]; the steps of a step-wise metric become their mean."""
    found: dict[str, list[list]] = {}
    for row in rows:
        by_step: dict[str, list[float]] = {}
        for name, value in row.items():
            if name == 'step':
                continue
            stem, step_wise, _ = name.partition('/step_')
            if step_wise:
                by_step.setdefault(f'steps/{stem}', []).append(value)
            else:
                _append(found, name, row['step'], value)
        for name, values in by_step.items():
            _append(found, name, row['step'], sum(values) / len(values))
    return {name: _thinned(points) for name, points in found.items()}


def _append(series: dict[str, list[list]], name: str, step: int, value: float) -> None:
    points = series.setdefault(name, [[], []])
    points[0].append(step)
    points[1].append(float(f'{value:.6g}'))


def _thinned(points: list[list]) -> list[list]:
    """Evenly, and with the newest: that is what a run is followed for."""
    count = len(points[0])
    every = -(-count // MAX_POINTS)
    kept = sorted({*range(0, count, every), count - 1})
    return [[column[index] for index in kept] for column in points]


def _left(config: Mapping, rows: Sequence[Mapping], last: int) -> float | None:
    """Seconds that the updates left take, at the median of the last ones; without evaluations."""
    seconds = sorted(row['seconds/iteration'] for row in rows[-10:] if 'seconds/iteration' in row)
    if not seconds:
        return None
    return (config.get('iterations', last) - last) * seconds[len(seconds) // 2]


def _sheets(workdir: pathlib.Path) -> list[dict]:
    """The contact sheets of evaluations, in order."""
    names = [p.name for p in (workdir / 'samples').glob('step_*.png')]
    return [
        {'step': int(found[1]), 'file': f'samples/{name}'}
        for name in sorted(names)
        if (found := SHEET.fullmatch(name)) and picture(workdir, f'samples/{name}')
    ]


def _groups(workdir: pathlib.Path) -> list[dict]:
    """The groups on record whose image is there, in order."""
    found = []
    for path in sorted((workdir / 'groups').glob('step_*.json')):
        described = _json(path) if GROUP.fullmatch(path.name) else None
        image = f'groups/{path.stem}.webp'
        if described is None or not picture(workdir, image):
            continue
        try:
            group = _shaped(described, GROUP_FORM)
        except ValueError:
            continue
        if group['samples'] and group['columns'] and len(group['cell']) == 2:
            found.append(group | {'image': image})
    return found


def _shaped(value: Any, form: Any) -> Any:
    """The parts of a parsed value that `form` has, whose leaves are types, and `...` any key.
    Raises ValueError if one is absent, of another type or not finite.
    """
    if isinstance(form, list) and isinstance(value, list):
        return [_shaped(part, form[0]) for part in value]
    if isinstance(form, dict) and isinstance(value, dict):
        keys = value if ... in form else form
        return {key: _shaped(value.get(key), form.get(key, form.get(...))) for key in keys}
    if isinstance(form, list | dict) or not isinstance(value, form):
        raise ValueError(f'{shown(value)} is of another form')
    if isinstance(value, int | float) and not _is_number(value):
        raise ValueError(f'{shown(value)} is not a finite number')
    return value
