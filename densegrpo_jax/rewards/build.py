"""Rewards from a config."""

import inspect
from collections.abc import Callable

from densegrpo_jax.rewards.base import Reward
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.rewards.geneval import GenevalReward
from densegrpo_jax.rewards.jpeg import JpegReward
from densegrpo_jax.rewards.ocr import OcrReward

PLANNED = ('pickscore',)  # named by shipped configurations, not written yet
REWARDS: dict[str, Callable[..., Reward]] = {'ocr': OcrReward, 'jpeg': JpegReward, 'geneval': GenevalReward}


def build_reward(spec) -> CompositeReward:
    """The weighted sum that a config describes, such as {'ocr': {'weight': 1.0, 'mode': 'recognise'}, 'jpeg': {'weight': 0.1}}.

    Args:
      spec: dict or ConfigDict, reward name -> options; `weight` (1.0 if absent) is the sum's, the rest the reward's own.

    Raises:
      ValueError: an unknown reward or option (the message lists the known ones), or a value out of range.
    """
    parts = []
    for name, options in spec.items():
        if name in PLANNED:
            raise ValueError(f'reward {name!r} is not in this version of the package; available: {", ".join(REWARDS)}')
        if name not in REWARDS:
            raise ValueError(f'unknown reward {name!r}; known rewards: {", ".join(REWARDS)}')
        known = [key for key in inspect.signature(REWARDS[name]).parameters if not key.startswith('make_')]
        options = dict(options.items())
        weight = options.pop('weight', 1.0)
        if unknown := [key for key in options if key not in known]:
            raise ValueError(f'reward {name!r} has no option {unknown[0]!r}; known options: {", ".join(["weight", *known])}')
        parts.append((REWARDS[name](**options), float(weight)))
    return CompositeReward(parts)
