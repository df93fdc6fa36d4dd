"""Several settings together: what is stored of each, and the page that pools them."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from densegrpo_jax.preflight.signal import Interval
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.markdown import table
from densegrpo_jax.runtime.reading import read_json, shaped
from densegrpo_jax.runtime.trees import json_value
from experiments.foretelling.ordering import LEVEL, count, tests
from experiments.reproduction.records import PAGE

SIGNAL = 'signal.json'  # in --out: variant -> its signal with the interval
HEIGHTS = 'heights.json'  # in --out: the base of the runs; variant -> the height of each
NOISES = ('noise_0.5', 'noise_0.8')  # variants of the noise, with dense credit
FEWEST = 3  # credits of a rank correlation
MIN_SETTINGS = 3  # measurements of an interval over settings
POOLED = '# Several settings: what preflight foretells'
_NUMBERS = [float | None]  # None is NaN


class Setting(NamedTuple):
    """The credits of a setting that have a signal and runs.

    Attributes:
      base: of the runs.
      signal: variant -> signal. runs: variant -> height of each run, also of other variants.
    """

    base: str
    signal: Mapping[str, Interval]
    runs: Mapping[str, Sequence[float]]

    @property
    def tau(self) -> float:
        """Kendall's tau-b of signals and mean heights; NaN if either has no order."""
        pairs = [(s.value, np.mean(self.runs[name])) for name, s in self.signal.items()]
        return float(stats.kendalltau(*zip(*pairs)).statistic)


def read_signal(out: pathlib.Path) -> dict[str, Interval]:
    """Variant -> its signal. Raises FileNotFoundError or ValueError if OUT/SIGNAL is not one."""
    path = out / SIGNAL
    found = shaped(read_json(path), {...: _NUMBERS}, str(path))
    return {name: Interval(*_known(values)) for name, values in found.items()}


def _known(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def write_heights(out: pathlib.Path, base: str, heights: Mapping[str, Sequence[float]]) -> None:
    """Stores the heights of runs of a base configuration beside their signal."""
    document = {'base': base, 'heights': json_value(heights)}
    replace_file(out / HEIGHTS, json.dumps(document, indent=2) + '\n')


def check_ranked(signal: Mapping[str, Interval], where: str = '') -> None:
    """Raises ValueError if these are too few for a rank correlation."""
    if len(signal) < FEWEST:
        raise ValueError(
            f'{where}{len(signal)} credits have both a signal and runs; a rank correlation needs '
            f'{FEWEST}'
        )


def read_settings(folders: Sequence[str]) -> list[Setting]:
    """The settings of several folders that were --out.

    Raises:
      FileNotFoundError, ValueError: a file is missing or damaged, a setting has fewer than FEWEST
        credits, or two folders are of one setting.
    """
    found: dict[str, Setting] = {}
    for folder in map(pathlib.Path, folders):
        path = folder / HEIGHTS
        if not path.is_file():
            raise FileNotFoundError(
                f'--pool: there is no {path}; experiments.foretell --norun --runs=... '
                f'--out={folder} makes it of {SIGNAL} and the tables of the runs'
            )
        stored = shaped(read_json(path), {'base': str, 'heights': {...: _NUMBERS}}, str(path))
        base = stored['base']
        runs = {name: _known(values) for name, values in stored['heights'].items()}
        signal = {
            name: each
            for name, each in read_signal(folder).items()
            if name in runs and name not in NOISES and not math.isnan(each.value)
        }
        check_ranked(signal, f'--pool: {folder}: ')
        if base in found:
            raise ValueError(
                f'--pool: {folder} is of {base}, as another of the folders: a setting counts once'
            )
        found[base] = Setting(base, signal, runs)
    return list(found.values())


def by_signal(settings: Sequence[Setting]) -> list[list[Setting]]:
    """The settings in groups of one measurement of the signal, equal to 0.001: what their
    taus have in common is one chance, not several.
    """
    found: list[list[Setting]] = []
    for each in settings:
        group = next((group for group in found if _alike(each.signal, group[0].signal)), None)
        if group is None:
            found.append([each])
        else:
            group.append(each)
    return found


def _alike(one: Mapping[str, Interval], other: Mapping[str, Interval]) -> bool:
    common = one.keys() & other.keys()
    equal = (np.allclose(one[name], other[name], 0, 1e-3, equal_nan=True) for name in common)
    return bool(common) and all(equal)


def mean_tau(taus: Sequence[float]) -> Interval:
    """The mean, with the 95 % interval of Student's t, unknown for few of them."""
    mean, low, high = float(np.mean(taus)), math.nan, math.nan
    if len(taus) >= MIN_SETTINGS:
        half = stats.t.ppf(0.975, len(taus) - 1) * stats.sem(taus)
        low, high = max(mean - half, -1.0), min(mean + half, 1.0)
    return Interval(mean, low, high)


def write_pool(out: pathlib.Path, settings: Sequence[Setting], how: str) -> pathlib.Path:
    """Writes the page of several settings, whose pairs are within a setting; returns its path."""
    tested = [tests(each.signal, each.runs) for each in settings]
    found = count([test for of in tested for test in of])
    measured = [
        [tau for each in of if math.isfinite(tau := each.tau)] for of in by_signal(settings)
    ]
    known = [float(np.mean(taus)) for taus in measured if taus]
    mean = mean_tau(known) if known else 'unknown'
    rows = [
        [each.base, str(len(each.signal)), *map(str, count(of)), f'{each.tau:.3g}']
        for each, of in zip(settings, tested, strict=True)
    ]
    head = ['setting', 'credits', 'pairs', 'runs differ', 'ordered alike']
    head += ["with Holm's correction within it", 'ordered alike', 'tau-b']
    text = [
        POOLED,
        how,
        f'{len(settings)} settings have {found.pairs} pairs of credits, each within a setting. The '
        f'runs of {found.decided} differ at 5 %, each test for itself (chance alone would give '
        f'{LEVEL * found.pairs:.0f}), and the signal orders {found.right} of these alike. '
        f"Holm's correction over all pairs leaves {found.sure} of them, {found.sure_right} ordered "
        'alike.',
        "The mean of Kendall's tau-b, between the signal before training and the height of the "
        f'learning curves, is **{mean}** over {len(known)} measurements of the signal. Settings '
        "that share one count as one, with the mean of theirs. (95 % interval of Student's t, from "
        f'{MIN_SETTINGS} measurements on.)',
        table(head, rows),
    ]
    notes = out / 'notes.md'
    text += [notes.read_text(encoding='utf-8').strip()] if notes.exists() else []
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / PAGE, '\n\n'.join(text) + '\n')
    return out / PAGE
