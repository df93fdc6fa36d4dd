"""The claim of each figure of the paper, and the runs that test it.

A run is a variant (changes to one base configuration) with a seed. Figures share variants, so the
runs of one figure serve the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# in a variant: the noise table that `densegrpo_jax.calibrate` makes for the base configuration
PSI = '{psi}'

# Changes to the base configuration, which has dense credit, n = t and uniform noise a = 0.7.
VARIANTS: dict[str, dict[str, object]] = {
    'dense': {},
    'sparse': {'credit.rule': 'sparse'},
    'psi': {'noise.psi_path': PSI},
    'coca_to_go': {'credit.rule': 'coca_to_go'},
    'coca_share': {'credit.rule': 'coca_share'},
    'coca_to_go_signed': {'credit.rule': 'coca_to_go', 'credit.coca_signed': True},
    'coca_share_signed': {'credit.rule': 'coca_share', 'credit.coca_signed': True},
    'dense_baseline': {'credit.rule': 'dense_baseline'},
    'noise_0.5': {'rollout.level': 0.5},
    'noise_0.8': {'rollout.level': 0.8},
    'n_1': {'credit.completion_steps': 1},
    'n_2': {'credit.completion_steps': 2},
    'n_3': {'credit.completion_steps': 3},
    'every_2': {'credit.completion_every': 2},
    'gae_0.5': {'credit.rule': 'gae', 'credit.gae_lambda': 0.5},
    'gae_0.9': {'credit.rule': 'gae', 'credit.gae_lambda': 0.9},
    'gae_1': {'credit.rule': 'gae', 'credit.gae_lambda': 1.0},
    'std_group': {'credit.std': 'group'},
    'std_pooled': {'credit.std': 'pooled'},
    'dense_weighted': {'loss.noise_power': 1.0},
    'sparse_weighted': {'credit.rule': 'sparse', 'loss.noise_power': 1.0},
    'dense_weighted_2': {'loss.noise_power': 2.0},
    'sparse_weighted_2': {'credit.rule': 'sparse', 'loss.noise_power': 2.0},
}

# The basis of everything else: runs first, with all seeds.
GATE = ('dense', 'sparse', 'psi')


class Comparison(NamedTuple):
    """A part of a claim: in the mean of a run over its evaluations (see `statistics.summary`),
    `more` lies above `less`.
    """

    more: str
    less: str
    quantity: str = 'score'  # 'score' or 'kl'


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure made of training runs."""

    name: str
    title: str
    claim: str  # in words
    paper: str  # what the paper's figure shows
    comparisons: Sequence[Comparison]
    also: Sequence[str] = ()  # variants drawn without being part of the claim
    axes: Sequence[str] = ('updates', 'nfe')
    quantity: str = 'score'
    totals: bool = False  # a run in one number against its NFE, too

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants of the comparisons, then the others, each once."""
        compared = [name for c in self.comparisons for name in (c.more, c.less)]
        return tuple(dict.fromkeys([*compared, *self.also]))


FIGURES: Mapping[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure(
            '4',
            'Learning curves',
            'dense credit learns faster than CoCA, and CoCA faster than sparse credit',
            'Fig. 4: DenseGRPO above Flow-GRPO + CoCA above Flow-GRPO throughout, on three tasks',
            (
                Comparison('dense', 'sparse'),
                Comparison('dense', 'coca_to_go_signed'),
                Comparison('coca_to_go_signed', 'sparse'),
            ),
            also=('coca_share_signed', 'coca_to_go', 'coca_share'),
        ),
        Figure(
            '6a',
            'The dense reward',
            'the gain of a step is a better reward than the score after it, and that than the '
            'terminal score',
            'Fig. 6a: dense > dense-baseline > sparse',
            (Comparison('dense', 'dense_baseline'), Comparison('dense_baseline', 'sparse')),
        ),
        Figure(
            '6b',
            'The noise level',
            'calibrated noise learns faster than the uniform level, and that faster than sparse '
            'credit',
            'Fig. 6b: psi(t) > uniform a = 0.7 > Flow-GRPO; a = 0.5 explores too little, a = 0.8 '
            'unbalances the last steps',
            (Comparison('psi', 'dense'), Comparison('dense', 'sparse')),
            also=('noise_0.5', 'noise_0.8'),
        ),
        Figure(
            '6c',
            'Steps of a completion',
            'more completion steps learn faster: n = t above n = 2 above sparse credit above n = 1',
            'Fig. 6c: n = t > n = 2 > Flow-GRPO > n = 1',
            (Comparison('dense', 'n_2'), Comparison('n_2', 'sparse'), Comparison('sparse', 'n_1')),
            axes=('updates', 'nfe', 'seconds'),
        ),
        Figure(
            'cheaper',
            'Training with cheaper completions',
            'completions of three steps, or of every second state, learn faster than sparse '
            'credit still',
            'not in the paper, which stays with n = t',
            (Comparison('n_3', 'sparse'), Comparison('every_2', 'sparse')),
            also=('dense', 'n_2', 'n_1'),
            axes=('updates', 'nfe'),
            totals=True,
        ),
        Figure(
            '7',
            'Distance from the base',
            'dense credit moves a little farther from the base than sparse credit in the same '
            'number of updates',
            'Fig. 7: KL of DenseGRPO slightly above that of Flow-GRPO',
            (Comparison('dense', 'sparse', 'kl'),),
            axes=('updates',),
            quantity='kl',
        ),
        Figure(
            'lambda',
            'GAE(lambda) over the completions',
            "the paper's greedy end, lambda = 0, learns fastest",
            'not in the paper: it has lambda = 0 only',
            (
                Comparison('dense', 'gae_0.5'),
                Comparison('dense', 'gae_0.9'),
                Comparison('dense', 'gae_1'),
            ),
        ),
        Figure(
            'whitening',
            'What the gains are divided by',
            'the std over the batch at each step (Flow-GRPO) beats the std of the group (Eq. 10) '
            'and one std pooled over the steps',
            'not in the paper: Eq. 10 has the group',
            (Comparison('dense', 'std_group'), Comparison('dense', 'std_pooled')),
        ),
        Figure(
            'weights',
            'Transitions weighed by their noise',
            'weights by the square of the noise that a transition adds, with which all pull '
            'alike, help sparse and dense credit',
            'not in the paper, which weighs all transitions alike; TempFlow-GRPO weighs them by '
            'the noise itself',
            (Comparison('sparse_weighted_2', 'sparse'), Comparison('dense_weighted_2', 'dense')),
            also=('sparse_weighted', 'dense_weighted', 'coca_to_go_signed'),
        ),
    )
}


def select(names: Sequence[str], others: Sequence[str] = ()) -> list[str]:
    """The requested figure names in order; 'all' stands for all.

    Raises:
      ValueError: an unknown name.
    """
    known = [*FIGURES, *others]
    wanted = list(dict.fromkeys(known if 'all' in names else names))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f'--figure={",".join(unknown)} is not known; choose from {", ".join(known)}, or all'
        )
    return wanted
