"""Runs trainings that differ in a few settings, several at a time, each in its own process and
folder.
"""

from __future__ import annotations

import ast
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from absl import flags, logging
from ml_collections import ConfigDict

from densegrpo_jax.config import identity
from densegrpo_jax.config.command_line import check_key
from densegrpo_jax.config.given import NONE
from densegrpo_jax.config.key import SCIENCE
from densegrpo_jax.config.loading import load
from densegrpo_jax.config.method import own_code
from densegrpo_jax.config.schema import KEYS, default_config
from densegrpo_jax.config.validation import validate
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.reading import read_json, shaped
from densegrpo_jax.runtime.stop import (
    FINISHED,
    RESUMABLE,
    Preempted,
    StopRequest,
    handle_stop_signals,
)
from densegrpo_jax.runtime.trees import dotted
from experiments.reproduction.records import RUN_FILE, Records

ANY_CODE = '--own_code=warn'  # of a training: it goes on with changed code of a user's own


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a base configuration, the changes of a variant, a seed."""

    config: str  # file, as given to --config
    variant: str
    changes: tuple[tuple[str, object], ...]  # (key, value)
    seed: str
    folder: pathlib.Path
    text_cache: pathlib.Path  # encoded prompts, shared by the sweep
    extra: tuple[str, ...] = ()  # arguments of every run of the sweep

    @property
    def command(self) -> list[str]:
        """The command that a person would type, without output folders."""
        changes = [_argument(key, value) for key, value in self.changes]
        return [
            'python',
            '-m',
            'densegrpo_jax.main',
            f'--config={self.config}',
            *self.extra,
            *changes,
            f'--config.seed={self.seed}',
        ]

    @property
    def own_code(self) -> str:
        """A digest of the code of a user's own that it names; '' if it names none."""
        arguments = (*self.extra, *(_argument(key, value) for key, value in self.changes))
        return _own_code(self.config, arguments)

    @property
    def finished(self) -> bool:
        """Whether the folder holds this run, finished."""
        return (self.folder / 'summary.json').exists() and _same(self)


def _same(run: Run) -> bool:
    """Whether the folder holds this run, finished or not."""
    run_file = run.folder / RUN_FILE
    if not run_file.exists():
        return False
    return _is_of(
        shaped(read_json(run_file), {'command': str, 'own_code': str | None}, str(run_file)), run
    )


def _is_of(row: Mapping[str, str], run: Run) -> bool:
    """Whether a row on record has a run's code and its command, but for what does not affect
    learning. Rows of earlier versions tell nothing of code; ANY_CODE takes other code for the same.
    """
    # an argument may hold spaces, which the record does not quote
    if learned(row['command'].split(' ')) != learned(' '.join(run.command).split(' ')):
        return False
    if not row.get('own_code') or ANY_CODE in run.extra:
        return True
    return row['own_code'] == run.own_code


@functools.cache  # it loads the configuration
def _own_code(config: str, arguments: tuple[str, ...]) -> str:
    found = own_code(configured(config, arguments))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12] * bool(found)


def learned(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command without ANY_CODE and keys that do not affect learning: those of
    the machine and of the display.
    """
    decides = lambda a: identity.kind_of(_key(a)) in (SCIENCE, None)
    return [a for a in arguments if decides(a) and a != ANY_CODE]


def _argument(key: str, value: object) -> str:
    return f'--config.{key}={NONE if value == "" else value}'


def _key(argument: str) -> str:
    """The key of the configuration that an argument sets; '' if it sets none."""
    return re.match(r'--(?:no)?config\.([^=]*)|', argument)[1] or ''


def recorded(records: Records, run: Run) -> bool:
    """Whether the tables have this run; its folder may be gone."""
    row = records.runs.get((run.variant, run.seed))
    return row is not None and _is_of(row, run)


def leave_out_earlier(records: Records, runs: Sequence[Run]) -> None:
    """Takes the runs of these variants, of all seeds, that were made before a user's own code has
    changed out of the tables, so that no mean is one of both.
    """
    of = {run.variant: run for run in runs}
    for (variant, seed), row in [*records.runs.items()]:
        run, code = of.get(variant), row.get('own_code')
        if run is None or not code or ANY_CODE in run.extra or code == run.own_code:
            continue
        logging.warning(
            '%s, seed %s, was made with other code of your own: left out', variant, seed
        )
        del records.runs[variant, seed], records.evaluations[variant, seed]


def base_digest(config: str, extra: Sequence[str]) -> str:
    """Name of a base configuration: its file's name, and a digest of the arguments and of the
    differences from the defaults, both reduced by `learned`. A new key with a default does not
    change the name.
    """
    of = lambda configuration: dotted(identity.record('sweep', configuration))
    default, chosen = of(default_config()), of(load(config))
    changed = sorted(f'{k}={value!r}' for k, value in chosen.items() if default.get(k) != value)
    given = sorted(a for a in learned(extra) if a.startswith(('--config.', '--noconfig.')))
    name = pathlib.Path(config.partition(':')[0]).stem
    return f'{name}-{hashlib.sha256(chr(0).join(changed + given).encode()).hexdigest()[:8]}'


def configured(config: str, arguments: Sequence[str]) -> ConfigDict:
    """The configuration of a run that is given these arguments, of which only keys of the table
    count.

    Raises:
      ValueError: a value does not have the type of its key.
    """
    found = load(config)
    for argument in arguments:
        key, text = _key(argument), argument.partition('=')[2]
        if key not in KEYS:
            continue
        try:
            value = _value(text or str(not argument.startswith('--no')), KEYS[key].default)
            if isinstance(value, dict):  # all rewards, of which none is left
                group, _, name = key.rpartition('.')
                (found[group] if group else found)[name] = value
            else:
                found.update_from_flattened_dict({key: value})
        except (TypeError, ValueError, SyntaxError) as error:
            raise ValueError(f'{argument}: expected {KEYS[key].expected} ({error})') from None
    return found


def _value(text: str, default: object) -> object:
    """A flag's text as a value of the default's type."""
    if isinstance(default, bool):
        return flags.BooleanParser().parse(text)
    if default == '' and text == NONE:
        return ''
    literal = isinstance(default, tuple | Mapping)
    return ast.literal_eval(text) if literal else type(default)(text)


def check_sweep(
    config: str, extra: Sequence[str], runs: Sequence[Run], records: Records, out: object
) -> str:
    """Checks a sweep before anything runs; returns its `base_digest`.

    Args:
      config, extra: of every run. runs: that are left to do. records: kept in the folder `out`.

    Raises:
      ValueError: an argument, a key or a value that a run would refuse, or results of another base.
    """
    _check_arguments(config, extra)
    check_runs(runs)
    base = base_digest(config, extra)
    records.check_base(base, out)
    leave_out_earlier(records, runs)
    return base


def check_runs(runs: Sequence[Run]) -> None:
    """Checks the configurations of runs before the first of them begins.

    Raises:
      ValueError: an argument, a key or a value that a run would refuse.
    """
    for run in {(run.config, run.changes, run.extra): run for run in runs}.values():
        arguments = [*run.extra, *(_argument(key, value) for key, value in run.changes)]
        _check_arguments(run.config, arguments)
        validate(configured(run.config, arguments))


def check_folders(runs: Sequence[Run]) -> None:
    """Raises ValueError if a folder holds the beginning of another run, which a training would
    continue: the length of a run and its evaluations may change.
    """
    for run in runs:
        begun = (run.folder / RUN_FILE).is_file() and (run.folder / 'checkpoints').is_dir()
        if begun and not _same(run):
            raise ValueError(
                f'{run.folder} holds a run of other settings, or of other code of your own '
                f'({run.folder / RUN_FILE}): move it away, or give another --workdir'
            )


def _check_arguments(config: str, arguments: Sequence[str]) -> None:
    loaded = load(config)
    for argument in arguments:
        if not argument.startswith('-'):
            raise ValueError(f'{argument!r} after --: settings are given as --config.key=value')
        if key := _key(argument):
            check_key(loaded, key, argument)
    configured(config, arguments)


def run_all(
    runs: Sequence[Run], jobs: int, stop: StopRequest, facts: Mapping[str, str]
) -> list[Run]:
    """Runs unfinished trainings in order, at most `jobs` at a time; continues those already begun.

    Args:
      facts: of every run, stored in its folder: base, device, commit.

    Returns:
      The runs that failed; their logs say why.

    Raises:
      Preempted: a stop was requested. Running trainings have saved and can continue.
    """
    left = [run for run in runs if not run.finished]
    logging.info(
        '%d of %d runs are finished, %d to do, %d at a time',
        len(runs) - len(left),
        len(runs),
        len(left),
        jobs,
    )
    check_folders(left)
    failed = []
    bar = ProgressBar(len(runs), start=len(runs) - len(left), label='runs', together=jobs)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool, bar:
        futures = {pool.submit(_run, run, jobs, stop, facts): run for run in left}
        for future in concurrent.futures.as_completed(futures):
            run, code = futures[future], future.result()
            if code == FINISHED:
                bar.update(sum(run.finished for run in runs))
            elif code != RESUMABLE:
                failed.append(run)
                log = run.folder / 'log.txt'
                said = (run.variant, run.seed, code, last_line(log), log)
                logging.error('%s, seed %s, ended with status %d: %s (%s)', *said)
    if stop.requested:
        raise Preempted(f'stopped by {stop.signal_name}')
    return failed


def _run(run: Run, jobs: int, stop: StopRequest, facts: Mapping[str, str]) -> int:
    """Starts and watches a run, and tells it to save if a stop is requested; returns its status."""
    if stop.requested:
        return RESUMABLE
    run.folder.mkdir(parents=True, exist_ok=True)
    row = {
        'variant': run.variant,
        'seed': run.seed,
        **facts,
        'side_by_side': jobs,
        'own_code': run.own_code,
        'command': ' '.join(run.command),
    }
    # the end of a run with another command does not count
    (run.folder / 'summary.json').unlink(missing_ok=True)
    replace_file(run.folder / RUN_FILE, json.dumps(row, indent=2) + '\n')
    # Several processes can share a device's memory only if none preallocates most of it.
    env = {} if jobs == 1 else {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    places = [f'--workdir={run.folder}', f'--config.text_cache={run.text_cache}']
    places.append('--unread=warn')  # `extra` is for all variants, some of which may not read it
    return watch([*run.command, *places], run.folder / 'log.txt', stop, env)


class CommandFailed(Exception):
    """A command of this package that ended with an error, and its exit status."""

    def __init__(self, command: Sequence[str], status: int, log: pathlib.Path):
        self.status = max(status, 1)
        super().__init__(
            f'{" ".join(command)} ended with status {status}: {last_line(log)} ({log})'
        )


def status_of(work: Callable[[StopRequest], int]) -> int:
    """Exit status of a sweep: what `work` returns, or that of the stop or the failed command that
    ended it, which is logged.
    """
    try:
        with handle_stop_signals() as stop:
            return work(stop)
    except Preempted as reason:
        logging.warning('%s; the same command continues', reason)
        return RESUMABLE
    except CommandFailed as reason:
        logging.error('%s', reason)
        return reason.status


def last_line(log: pathlib.Path) -> str:
    """The last line of a log that is not empty."""
    lines = log.read_text(encoding='utf-8', errors='replace').split('\n') if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), 'it said nothing')


def complete(command: Sequence[str], log: pathlib.Path, stop: StopRequest) -> None:
    """Runs another command of this package to its end; arguments as for `watch`.

    Raises:
      Preempted: a stop was requested.
      CommandFailed: it failed.
    """
    logging.info('%s (log: %s)', ' '.join(command), log)
    code = watch(command, log, stop)
    if stop.requested:
        raise Preempted(f'stopped by {stop.signal_name}')
    if code != FINISHED:
        raise CommandFailed(command, code, log)


def watch(
    command: Sequence[str],
    log: pathlib.Path,
    stop: StopRequest,
    env: Mapping[str, str] | None = None,
) -> int:
    """Exit status of a command of this package, which is told to save if a stop is requested.

    Args:
      command: begins with 'python', which stands for this interpreter.
      log: its output is appended here.
      env: variables to set unless the environment has them already.
    """
    with open(log, 'a', encoding='utf-8') as file:
        # A separate session: Ctrl-C reaches this process only, which passes it on once.
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            stdout=file,
            stderr=file,
            env={**(env or {}), **os.environ},
            start_new_session=True,
        )
        told = False
        while process.poll() is None:
            if stop.requested and not told:
                # not a second SIGTERM if the whole scope gets one: that would end it without saving
                process.send_signal(signal.SIGUSR1)
                told = True
            time.sleep(0.2)
    # it was not listening yet
    return RESUMABLE if told and process.returncode == -signal.SIGUSR1 else process.returncode
