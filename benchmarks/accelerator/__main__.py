"""Checks and measures this package on the accelerator at hand, in order of value, within a budget.

    bash benchmarks/on_accelerator.sh --seconds=500
    # a machine that is set up, also without network
    bash benchmarks/on_accelerator.sh --no-setup --seconds=3600 --out=runs/accelerator
    # anywhere
    bash benchmarks/on_accelerator.sh --size=small --parts=a,b

Every step is a process with a limit of its own; what it measured until then stays in
OUT/results.json, what was printed in OUT/log.txt. The same command, run again, does what is
missing, and measures anew what another device, version of JAX or code has measured. At the end,
within the budget, it prints a table, the aims with their verdicts, and one line for
docs/results/accelerators.md.

Exit status: 0 all was measured that time and installed packages allow, 1 something failed, 2 an
argument cannot be used.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import sys
import time

from benchmarks.accelerator import process, record, report
from benchmarks.accelerator.steps import DEVICE, FLAGS, PARTS, Step, absent, allowance, chosen

RESULTS, LOG = 'results.json', 'log.txt'
RESERVE = process.GRACE + process.FINAL + 2  # seconds for ending a step, and for the table


def parsed(words: list[str]) -> argparse.Namespace:
    """The arguments. A mistake in them ends the process with a line and status 2."""
    parts = '\n'.join(f'  {name}  {text}' for name, text in PARTS.items())
    parser = argparse.ArgumentParser(
        prog='on_accelerator.sh',
        description=f'{__doc__}\nparts:\n{parts}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('--seconds', type=float, default=500.0, help='budget (500)')
    parser.add_argument('--size', choices=('full', 'small'), default='full', help='of models')
    parser.add_argument('--parts', default=','.join(PARTS), help='which, by their letters (all)')
    parser.add_argument('--out', type=pathlib.Path, help='folder (runs/accelerator, or _small)')
    parser.add_argument(
        '--work',
        type=pathlib.Path,
        default=pathlib.Path('runs/accelerator_work'),
        help='folder of compiled programs and unfinished runs (runs/accelerator_work)',
    )
    given = parser.parse_args(words)
    given.parts = [part.strip() for part in given.parts.split(',')]
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f'--parts: {unknown[0]!r} is none of {", ".join(PARTS)}')
    if not 60 <= given.seconds <= 7 * 86_400:
        parser.error(f'--seconds={given.seconds:g}: expected a minute to a week')
    given.out = given.out or pathlib.Path(
        'runs/accelerator' + ('_small' if given.size == 'small' else '')
    )
    for name in ('out', 'work'):
        folder = getattr(given, name)
        if folder.exists() and not folder.is_dir():
            parser.error(f'--{name}={folder} is a file; name a folder')
    return given


class Call:
    """One call: its folders and budget, the log, and what did not go well."""

    def __init__(self, given: argparse.Namespace):
        self._given, self._began = given, time.monotonic()
        given.out.mkdir(parents=True, exist_ok=True)
        self.results = given.out / RESULTS
        self._log = open(given.out / LOG, 'ab')  # noqa: SIM115 (until the process ends)
        self.left_out: dict[str, str] = {}
        self.failed = False

    @property
    def left(self) -> float:
        """Seconds for steps."""
        return self._given.seconds - RESERVE - (time.monotonic() - self._began)

    def say(self, text: str) -> None:
        """Prints and logs."""
        print(text, flush=True)
        self._log.write(f'{text}\n'.encode())
        self._log.flush()

    def run(self, step: Step, limit: float, platform: str = '') -> bool:
        """Runs a step for at most `limit` seconds. Returns whether it ended well."""
        given = self._given
        command = [sys.executable, '-m', f'benchmarks.accelerator.{step.module}']
        command += [f'--record={self.results}', f'--step={step.name}', f'--work={given.work}']
        command += [f'--size={given.size}', *step.arguments]
        flags = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS[step.mode] if platform == "gpu" else ""}'
        environment = {
            'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.93',
            **os.environ,
            'JAX_COMPILATION_CACHE_DIR': str((given.work / 'compiled').resolve()),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            'PYTHONUNBUFFERED': '1',
            'XLA_FLAGS': flags.strip(),
            'PYTHONPATH': os.pathsep.join([str(record.ROOT), os.environ.get('PYTHONPATH', '')]),
        }
        status, reason = process.run(command, environment, limit, self._log)
        if reason:
            self.left_out[step.name] = reason
            self.failed |= status is not None
            self.say(f'{step.name}: {reason}')
        return not reason

    def do(self, step: Step, platform: str) -> None:
        """Runs a step, or says why not."""
        found = record.results(self.results).get(step.name, {'done': False})
        limit = allowance(step, self.left)
        if found['done']:
            self.say(f'{step.name}: measured before')
        elif lost := absent(step):
            self.left_out[step.name] = f'not installed here: {", ".join(lost)}'
            self.say(f'{step.name}: {self.left_out[step.name]}')
        elif not limit:
            self.left_out[step.name] = (
                f'it wants {step.least} s and {max(self.left, 0):.0f} are left'
            )
        else:
            self.say(f'\n{step.name}: {PARTS[step.part]}; at most {limit:.0f} s')
            self.run(step, limit, platform)


def main(words: list[str]) -> int:
    given = parsed(words)
    call = Call(given)
    if lost := absent(DEVICE):
        print(f'error: not installed for {sys.executable}: {", ".join(lost)}', file=sys.stderr)
        return 1
    if not call.run(DEVICE, max(1.0, min(call.left, DEVICE.most))):
        print('error: the device could not be asked; the lines above say why', file=sys.stderr)
        return 1
    document = record.read(call.results)
    facts = document['facts']
    call.say(
        f'{facts["count"]} x {facts["device"]}, jax {facts["jax"]}, commit {facts["commit"]}; '
        f'{given.seconds:.0f} s'
    )
    own = record.identity(facts)
    if old := [name for name, step in document['steps'].items() if step['of'] != own]:
        call.say(
            f'{call.results}: of another device, version, size or code, not shown and replaced '
            f'when measured here: {", ".join(old)}'
        )
    steps = chosen(given.parts, facts['platform'])
    # A command that is stopped, as by a limit of its machine, ends its step and prints what it has.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for step in steps:
            call.do(step, facts['platform'])
    except KeyboardInterrupt:
        call.say('stopped')
        call.failed = True
    finally:
        signal.signal(signal.SIGTERM, before)
    measured = record.results(call.results)
    found = {s.name: measured[s.name] for s in (DEVICE, *steps) if s.name in measured}
    call.say(f'\n{report.table(found, call.left_out)}\n')
    if given.size == 'small':
        call.say('small size: it shows that the script works; no aim is judged')
    else:
        call.say(report.verdicts(found))
        call.say(f'for docs/results/accelerators.md:\n{report.line(facts, found)}')
    return int(call.failed)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
