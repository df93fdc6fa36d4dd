"""(d) How much of the host's scoring sampling hides: SD3.5-M with random weights, 24 prompts x 2
samples, T = 4; rendered scenes are read. A batch is one prompt, as the last batch hides nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys

from benchmarks.accelerator.record import Record, arguments
from benchmarks.accelerator.setting import KERNELS, SMALL_SIDE

ROW = 'hidden'


def command(small: bool, kernel: str) -> list[str]:
    """The benchmark of rewards that measures it."""
    settings = {
        'model.attention': kernel,
        'rollout.prompts': 2 if small else 24,
        'rollout.group': 2,
        'rollout.prompts_per_batch': 1,
        'rollout.steps': 3 if small else 4,
        'optim.microbatch': 2 if small else 4,
    }
    if small:
        side = dict.fromkeys(('model.height', 'model.width'), SMALL_SIDE)
        settings |= {**side, 'model.t5_length': 16}
    words = [sys.executable, '-m', 'benchmarks.bench_rewards', '--config=configs/sd35_ocr.py']
    words += ['--random', f'--size={"small" if small else "released"}']
    words += [f'--repeat={1 if small else 3}']
    return words + [f'--config.{key}={value}' for key, value in settings.items()]


def read(text: str) -> dict:
    """The numbers of the benchmark's printed lines.

    Raises:
      ValueError: they are not there.
    """
    wanted = {
        'sampling_s': r'wall: sampling ([\d.]+) s',
        'scoring_s': r'\+ scoring ([\d.]+) s',
        'both_s': r'overlapped ([\d.]+) s',
        'waited_s': r'of which ([\d.]+) s after',
        'hidden': r'hidden: (-?\d+)% of',
        'at_most': r'at most (-?\d+)% in',
        'threads': r'(\d+) scoring threads',
    }
    found = {key: re.search(pattern, text) for key, pattern in wanted.items()}
    if lost := [key for key, match in found.items() if match is None]:
        raise ValueError(f'benchmarks.bench_rewards did not print {", ".join(lost)}')
    row = {key: float(match[1]) for key, match in found.items()}
    return row | {'hidden': row['hidden'] / 100, 'at_most': row['at_most'] / 100}


def main() -> None:
    given = arguments(__doc__)
    record, small = Record(given.record, given.step), given.size == 'small'
    if ROW not in record:
        words = command(small, KERNELS[record.facts['platform']])
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        lines = []
        for line in process.stdout:
            print(f'  {line}', end='', flush=True)
            lines.append(line)
        if process.wait():
            raise SystemExit(f'benchmarks.bench_rewards ended with status {process.returncode}')
        record.add(ROW, **read(''.join(lines)))
    record.finish()


if __name__ == '__main__':
    main()
