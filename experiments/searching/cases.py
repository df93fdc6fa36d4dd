"""The searches: tasks, methods with their settings, budgets; and the papers' claims."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from densegrpo_jax.data.prompts import Prompt
from experiments.reproduction.statistics import Claim

BUDGETS = (60, 120, 240)  # network evaluations per prompt
SMALL = (6, 12, 24)  # best_of_n only: where it meets a trained policy's single image
BASE = 'base'  # the policy without training


class Task(NamedTuple):
    """A model with prompts and a reward.

    Attributes:
      config: file that the task starts from. reward, panel: replace the configuration's.
      metric: the score of the best image by which methods are compared; the search itself uses the
        reward's total.
      tag: prompts with this tag only; '': all.
    """

    title: str
    config: str
    reward: Mapping[str, Mapping]
    metric: str
    panel: Mapping[str, Mapping]
    tag: str = ''


_OCR = {'weight': 1.0, 'mode': 'recognise'}
TASKS: dict[str, Task] = {
    'ocr_smooth': Task(
        'Spelling, smooth reward',
        'configs/tiny_ocr.py',
        {'ocr': {**_OCR, 'smooth': 0.5}},
        'total',  # the best of ten images is mostly spelt right: 'ocr' alone tells no methods apart
        {'jpeg': {}},
    ),
    'shapes': Task(
        'Positions of shapes',
        'configs/tiny_geneval.py',
        {'shapes': {'weight': 1.0}},
        'shapes_correct',
        {'preference': {}},
        tag='position',
    ),
    'ocr': Task(
        'Spelling, plain reward',
        'configs/tiny_ocr.py',
        {'ocr': {**_OCR, 'smooth': 0.0}},
        'ocr',
        {'jpeg': {}},
    ),
}

# Changes to the defaults of `config.search`. best_of_n first: the others are compared with it.
METHODS: dict[str, dict[str, object]] = {
    'best_of_n': {'method': 'best_of_n'},
    'best_of_n_ode': {'method': 'best_of_n', 'kernel': 'ode'},
    'smc': {'method': 'smc'},
    'svdd': {'method': 'svdd'},
    'pg': {'method': 'pg'},
    'psi': {'method': 'psi'},
    'refine': {'method': 'refine'},
    'smc_max': {'method': 'smc', 'potential': 'max'},
    'svdd_10': {'method': 'svdd', 'candidates': 10},
    'pg_8': {'method': 'pg', 'particles': 8},
    'pg_backward': {'method': 'pg', 'backward': True},
    # proposals independent of the chain's state: the best of independent starts
    'psi_independent': {'method': 'psi', 'step_size': 4.0},
}
# On top of a trained policy, the cheaper half.
ON_POLICY = ('best_of_n', 'best_of_n_ode', 'smc', 'svdd', 'pg', 'refine')


class Case(NamedTuple):
    """One search of a task's prompts."""

    task: str
    policy: str  # BASE, or 'trained'
    method: str  # a key of METHODS
    budget: int

    def folder(self, workdir: pathlib.Path) -> pathlib.Path:
        return workdir / self.task / self.policy / self.method / str(self.budget)


def cases(tasks: Iterable[str], budgets: Sequence[int], trained: bool = False) -> Iterator[Case]:
    """All cases in the order in which they run: task by task, the largest budget first, so that the
    finished part of an interrupted sweep can be compared.

    Args:
      trained: includes the task 'ocr' with a trained policy.
    """
    for task in tasks:
        for budget in sorted(budgets, reverse=True):
            yield from (Case(task, BASE, method, budget) for method in METHODS)
        yield from (Case(task, BASE, 'best_of_n', budget) for budget in SMALL)
        if trained and task == 'ocr':
            for budget in sorted(budgets, reverse=True):
                yield from (Case(task, 'trained', method, budget) for method in ON_POLICY)


def chosen(task: Task, prompts: Iterable[Prompt], count: int) -> list[Prompt]:
    """The task's prompts: `count` of them, evenly spread over the held-out ones."""
    fitting = [p for p in prompts if not task.tag or p.metadata.get('tag') == task.tag]
    return [fitting[i * len(fitting) // count] for i in range(min(count, len(fitting)))]


class Comparison(NamedTuple):
    """Part of a claim: at a budget, `more` finds better images than `less`."""

    task: str
    more: str
    less: str
    budget: int


CLAIMS = (
    Claim(
        'PG-DLM (2507.08390)',
        'at the larger budgets particle Gibbs beats SMC, and SMC beats best-of-N',
        (
            Comparison('ocr_smooth', 'pg', 'smc', 240),
            Comparison('ocr_smooth', 'smc', 'best_of_n', 240),
        ),
    ),
    Claim(
        'PG-DLM (2507.08390)',
        'more passes pay better than more particles (K = 4 against K = 8)',
        (Comparison('ocr_smooth', 'pg', 'pg_8', 240),),
    ),
    Claim(
        'Psi-Sampler (2506.01320)',
        'a chain over first noise, then SMC, beats SMC from plain noise at every budget',
        tuple(Comparison('ocr_smooth', 'psi', 'smc', n) for n in BUDGETS),
    ),
    Claim(
        'Psi-Sampler (2506.01320)',
        'starts from a chain beat the best of independent starts at every budget',
        tuple(Comparison('ocr_smooth', 'psi', 'psi_independent', n) for n in BUDGETS),
    ),
    Claim(
        'RERD (2502.14944)',
        'at the larger budgets refinement beats one guided pass, where one pass rarely succeeds',
        tuple(Comparison('shapes', 'refine', 'svdd', n) for n in (120, 240)),
    ),
    Claim(
        'SVDD (2408.08252)',
        'choosing among candidates at every step beats best-of-N',
        tuple(Comparison(task, 'svdd', 'best_of_n', 240) for task in TASKS),
    ),
    Claim(
        'FK steering (2501.06848)',
        'the max potential beats the difference potential',
        (Comparison('ocr_smooth', 'smc_max', 'smc', 240),),
    ),
)
