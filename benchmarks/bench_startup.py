"""Where a command's start goes: processor seconds at every line that it prints.

    python -m benchmarks.bench_startup densegrpo_jax.main --config=tiny_ocr \\
        --workdir=/tmp/start --config.iterations=1

Runs the command in this process, and puts before each line of its messages the seconds that the
processors have spent so far, in all threads, and those of the clock. Other programs on the machine
change the first much less than the second. In another checkout:
`PYTHONPATH=. python /path/of/bench_startup.py ...`
"""

from __future__ import annotations

import argparse
import runpy
import sys
import time


class Stamped:
    """A stream whose lines begin with the seconds so far; otherwise the stream itself."""

    def __init__(self, stream):
        self._stream, self._began, self._at_start = stream, time.monotonic(), True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            if self._at_start:
                clock = time.monotonic() - self._began
                self._stream.write(f'{time.process_time():7.2f} cpu {clock:7.1f} s  ')
            self._stream.write(line)
            self._at_start = line.endswith('\n')
        return len(text)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('command', help='a module, such as densegrpo_jax.main')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='its own')
    given = parser.parse_args()
    sys.argv = [given.command, *given.arguments]
    sys.stderr = Stamped(sys.stderr)
    try:
        runpy.run_module(given.command, run_name='__main__', alter_sys=True)
    finally:
        print('the end', file=sys.stderr)


if __name__ == '__main__':
    main()
