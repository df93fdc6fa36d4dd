"""What the table compares: every method, and the controls that the claims of the papers need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from densegrpo_jax.config.methods import METHODS
from experiments.reproduction.statistics import Claim


class Variant(NamedTuple):
    """A method with changes of its own; it trains at the method's learning rate. evaluations: of
    a run, after the start.
    """

    method: str
    changes: Mapping[str, object] = {}
    evaluations: int = 6


CONTROLS: Mapping[str, Variant] = {
    # also E-GRPO without merging (plan.merge_tau=0), as long as both have chosen one learning rate
    'g2rpo_one_stride': Variant('g2rpo', {'plan.strides': (1,)}),
    'dense_one_step': Variant('dense_grpo', {'credit.completion_steps': 1}),
    # at Flow-GRPO's own learning rate; the method `flow_grpo_weighted` has its own
    'sparse_weighted': Variant('flow_grpo', {'loss.noise_power': 2.0}),
    # With T = 6 the method's five steps are whole completions.
    'stepwise_two': Variant('stepwise', {'credit.completion_steps': 2}),
    'aegpo_random': Variant('aegpo', {'moving.steps': 'random', 'budget.by': 'random'}),
    'stepwise_apart': Variant('stepwise', {'credit.centre': 'step', 'credit.std': 'group'}),
    'tp_grpo_gains': Variant('tp_grpo', {'credit.rule': 'dense'}),
    'g2rpo_whole': Variant('g2rpo', {'plan.kind': 'trajectory', 'credit.rule': 'sparse'}),
    'branch_apart': Variant('branch', {'plan.kind': 'trajectory'}),
    # a window of 4 leaves one of five transitions without noise, and one of 25 leaves 21
    'mix_narrow': Variant('mix', {'moving.width': 2}),
    'mix_everywhere': Variant('mix', {'moving.steps': 'none'}),
    'euphonium_plain': Variant(
        'euphonium', {'guide.source': 'none', 'guide.file': '', 'credit.process': 'none'}
    ),
}

VARIANTS: Mapping[str, Variant] = {
    **{name: Variant(name) for name in METHODS},
    # A sample's update counts as 50 evaluations, so that others have done the same work early.
    'nft': Variant('nft', evaluations=18),
    **CONTROLS,
}

DENSE, SPARSE = 'dense_grpo', 'flow_grpo'  # every method is compared with these


class Comparison(NamedTuple):
    """Part of a claim: with seeds in common, `more` lies above `less` in `quantity`."""

    more: str
    less: str
    # the mean height of the curve up to an equal cost on this axis, or SCORE@STEPS at the end
    quantity: str = 'nfe'


CLAIMS = (
    Claim(
        'DenseGRPO (2601.20218)',
        'dense credit learns faster than sparse credit and than CoCA, update by update',
        (Comparison(DENSE, SPARSE, 'updates'), Comparison(DENSE, 'coca', 'updates')),
    ),
    Claim(
        'not in the paper',
        'dense credit learns faster than sparse credit at equal evaluations of sampling',
        (Comparison(DENSE, SPARSE),),
    ),
    Claim(
        'not in the paper',
        'completions of one step, which cost no evaluation, learn faster than whole ones at equal '
        'evaluations of sampling',
        (Comparison('dense_one_step', DENSE),),
    ),
    Claim(
        'not in a paper',
        'weights that give all transitions gradients of equal size bring sparse credit, and '
        'credit by similarity, farther',
        (Comparison('sparse_weighted', SPARSE), Comparison('coca_weighted', 'coca')),
    ),
    Claim(
        'Stepwise-Flow-GRPO (2603.28718)',
        'completions of few steps learn faster than whole ones at equal evaluations of sampling; '
        'against DenseGRPO, which finds n = t best',
        (Comparison('stepwise_two', 'stepwise'),),
    ),
    Claim(
        'Stepwise-Flow-GRPO (2603.28718)',
        'one mean and one std over all gains of a group beat those of each step',
        (Comparison('stepwise', 'stepwise_apart'),),
    ),
    Claim(
        'TP-GRPO (2602.06422)',
        'turning points, credited with all that follows, learn faster than gains alone',
        (Comparison('tp_grpo', 'tp_grpo_gains', 'updates'),),
    ),
    Claim(
        'G2RPO (2510.01982)',
        'branches of single noisy steps learn faster than trajectories in which the same steps are '
        'noisy together',
        # of one granularity: what the second adds is the next claim
        (
            Comparison('g2rpo_one_stride', 'g2rpo_whole', 'updates'),
            Comparison('g2rpo_one_stride', 'g2rpo_whole'),
        ),
    ),
    Claim(
        'G2RPO (2510.01982)',
        'two granularities learn faster than one',
        (Comparison('g2rpo', 'g2rpo_one_stride', 'updates'),),
    ),
    Claim(
        'G2RPO (2510.01982)',
        'two granularities are better than one also away from the trained number of steps',
        tuple(Comparison('g2rpo', 'g2rpo_one_stride', f'total@{steps}') for steps in (3, 10)),
    ),
    Claim(
        'E-GRPO (2601.00423)',
        'merging steps of low entropy beats leaving them',
        (Comparison('e_grpo', 'g2rpo_one_stride', 'updates'),),
    ),
    Claim(
        'TempFlow-GRPO (2508.04324)',
        'branches weighed by their noise learn faster than Flow-GRPO',
        (Comparison('temp_flow', SPARSE),),
    ),
    Claim(
        'BranchGRPO (2509.06040)',
        'a tree learns faster than separate samples at equal evaluations of sampling',
        (Comparison('branch', 'branch_apart'),),
    ),
    Claim(
        'MixGRPO (2507.21802)',
        'noise in a moving window of two steps learns faster than noise everywhere',
        (Comparison('mix_narrow', 'mix_everywhere'),),
    ),
    Claim(
        'SDPO (2411.11727)',
        'scored predictions of three steps, with the pair loss, beat Flow-GRPO',
        (Comparison('sdpo', SPARSE),),
    ),
    Claim(
        'SDPO (2411.11727)',
        'it wins where few steps draw an image: three instead of six',
        (Comparison('sdpo', SPARSE, 'total@3'), Comparison('sdpo', DENSE, 'total@3')),
    ),
    Claim(
        'DiffusionNFT (2509.16117)',
        'the forward process learns faster than the reverse process, Flow-GRPO, at equal work',
        (Comparison('nft', SPARSE, 'work'),),
    ),
    Claim(
        'AEGPO (2602.06825), reconstructed',
        'steps and budgets by entropy learn faster than random ones of the same number and sizes',
        (Comparison('aegpo', 'aegpo_random'), Comparison('aegpo', 'aegpo_random', 'updates')),
    ),
    Claim(
        'Euphonium (2602.04928)',
        'drift along a process reward, and its advantage, learn faster than the same without them; '
        'what the process reward took is not counted',
        (Comparison('euphonium', 'euphonium_plain'),),
    ),
    Claim(
        'not in a paper',
        'regression on the winners of best-of-N learns faster than forward-process training at '
        'equal work',
        (Comparison('winners', 'nft', 'work'),),
    ),
)
