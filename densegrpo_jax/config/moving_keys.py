"""Keys of what changes between iterations: trained transitions, and samples of a prompt."""

from __future__ import annotations

from densegrpo_jax.config.key import Key, choice, number, positive, switch, whole
from densegrpo_jax.core.moving_steps import STAY_RULES

# The transitions beside the chosen ones: deterministic, or noisy and not trained.
ENTROPY = 'entropy'
SILENT_BESIDE = ('window', 'random_window', 'random', ENTROPY)
# The keys that each choice reads.
HEEDED = {
    'none': (),
    'window': ('moving.width', 'moving.stay', 'moving.stay_rule', 'moving.stay_least'),
    'random_window': ('moving.width',),
    'random': ('moving.width',),
    ENTROPY: ('moving.width', 'moving.smooth'),
    'subset': ('moving.fraction',),
}
STAY_HEEDED = {rule: ('moving.stay_least',) if rule == 'linear' else () for rule in STAY_RULES}
CHOICES = ('none', *SILENT_BESIDE, 'subset')

MOVING: dict[str, Key] = {
    'steps': choice(
        'none',
        "Which transitions are trained in an iteration: 'none': always all of them; 'window': "
        'moving.width of them, and noise only there, moving along the grid (MixGRPO); '
        "'random_window'; 'random': moving.width of them anywhere, and noise only there; "
        "'entropy': those where the attention has the highest entropy (AEGPO, reconstructed); "
        "'subset': the part moving.fraction at random, with noise everywhere (DanceGRPO).",
        CHOICES,
    ),
    'width': whole(4, 'How many, except in a subset.', 1, 1000),
    'stay': whole(25, "'window': iterations at a place."),
    'stay_rule': choice(
        'constant',
        "How moving.stay changes along the grid: 'linear' falls to moving.stay_least, "
        "'exponential' after the 14th place.",
        STAY_RULES,
    ),
    'stay_least': whole(1, "'linear': iterations at the last place."),
    'smooth': number(
        0.9,
        "'entropy': weight of the past in the moving average of the entropies over iterations.",
        0,
        1,
        below=True,
    ),
    'fraction': number(0.6, "'subset': part of the transitions, rounded down.", 0, 1, above=True),
}

BUDGET_HEEDED = {
    'none': (),
    ENTROPY: ('budget.ratio', 'budget.warmup', 'budget.relative'),
    'random': ('budget.ratio', 'budget.warmup'),
}

BUDGET: dict[str, Key] = {
    'by': choice(
        'none',
        "Groups of two sizes, rollout.group on average, half of an iteration's prompts each. The "
        'larger ones go by '
        "'entropy' to prompts on which the policy's attention has moved most from the base model's "
        "(AEGPO, reconstructed), by 'random' to any (the control).",
        BUDGET_HEEDED,
    ),
    'ratio': positive(
        2.0, 'The larger group over the smaller one: at rollout.group=12, 2 is 16 to 8.'
    ),
    'warmup': whole(5, 'Iterations with equal groups first.', 0),
    'relative': switch(False, "'entropy': a change counts in parts of the base model's entropy."),
}

# Keys -> values of trajectories whose trained steps do not move, in groups of one size.
UNMOVED = {
    **{f'moving.{name}': key.default for name, key in MOVING.items()},
    **{f'budget.{name}': key.default for name, key in BUDGET.items()},
}


def budget_sizes(group: int, ratio: float) -> tuple[int, int]:
    """The smaller and the larger group of a mean size, the larger `ratio` times the smaller up to
    rounding.
    """
    low = round(2 * group / (1 + ratio))
    return low, 2 * group - low
