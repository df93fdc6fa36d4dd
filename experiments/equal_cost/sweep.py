"""The trainings behind the table: a small search of learning rates, then the seeds."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from absl import logging
from ml_collections import ConfigDict

from densegrpo_jax.config.loading import with_method
from densegrpo_jax.config.validation import validate
from densegrpo_jax.runtime.trees import dotted
from experiments.equal_cost.budget import (
    Before,
    SampleCost,
    before,
    cost,
    samples,
    updates_within,
    updating,
)
from experiments.equal_cost.curves import mean_to
from experiments.equal_cost.variants import DENSE, VARIANTS, Variant
from experiments.reproduction.records import Records
from experiments.reproduction.sweep import Run, configured

RATES = (0.3, 1.0, 3.0)  # times the recipe's learning rate
RATE_SEED = '100'  # no seed of the table: a rate that was lucky on a seed must not count twice
DENSE_UPDATES = 60  # they set the budget
FILES = ('d2.file', 'guide.file')  # made before a training, for methods that name one


@dataclasses.dataclass(frozen=True)
class Entry:
    """A variant that the configuration can train.

    Attributes:
      config: as given to --config.
      cost: of a sample. update: evaluations that its update counts as.
      per_update: samples of an update.
      updates: as many as the budget pays for.
      learning_rate: the recipe's. measures_kl: whether its runs would.
      evaluations: of a run, after the start.
      before: spent before its runs, which the budget is not to pay for.
    """

    name: str
    config: str
    changes: tuple[tuple[str, object], ...]
    cost: SampleCost
    per_update: int
    updates: int
    learning_rate: float
    update: float
    evaluations: int
    measures_kl: bool = False
    before: Before = Before()

    @property
    def images(self) -> float:
        """Scored images of an update."""
        return self.per_update * self.cost.images

    @property
    def updating(self) -> float:
        """Evaluations that an update counts as."""
        return self.per_update * self.update

    def run(self, rate: float, seed: str, workdir: pathlib.Path, extra: Sequence[str]) -> Run:
        """A training at `rate` times the recipe's learning rate."""
        searched = seed == RATE_SEED
        variant = f'{self.name} x{rate:g}' if searched else self.name
        changes = (
            *self.changes,
            ('optim.learning_rate', f'{self.learning_rate * rate:g}'),
            # Else a curve that is cut at what others have spent is one of larger steps.
            ('optim.decay', 'constant'),
            ('iterations', self.updates),
            ('eval.every', max(1, self.updates // self.evaluations)),
        )
        if self.measures_kl:  # a fifth of an update, and `measures` has the KL at the end
            changes = (*changes, ('loss.measure_kl', False))
        folder = workdir / variant.replace(' ', '_') / seed
        return Run(self.config, variant, changes, seed, folder, workdir / 'text', tuple(extra))


def loaded(config: str, variant: Variant, extra: Sequence[str]) -> ConfigDict:
    """The complete configuration of a variant's runs, but for learning rate and length.

    Args:
      extra: arguments `--config.KEY=VALUE` of every run.

    Raises:
      ValueError: the parts do not fit together.
    """
    found = configured(with_method(config, variant.method), extra)
    found.update_from_flattened_dict(dict(variant.changes))
    validate(found)
    return found


@functools.cache
def _dense_budget(config: str, extra: tuple[str, ...]) -> float:
    dense = loaded(config, VARIANTS[DENSE], extra)
    return DENSE_UPDATES * samples(dense) * cost(dense).nfe


def budget_of(config: str, extra: Sequence[str]) -> float:
    """Network evaluations of a run: those of DENSE_UPDATES updates with dense credit."""
    return _dense_budget(config, tuple(extra))


def with_methods(names: Iterable[str]) -> list[str]:
    """The names, with the method of every control before it, whose learning rate it takes."""
    of = lambda name: VARIANTS[name].method if name in VARIANTS else name
    return list(dict.fromkeys(each for name in names for each in (of(name), name)))


def entries(
    config: str, names: Iterable[str], budget: float, extra: Sequence[str]
) -> tuple[list[Entry], dict[str, str]]:
    """The variants that `config` can train, and name -> reason for those that it cannot.

    Raises:
      ValueError: an unknown name.
    """
    found, refused = [], {}
    for name in names:
        if name not in VARIANTS:
            raise ValueError(
                f'--methods={name} is not known; choose from {", ".join(VARIANTS)}, or all'
            )
        try:
            found.append(_entry(config, name, budget, tuple(extra)))
        except (ValueError, FileNotFoundError) as error:
            refused[name] = str(error)
            logging.warning('%s is left out: %s', name, error)
    return found, refused


@functools.cache  # a plan takes a second to make
def _entry(config: str, name: str, budget: float, extra: tuple[str, ...]) -> Entry:
    variant = VARIANTS[name]
    complete = loaded(config, variant, extra)
    for key in FILES:
        file = dotted(complete.to_dict()).get(key)
        if file and not pathlib.Path(file).is_file():
            raise FileNotFoundError(
                f'{key}={file}: there is no such file in {pathlib.Path.cwd()}; docs/methods.md '
                'says which command makes it'
            )
    counted, per_update = cost(complete), samples(complete)
    measures_kl = complete.loss.measure_kl
    complete.loss.measure_kl = False  # as in the runs
    return Entry(
        name,
        with_method(config, variant.method),
        tuple(variant.changes.items()),
        counted,
        per_update,
        updates_within(budget, counted.nfe * per_update),
        complete.optim.learning_rate,
        updating(complete),
        variant.evaluations,
        measures_kl,
        before(complete),
    )


def searches(found: Sequence[Entry], workdir: pathlib.Path, extra: Sequence[str]) -> list[Run]:
    """The trainings that choose the learning rates; controls take their method's."""
    methods = [entry for entry in found if VARIANTS[entry.name].method == entry.name]
    return [e.run(rate, RATE_SEED, workdir, extra) for e in methods for rate in RATES]


def rates(records: Records, budget: float) -> dict[str, dict[float, float]]:
    """Method -> rate -> mean height of its curve up to the budget, of the finished searches."""
    found: dict[str, dict[float, float]] = {}
    for (variant, seed), rows in records.evaluations.items():
        name, _, rate = variant.partition(' x')
        if seed == RATE_SEED and rate:
            spent = min(budget, rows[-1]['nfe'])
            found.setdefault(name, {})[float(rate)] = mean_to(rows, 'nfe', spent)
    return found


def best_rates(searched: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
    """Method -> the rate with the highest curve, where all RATES were tried."""
    return {
        name: max(of, key=of.__getitem__) for name, of in searched.items() if set(of) >= set(RATES)
    }


def finals(
    found: Sequence[Entry],
    chosen: Mapping[str, float],
    seeds: Sequence[str],
    workdir: pathlib.Path,
    extra: Sequence[str],
) -> list[Run]:
    """The trainings of the table, seed by seed, so that the finished part can be compared."""
    return [
        entry.run(chosen[method], seed, workdir, extra)
        for seed in seeds
        for entry in found
        if (method := VARIANTS[entry.name].method) in chosen
    ]
