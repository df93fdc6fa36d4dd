"""Checks whether two checkouts of this project behave alike: runs both on small configurations and
compares all of their output, bit for bit.

    python tools/compare_checkouts.py --before=main --after=. --out=report.json
    python tools/compare_checkouts.py --before=main --after=. --only=dense,resume --tolerance=1e-6
    python tools/compare_checkouts.py --before=main --after=. --seconds --pairs=7

A checkout is a folder or a git revision, which is put into a temporary `git worktree`. Every case
runs the public commands in both, one after the other, with the checkout as the current folder, on
one CPU device, without a compilation cache (XLA:CPU rounds differently in a program that it reads
back). Both write to the same path, so that no path in a file differs. It compares:
- checkpoints: steps, every array of the newest one, its score and other records of a run;
- metrics.jsonl and other JSON, without times; tables and other text; tensors; images by pixels.
It does not compare TensorBoard files (the numbers of metrics.jsonl again), the cache of prompts and
locks. Settings (config.json, fingerprints) may gain and lose keys: that is noted.

Most cases compile with `FAST` XLA flags, in a third of the time; `dense` and `full` with XLA's own.
One core is enough: `taskset -c 0 python tools/compare_checkouts.py ...`; all cases take an hour.
Exit status: 0 all equal, 1 something differs or failed, 2 an argument cannot be used.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # also if run as a script
from densegrpo_jax.runtime import entry  # noqa: E402
from tools.compare_artifacts import Comparison, Difference  # noqa: E402
from tools.compare_cases import CASES, SMALL, TIMED, Case  # noqa: E402

FAST = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
SECONDS_LIMIT = 1800  # for one command
SHOWN = 8  # differences of a case on the console; the report has all


class Failed(Exception):
    """A command did not end with status 0; the message has the end of its output."""


@dataclasses.dataclass
class Checkout:
    side: str  # 'before' or 'after'
    folder: pathlib.Path
    revision: str
    python: str
    xla_flags: str | None  # None: as the case says
    keys: dict[str, str] = dataclasses.field(default_factory=dict)  # that are renamed in it
    fast: str = FAST

    def environment(self, fast: bool) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_', 'PYTHON'))}
        flags = self.xla_flags if self.xla_flags is not None else self.fast if fast else ''
        return kept | {
            'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': 'false', 'XLA_FLAGS': flags,
            'MPLBACKEND': 'agg', 'PYTHONDONTWRITEBYTECODE': '1',
        }  # fmt: skip

    def python_code(self, code: str, fast: bool = False) -> str:
        """The output of a Python program, run in the checkout. Raises Failed."""
        return self._run([self.python, '-c', code], fast)

    def command(self, case: Case, name: str, arguments, values: dict, base=SMALL) -> list[str]:
        """The command line of a public command with the case's configuration on top of `base`."""
        overrides = {**base, **case.overrides}
        text = lambda v: json.dumps(v) if isinstance(v, dict) else str(v)
        line = [self.python, '-m', f'densegrpo_jax.{name}', f'--config={case.recipe}']
        line += [f'--config.{self.keys.get(k, k)}={text(v)}' for k, v in overrides.items()]
        line += ['--cpu_devices=1'] if name in ('main', 'evaluate', 'calibrate') else []
        if (pathlib.Path(self.folder) / 'densegrpo_jax/config/reads.py').exists():
            line += ['--unread=warn']  # the overrides are for all commands
        line += arguments
        for key, value in values.items():
            line = [part.replace(f'{{{key}}}', str(value)) for part in line]
        return line

    def run(self, case: Case, values: dict) -> None:
        """Runs every command of a case. Raises Failed."""
        for name, *arguments in case.commands:
            self._run(self.command(case, name, arguments, values), case.fast)

    def _run(self, line: list[str], fast: bool) -> str:
        what = f'{self.side}: {" ".join(line[1:4])}'
        try:
            done = subprocess.run(
                line, cwd=self.folder, env=self.environment(fast), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=SECONDS_LIMIT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Failed(f'{what} ran for more than {SECONDS_LIMIT} s') from None
        if done.returncode:
            said = ' | '.join((done.stderr or done.stdout).strip().splitlines()[-4:])
            raise Failed(f'{what} ended with status {done.returncode}: {said}')
        return done.stdout.strip()


@contextlib.contextmanager
def opened(name: str, side: str, options, scratch: pathlib.Path) -> Iterator[Checkout]:
    """The checkout of a folder, or of a revision in a worktree that is removed afterwards."""
    git = lambda *args, where='.': subprocess.run(
        ['git', '-C', str(where), *args], capture_output=True, text=True, check=False
    )
    keys = options.key if side == 'after' else {}
    build = lambda folder, revision: Checkout(
        side, folder, revision, options.python, options.xla_flags, keys
    )
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        if not (folder / 'densegrpo_jax').is_dir():
            raise ValueError(f'--{side}={name}: {folder} has no folder densegrpo_jax')
        head = git('rev-parse', 'HEAD', where=folder).stdout.strip() or 'no git revision'
        changed = git('status', '--porcelain', where=folder).stdout.strip()
        yield build(folder, head + (' with changes' if changed else ''))
        return
    root = pathlib.Path(__file__).resolve().parent
    commit = git(
        'rev-parse', '--verify', '--quiet', f'{name}^{{commit}}', where=root
    ).stdout.strip()
    if not commit:
        raise ValueError(f'--{side}={name} is neither a folder nor a git revision of {root.parent}')
    folder = scratch / f'checkout_{side}'
    added = git('worktree', 'add', '--detach', str(folder), commit, where=root)
    if added.returncode:
        raise ValueError(f'--{side}={name}: git worktree add failed: {added.stderr.strip()}')
    try:
        yield build(folder, commit)
    finally:
        git('worktree', 'remove', '--force', str(folder), where=root)


def check(checkout: Checkout) -> str:
    """Versions of the checkout's libraries. Raises ValueError if another package is imported."""
    code = (
        'import densegrpo_jax, jax, jaxlib, sys; jax.devices(); print(densegrpo_jax.__file__); '
        'print("Python", sys.version.split()[0], "jax", jax.__version__, jaxlib.__version__)'
    )
    try:
        try:
            said = checkout.python_code(code, fast=True)
        except Failed as error:
            if 'XLA_FLAGS' not in str(error) or checkout.xla_flags is not None:
                raise
            checkout.fast = ''  # this XLA rejects the flags
            said = checkout.python_code(code)
    except (Failed, OSError) as error:
        raise ValueError(f'--{checkout.side}: {error}') from None
    found, versions = said.splitlines()[-2:]
    if checkout.folder not in pathlib.Path(found).resolve().parents:
        raise ValueError(f'--{checkout.side}: {found} is imported instead of {checkout.folder}')
    return versions


def make_sd3(checkouts: Sequence[Checkout], folder: pathlib.Path) -> None:
    """A random SD3.5 of a few thousand weights, made by the first checkout that can."""
    code = (
        'import pathlib; from tests import miniature; '
        f'miniature.random_sd3(pathlib.Path({str(folder)!r}), scale=1.0)'
    )
    for checkout in checkouts:
        try:
            checkout.python_code(code, fast=True)
            return
        except Failed as error:
            reason = error
    raise Failed(f'no checkout can make a small SD3.5 (tests/miniature.py, random_sd3): {reason}')


def run_case(name: str, checkouts: Sequence[Checkout], scratch: pathlib.Path, options) -> dict:
    """Runs a case in both checkouts; the report of it."""
    compared = Comparison(options.tolerance, options.rename, options.ignore)
    case, seconds = CASES[name], {}
    shared, work = scratch / 'sd3', scratch / 'work'  # the same paths for both
    try:
        if '{sd3}' in case.overrides.values() and not shared.exists():
            make_sd3(checkouts, shared)
        for checkout in checkouts:
            began, done = time.monotonic(), scratch / checkout.side / name
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            checkout.run(case, {'case': work, 'sd3': shared})
            seconds[checkout.side] = round(time.monotonic() - began, 1)
            done.parent.mkdir(exist_ok=True)
            work.rename(done)
            for one, other in case.twins:
                compared.checkpoints(f'{checkout.side}: {one} and {other}', *(
                    done / run / 'checkpoints' for run in (one, other)
                ))  # fmt: skip
        compared.folders(*(scratch / checkout.side / name for checkout in checkouts))
        if not compared.counts['files']:
            compared.add([Difference(name, 'no file was compared')])
    except Failed as error:
        compared.add([Difference(name, str(error))])
    if not options.keep:
        for checkout in checkouts:
            shutil.rmtree(scratch / checkout.side / name, ignore_errors=True)
    as_rows = lambda found: [{**dataclasses.asdict(d), 'text': str(d)} for d in found]
    return {
        'equal': not compared.differences, 'seconds': seconds, 'compared': compared.counts,
        'differences': as_rows(compared.differences), 'notes': as_rows(compared.notes),
    }  # fmt: skip


def timed_run(checkout: Checkout, workdir: pathlib.Path, iterations: int) -> dict[str, float]:
    """Seconds from the command to the first update, and of an iteration after it (their median)."""
    shutil.rmtree(workdir, ignore_errors=True)
    case = dataclasses.replace(
        TIMED, overrides={'iterations': iterations, 'eval.every': iterations}
    )
    line = checkout.command(case, 'main', ['--workdir={case}'], {'case': workdir}, base={})
    began, first, metrics = time.monotonic(), None, workdir / 'metrics.jsonl'
    log = workdir.with_suffix('.log')
    with open(log, 'w', encoding='utf-8') as file:
        process = subprocess.Popen(
            line, cwd=checkout.folder, env=checkout.environment(case.fast),
            stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
        try:
            while process.poll() is None:
                if first is None and metrics.exists() and b'"step": 1,' in metrics.read_bytes():
                    first = time.monotonic() - began
                time.sleep(0.02)
        finally:
            process.kill()
    if process.returncode or first is None:
        said = ' | '.join(log.read_text(encoding='utf-8').strip().splitlines()[-4:])
        raise Failed(f'{checkout.side}: ended with status {process.returncode}: {said}')
    rows = [json.loads(row) for row in metrics.read_text(encoding='utf-8').splitlines()]
    later = [row['seconds/iteration'] for row in rows if row['step'] > 1]
    return {'first_update': first, 'iteration': statistics.median(later)}


def compare_seconds(checkouts: Sequence[Checkout], scratch: pathlib.Path, options) -> dict:
    """Alternating runs (before, after, before, ...) and the ratios after / before of each pair."""
    runs: dict[str, list[dict]] = {checkout.side: [] for checkout in checkouts}
    for pair in range(options.pairs):
        for checkout in checkouts:
            found = timed_run(checkout, scratch / 'timed', options.iterations)
            runs[checkout.side].append(found)
            shown = (
                f'first update {found["first_update"]:.1f} s, {found["iteration"]:.3f} s/iteration'
            )
            print(f'pair {pair + 1}/{options.pairs} {checkout.side:6s} {shown}', flush=True)
    report: dict = {'runs': runs}
    for name in ('first_update', 'iteration'):
        before, after = ([run[name] for run in runs[side]] for side in ('before', 'after'))
        report[name] = result = ratios(before, after)
        print(
            f'{name}: median {statistics.median(before):.3f} s before, '
            f'{statistics.median(after):.3f} s after; ratio after / before: median '
            f'{result["median"]:.4f}, quartiles {result["quartiles"][0]:.4f} to '
            f'{result["quartiles"][1]:.4f}, all {result["least"]:.4f} to {result["most"]:.4f}'
        )
    return report


def ratios(before: Sequence[float], after: Sequence[float]) -> dict:
    """Median, quartiles and extremes of the pairs' ratios after / before."""
    each = [a / b for b, a in zip(before, after, strict=True)]
    quartiles = statistics.quantiles(each, n=4, method='inclusive') if len(each) > 1 else each * 3
    return {
        'ratios': each, 'median': statistics.median(each), 'least': min(each), 'most': max(each),
        'quartiles': [quartiles[0], quartiles[2]],
    }  # fmt: skip


def compare(checkouts: Sequence[Checkout], scratch: pathlib.Path, options, save) -> dict:
    """Runs the chosen cases and prints a line for each; name -> report, saved after every case."""
    report: dict[str, dict] = {}
    for number, name in enumerate(options.only, start=1):
        report[name] = result = run_case(name, checkouts, scratch, options)
        counts = ', '.join(f'{count} {what}' for what, count in result['compared'].items())
        seconds = ' + '.join(f'{value:.0f} s' for value in result['seconds'].values())
        verdict = 'equal' if result['equal'] else 'DIFFERS'
        print(
            f'{number}/{len(options.only)} {name:18s} {verdict:8s} {counts}; {seconds}', flush=True
        )
        for row in result['differences'][:SHOWN]:
            print(f'    {row["text"]}', flush=True)
        if (more := len(result['differences']) - SHOWN) > 0:
            print(f'    ... and {more} more', flush=True)
        if result['notes']:
            print(f'    {len(result["notes"])} notes, the first: {result["notes"][0]["text"]}')
        save(report)
    wrong = [name for name, result in report.items() if not result['equal']]
    print(f'{len(report) - len(wrong)} of {len(report)} cases are equal')
    if wrong:
        print(f'not equal: {", ".join(wrong)}')
    return report


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The checked arguments; ends the program with status 2 if one cannot be used."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('--before', default='main', help='folder or git revision')
    add('--after', default='.', help='folder or git revision')
    add('--python', default=sys.executable, help='interpreter for both')
    add('--only', default='', help='cases, separated by commas; default all')
    add('--list', action='store_true', help='name the cases and end')
    add('--tolerance', type=float, default=0.0, help='of floats, over the largest of an array')
    add('--ignore', default='', help='regular expression: differences that are only noted')
    add('--rename', action='append', default=[], help='PATTERN=>REPLACEMENT of names; repeatable')
    add('--key', action='append', default=[], help='OLD=>NEW, a config key of --after; repeatable')
    add('--xla_flags', default=None, help='for all cases, instead of their own')
    add('--out', default='', help='JSON file for the report')
    add('--keep', default='', help="folder that keeps the runs' output")
    add('--seconds', action='store_true', help='measure time instead, on the demo')
    add('--pairs', type=int, default=7, help='with --seconds: runs of each checkout')
    add('--iterations', type=int, default=5, help='with --seconds: iterations of a run')
    options = parser.parse_args(argv)
    names = [name for name in options.only.split(',') if name]
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f'--only={unknown[0]}: no such case; there are {", ".join(CASES)}')
    options.only = names or list(CASES)
    for flag, given in (('rename', options.rename), ('key', options.key)):
        if wrong := [text for text in given if text.count('=>') != 1]:
            parser.error(f'--{flag}={wrong[0]}: expected OLD=>NEW')
    options.rename = [text.split('=>') for text in options.rename]
    options.key = dict(text.split('=>') for text in options.key)
    if not 0 <= options.tolerance < 1:
        parser.error(f'--tolerance={options.tolerance}: expected 0 (the same bits) to 1')
    if options.pairs < 1 or options.iterations < 2:
        parser.error('--pairs must be at least 1 and --iterations at least 2')
    if options.keep and any(pathlib.Path(options.keep).glob('*')):
        parser.error(f'--keep={options.keep} is not empty')
    return options


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    if options.list:
        print('\n'.join(CASES))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # worktrees are removed on the way out
    with contextlib.ExitStack() as stack:
        scratch = pathlib.Path(
            options.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix='compare_'))
        ).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            checkouts = [
                stack.enter_context(opened(getattr(options, side), side, options, scratch))
                for side in ('before', 'after')
            ]
            versions = {checkout.side: check(checkout) for checkout in checkouts}
        except ValueError as error:
            print(f'error: {error}', file=sys.stderr)
            return 2
        for c in checkouts:
            print(f'{c.side:6s} {getattr(options, c.side)} ({c.revision}), {versions[c.side]}')
        given = lambda c: {'given': getattr(options, c.side), 'revision': c.revision}
        report = {
            'checkouts': {c.side: given(c) for c in checkouts},
            'versions': versions,
            'machine': f'{platform.machine()}, {os.cpu_count()} cores',
            'tolerance': options.tolerance,
        }

        def save(kind: str, found: dict) -> None:
            if options.out:
                document = json.dumps({**report, kind: found}, indent=2)
                pathlib.Path(options.out).write_text(document + '\n', encoding='utf-8')

        if not options.seconds:
            found = compare(checkouts, scratch, options, lambda cases: save('cases', cases))
            return int(not all(result['equal'] for result in found.values()))
        try:
            save('seconds', compare_seconds(checkouts, scratch, options))
        except Failed as error:
            print(f'error: {error}', file=sys.stderr)
            return 1
        return 0


if __name__ == '__main__':
    os.environ['JAX_PLATFORMS'] = 'cpu'  # orbax imports jax to read checkpoints,
    logging.getLogger('absl').setLevel(logging.ERROR)  # and warns of files that it does not need
    with entry.interruptible():  # worktrees are removed
        sys.exit(main(sys.argv[1:]))
