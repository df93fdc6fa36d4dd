"""Checks and measures this package on the accelerator at hand, in order of value, within a budget.

    bash benchmarks/on_accelerator.sh --seconds=600
    python -m benchmarks.accelerator --seconds=3600 --out=runs/accelerator
    python -m benchmarks.accelerator --size=small --parts=a,b    # anywhere

Every step is a process with a limit of its own; what it measured until then stays in OUT/STEP.json.
The same command, run again, does what is missing. At the end it prints a table, the aims with their
verdicts, and one line for docs/results/accelerators.md.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from benchmarks.accelerator import report
from benchmarks.accelerator.steps import FLAGS, PARTS, Step, allowance, chosen

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEVICE = Step('0', 'device', least=0, most=300)
GRACE = 15.0  # seconds between asking a step to end and ending it


def parsed(words: list[str]) -> argparse.Namespace:
    """The arguments. A mistake in them ends the process with a line and status 2."""
    parts = '\n'.join(f'  {name}  {text}' for name, text in PARTS.items())
    parser = argparse.ArgumentParser(
        prog='on_accelerator.sh',
        description=f'{__doc__}\nparts:\n{parts}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('--seconds', type=float, default=600.0, help='budget (600)')
    parser.add_argument('--size', choices=('full', 'small'), default='full', help='of models')
    parser.add_argument('--parts', default=','.join(PARTS), help='which, by their letters (all)')
    parser.add_argument('--out', type=pathlib.Path, help='folder (runs/accelerator, or _small)')
    given = parser.parse_args(words)
    given.parts = [part.strip() for part in given.parts.split(',')]
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f'--parts: {unknown[0]!r} is none of {", ".join(PARTS)}')
    if not 1 <= given.seconds <= 7 * 86_400:
        parser.error(f'--seconds={given.seconds:g}: expected 1 second to a week')
    given.out = given.out or pathlib.Path(
        'runs/accelerator' + ('_small' if given.size == 'small' else '')
    )
    if given.out.exists() and not given.out.is_dir():
        parser.error(f'--out={given.out} is a file; name a folder')
    return given


def complete(folder: pathlib.Path, step: Step) -> bool:
    """Whether a step has measured all that it can."""
    path = folder / f'{step.name}.json'
    return path.is_file() and json.loads(path.read_text(encoding='utf-8'))['done']


def run(step: Step, folder: pathlib.Path, size: str, limit: float, platform: str = '') -> str:
    """Runs a step for at most `limit` seconds. Returns why it did not end well, '' if it did."""
    command = [sys.executable, '-m', f'benchmarks.accelerator.{step.module}']
    command += [f'--record={folder / step.name}.json', f'--size={size}', *step.arguments]
    own = FLAGS[step.mode] if platform == 'gpu' else ''
    flags = f'{os.environ.get("XLA_FLAGS", "")} {own}'.strip()
    environment = {
        **os.environ,
        'XLA_FLAGS': flags,
        'XLA_PYTHON_CLIENT_MEM_FRACTION': os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.92'),
        'JAX_COMPILATION_CACHE_DIR': str((folder / 'compiled' / step.name).resolve()),
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    }
    # a group of its own: what the step has started ends with it
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f'stopped after {limit:.0f} s'
    finally:
        _end(process)
    return '' if status == 0 else f'ended with status {status}'


def _end(process: subprocess.Popen) -> None:
    """Ends the group of a process: first by asking, then for certain."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue


def main(words: list[str]) -> int:
    given = parsed(words)
    began = time.monotonic()
    left = lambda: given.seconds - (time.monotonic() - began)
    given.out.mkdir(parents=True, exist_ok=True)
    if not complete(given.out, DEVICE) and (reason := run(DEVICE, given.out, given.size, left())):
        print(f'error: the device could not be asked: {reason}', file=sys.stderr)
        return 1
    facts = json.loads((given.out / f'{DEVICE.name}.json').read_text(encoding='utf-8'))['facts']
    print(f'{facts["count"]} x {facts["device"]}, jax {facts["jax"]}; {given.seconds:.0f} s')
    steps, left_out = chosen(given.parts, facts['platform']), {}
    for step in steps:
        if complete(given.out, step):
            print(f'{step.name}: measured before', flush=True)
            continue
        limit = allowance(step, left())
        if not limit:
            left_out[step.name] = f'it wants {step.least} s and {max(left(), 0):.0f} are left'
            continue
        print(f'\n{step.name}: {PARTS[step.part]}; at most {limit:.0f} s', flush=True)
        if reason := run(step, given.out, given.size, limit, facts['platform']):
            left_out[step.name] = reason
            print(f'{step.name}: {reason}', flush=True)
    found = report.documents(given.out, steps)
    print(f'\n{report.table(found, left_out)}\n')
    if given.size == 'small':
        print('small size: it shows that the script works; no aim is judged')
        return 0
    print(report.verdicts(found))
    line = report.line(facts, found)
    (given.out / 'line.md').write_text(line + '\n', encoding='utf-8')
    print(f'for docs/results/accelerators.md:\n{line}')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
