"""Progress on the console: a bar on a terminal, plain lines in a log file; both with rate and
remaining time.
"""

import collections
import sys
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_SMOOTHING = 0.1  # weight of the newest step in the running rate


class ProgressBar:
    """Shows ``label done/total``, the given metrics, the rate and the remaining time. A context
    manager.

    Args:
      total: steps of the whole run.
      start: steps that were done before this process.
      every_seconds: least time between two lines of a log; the last step always gets one. A
        terminal's bar always moves.
      file: where to write, default sys.stderr.
      show: False shows nothing, for processes that do not report.
      together: how many steps run at a time. They may end together, so the rate is measured over
        that many.
      unit: the name of a step, for the rate.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        label: str = 'train',
        every_seconds: float = 0.0,
        file=None,
        show: bool = True,
        together: int = 1,
        unit: str = 'step',
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._done, self._label, self._every, self._clock = (
            total,
            start,
            label,
            every_seconds,
            clock,
        )
        self._seconds_per_step, self._unit = None, unit
        self._updates, self._last_line = 0, None
        # when so many steps were done
        self._measured = collections.deque([(clock(), start)], maxlen=together)
        self._console, self._show = Console(file=file or sys.stderr), show
        self._bar = None
        if show and self._console.is_terminal:
            fields = (
                '{task.completed:.0f}/{task.total:.0f}',
                '{task.fields[rate]}',
                '{task.fields[metrics]}',
            )
            columns = [
                TextColumn(label),
                BarColumn(bar_width=24),
                *(TextColumn(field, markup=False) for field in fields),
            ]
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(
                label, total=total, completed=start, rate='', metrics=''
            )

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc_info):
        self.close()

    def close(self) -> None:
        """The bar moves no more; lines below it stay in order."""
        if self._bar:
            self._bar.stop()

    def update(self, done: int, metrics: Mapping[str, float] | None = None) -> None:
        """``done`` steps are complete; ``metrics`` are shown in the given order."""
        self._measure(done)
        shown = '  '.join(f'{name} {value:.4g}' for name, value in (metrics or {}).items())
        if self._bar:
            self._bar.update(self._task, completed=done, rate=self._rate(), metrics=shown)
            return
        now = self._clock()
        if self._last_line is None or now - self._last_line >= self._every or done >= self._total:
            self._last_line = now
            self._line(
                '  '.join(
                    part
                    for part in (f'{self._label} {done}/{self._total}', shown, self._rate())
                    if part
                )
            )

    def note(self, text: str) -> None:
        """Prints a separate line above the bar."""
        self._line(text)

    def _line(self, text: str) -> None:
        if not self._show:
            return
        if self._bar:
            self._bar.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._console.file.write(text + '\n')
            self._console.file.flush()

    def _measure(self, done: int) -> None:
        (since, before), now = self._measured[0], self._clock()
        seconds = (now - since) / max(done - before, 1)
        # the first step compiles: use its time only until there is a second
        if self._updates < 2:
            self._seconds_per_step = seconds
        else:
            self._seconds_per_step += _SMOOTHING * (seconds - self._seconds_per_step)
        self._done = done
        self._measured.append((now, done))
        self._updates += 1

    def _rate(self) -> str:
        each = self._seconds_per_step
        unit = self._unit
        rate = f'{each:.1f} s/{unit}' if each >= 1 else f'{1 / max(each, 1e-9):.1f} {unit}s/s'
        if self._done >= self._total:
            return rate
        if self._updates < 2:  # no remaining time: the next steps take a fraction of it
            return f'{rate}, compilation included'
        return f'{rate}  {_clock_time((self._total - self._done) * each)} left'


def _clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'
