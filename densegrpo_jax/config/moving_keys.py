"""Keys of trained transitions that change between iterations."""

from __future__ import annotations

from densegrpo_jax.config.key import Key, choice, number, whole
from densegrpo_jax.core.moving_steps import STAY_RULES

# The transitions beside the chosen ones: deterministic, or noisy and not trained.
SILENT_BESIDE = ('window', 'random_window')
CHOICES = ('none', *SILENT_BESIDE, 'subset')

MOVING: dict[str, Key] = {
    'steps': choice(
        'none',
        "Which transitions are trained in an iteration: 'none' moves, all are; 'window': "
        'moving.width of them, and noise only there, moving along the grid (MixGRPO); '
        "'random_window'; 'subset': the part moving.fraction at random, with noise everywhere "
        '(DanceGRPO).',
        CHOICES,
    ),
    'width': whole(4, "'window', 'random_window': transitions in it.", 1, 1000),
    'stay': whole(25, "'window': iterations at a place."),
    'stay_rule': choice(
        'constant',
        "How moving.stay changes along the grid: 'linear' falls to moving.stay_least, "
        "'exponential' from the 14th place on.",
        STAY_RULES,
    ),
    'stay_least': whole(1, "'linear': iterations at the last place."),
    'fraction': number(0.6, "'subset': part of the transitions, rounded down.", 0, 1, above=True),
}
