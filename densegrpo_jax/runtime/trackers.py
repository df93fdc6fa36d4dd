"""Experiment trackers beside metrics.jsonl and TensorBoard: wandb and trackio, whose interfaces are
alike. Both are optional.

What a tracker does wrong (no network, no account, a full disk) is one warning; the tracker gets
nothing more, and the run goes on. A run that continues reports to the run it reported to before:
its name is in WORKDIR/trackers.json.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import pathlib
import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.reading import read_json, shown

FILE = 'trackers.json'  # in the work directory: tracker -> {'id', 'name'}
NAMED = ('id', 'name')  # of a run there
FINISH_SECONDS = 60.0  # a tracker that still sends after that is left behind


def _wandb(project: str, known: Mapping[str, str], folder: pathlib.Path, config: dict) -> dict:
    return dict(
        project=project,
        id=known['id'],
        name=known['name'],
        resume='allow',
        dir=str(folder),
        config=config,
        # It leaves the terminal to the progress bar. The time holds for its exit hook too.
        settings={'console': 'off', 'finish_timeout': FINISH_SECONDS},
    )


def _trackio(project: str, known: Mapping[str, str], folder: pathlib.Path, config: dict) -> dict:
    # it tells runs apart by their names
    return dict(project=project, name=known['name'], resume='allow', config=config, embed=False)


# Tracker, which is also its module and its extra -> the arguments of its `init`.
TRACKERS: Mapping[str, Callable[..., dict]] = {'wandb': _wandb, 'trackio': _trackio}


def names_of(report_to: str) -> list[str]:
    """The trackers that `log.report_to` names, with commas between them.

    Raises:
      ValueError: one is not known, or named twice.
    """
    names = [name.strip() for name in report_to.split(',') if name.strip()]
    for i, name in enumerate(names):
        if name not in TRACKERS:
            close = difflib.get_close_matches(name, TRACKERS, 1)
            hint = f'did you mean {close[0]!r}? Expected' if close else 'expected'
            known = ', '.join(map(repr, TRACKERS))
            raise ValueError(
                f'log.report_to={report_to!r}: there is no tracker {name!r}; {hint} some '
                f'of {known} with commas between them, or nothing'
            )
        if name in names[:i]:
            raise ValueError(f'log.report_to={report_to!r} names {name!r} twice')
    return names


def check_trackers(report_to: str, workdir: pathlib.Path | None = None) -> None:
    """Raises ModuleNotFoundError if the package of a tracker is not installed, ValueError if the
    names of the runs there cannot be read.
    """
    for name in names_of(report_to):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f'log.report_to={report_to!r}: {name} is not installed: '
                f"pip install 'densegrpo_jax[{name}]', or pip install {name}"
            )
    if workdir is not None:
        _stored(names_of(report_to), workdir)


class Tracker:
    """One run of one tracker.

    Args:
      name: a key of TRACKERS.
      known: 'id' and 'name' of the run. folder: for the tracker's files. config: JSON values.
    """

    def __init__(
        self, name: str, project: str, known: Mapping[str, str], folder: pathlib.Path, config: dict
    ):
        self._name, self._run = name, None
        options = TRACKERS[name](project, known, folder, config)
        self._run = self._try('start', lambda: self._open(options))

    def _open(self, options: dict) -> Any:
        self._module = importlib.import_module(self._name)
        run = self._module.init(**options)
        if hasattr(run, 'define_metric'):
            # wandb's own steps may not go back, as those of a run do that continues from its
            # checkpoint
            run.define_metric('update')
            run.define_metric('*', step_metric='update')
        return run

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Reports numbers after `step` updates."""
        if self._run is not None:
            self._try('get metrics', lambda: self._log(step, dict(values)))

    def picture(self, step: int, name: str, file: pathlib.Path) -> None:
        """Reports a picture of a file."""
        if self._run is not None:
            image = lambda: self._module.Image(str(file), caption=f'after {step} updates')
            self._try('get pictures', lambda: self._log(step, {name: image()}))

    def _log(self, step: int, values: dict) -> None:
        if hasattr(self._run, 'define_metric'):
            self._run.log({**values, 'update': step})
        else:
            self._run.log(values, step=step)

    def finish(self) -> None:
        """Waits until everything is sent, but at most FINISH_SECONDS."""
        if self._run is None:
            return
        run, self._run = self._run, None
        thread = threading.Thread(target=lambda: self._try('finish', run.finish), daemon=True)
        thread.start()
        thread.join(FINISH_SECONDS)
        if thread.is_alive():
            logging.warning(
                '%s did not send everything within %.0f s and is left behind',
                self._name,
                FINISH_SECONDS,
            )

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        """The result of `call`; None, a warning and the end of reporting if it fails."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 (whatever it is, the run goes on)
            self._run = None
            said = ' '.join(str(error).split())[:300]
            logging.warning(
                '%s could not %s (%s: %s); it gets nothing more of this run, which goes on',
                *(self._name, what, type(error).__name__, said),
            )
            return None


class Trackers:
    """The trackers of a run; a context manager that finishes them.

    Args:
      report_to: see `names_of`; '' = none.
      project: the trackers' name for a collection of runs.
      workdir: of the run; its name is in the run's.
      config: JSON values.
    """

    def __init__(self, report_to: str, project: str, workdir: pathlib.Path, config: dict):
        self._all = [
            Tracker(name, project, known, workdir, config)
            for name, known in _known(names_of(report_to), workdir).items()
        ]

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *exception) -> None:
        for tracker in self._all:
            tracker.finish()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for tracker in self._all:
            tracker.log(step, values)

    def picture(self, step: int, name: str, file: pathlib.Path) -> None:
        """See `Tracker.picture`."""
        for tracker in self._all:
            tracker.picture(step, name, file)


def _known(names: list[str], workdir: pathlib.Path) -> dict[str, dict[str, str]]:
    """Name -> 'id' and 'name' of the run there, from the file, or new ones, which go into it."""
    known = _stored(names, workdir)
    for name in names:
        if name not in known:
            key = secrets.token_hex(4)
            known[name] = {'id': key, 'name': f'{workdir.name}-{key}'}
    if names:
        replace_file(workdir / FILE, json.dumps(known, indent=2) + '\n')
    return {name: known[name] for name in names}


def _stored(names: list[str], workdir: pathlib.Path) -> dict:
    """The file's runs. Raises ValueError if one of `names` has another form there."""
    path = workdir / FILE
    known = read_json(path) if path.exists() else {}
    named = lambda run: isinstance(run, dict) and all(isinstance(run.get(k), str) for k in NAMED)
    if wrong := [name for name in names if not named(known.get(name, dict.fromkeys(NAMED, '')))]:
        raise ValueError(
            f'{path}: {wrong[0]} is {shown(known[wrong[0]])}; expected the id and the name of a '
            'run. Remove the file to report to a new one'
        )
    return known
