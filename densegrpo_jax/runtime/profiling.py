"""A trace of some iterations by JAX's profiler: what the devices and the host did when."""

from __future__ import annotations

import pathlib
import re
from typing import NamedTuple

import jax
from absl import logging

from densegrpo_jax.runtime.hosts import Hosts

FOLDER = 'profile'  # in the work directory
MOST = 100  # iterations; a trace of more opens in no viewer
TRACE = 'perfetto_trace.json.gz'


class Profile(NamedTuple):
    """Iterations to trace: first, ..., last, counted from 1."""

    first: int
    last: int


def profile_of(text: str) -> Profile:
    """START:COUNT as a Profile; raises ValueError for anything else."""
    match = re.fullmatch(r'(\d{1,9}):(\d{1,9})', text)
    start, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if start < 1 or not 1 <= count <= MOST:
        raise ValueError(
            f'--profile={text}: expected START:COUNT, the first iteration, from 1, and how many, 1 '
            f'to {MOST}, as 3:2; the first iterations compile'
        )
    return Profile(start, start + count - 1)


def check_profile(profile: Profile, iterations: int) -> None:
    """Raises ValueError if the run ends before the last of them."""
    if profile.last > iterations:
        raise ValueError(
            f'--profile={profile.first}:{profile.last - profile.first + 1} ends after iteration '
            f'{profile.last}, but iterations={iterations}'
        )


class Profiler:
    """Traces iterations of a run into WORKDIR/profile; a context manager, which ends a trace that
    an error interrupts. Process N of several has a folder of its own there, process_N.

    Args:
      profile: None: nothing is traced.
      done: iterations that the run has already.
      hosts: the run's processes; None: this process alone.
    """

    def __init__(
        self, profile: Profile | None, workdir: pathlib.Path, done: int, hosts: Hosts | None = None
    ):
        self._profile, self._folder, self._running = profile, workdir / FOLDER, False
        if hosts and hosts.count > 1:  # JAX takes one trace in a folder, and refuses two
            self._folder /= f'process_{hosts.index}'
        if profile and done >= profile.last:
            logging.warning(
                '--profile: iterations %d to %d are done already, nothing is traced',
                *(profile.first, profile.last),
            )

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *exception) -> None:
        self._stop()

    def begin(self, iteration: int) -> None:
        """Called before an iteration."""
        if self._profile and not self._running and self._holds(iteration):
            options = jax.profiler.ProfileOptions()
            # calls of Python functions, in every scoring thread, would bury the rest
            options.python_tracer_level = 0
            jax.profiler.start_trace(
                self._folder, create_perfetto_trace=True, profiler_options=options
            )
            self._running = True

    def end(self, iteration: int) -> None:
        """Called after an iteration."""
        if self._profile and iteration >= self._profile.last:
            self._stop()

    def _holds(self, iteration: int) -> bool:
        return self._profile.first <= iteration <= self._profile.last

    def _stop(self) -> None:
        if not self._running:
            return
        self._running = False
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # noqa: BLE001 (the run is worth more than its trace)
            logging.warning('no trace was made in %s: %s', self._folder, error)
            return
        made = max(self._folder.rglob(TRACE), key=lambda path: path.stat().st_mtime, default=None)
        logging.info(
            'made %s: open %s at https://ui.perfetto.dev, or `pip install xprof`, `xprof %s`',
            *(self._folder, made.relative_to(self._folder) if made else TRACE, self._folder),
        )
