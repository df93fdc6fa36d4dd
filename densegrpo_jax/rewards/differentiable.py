"""Rewards that compute on the devices: a sum of them is a function of weights, images and text in
JAX, with a gradient in the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from densegrpo_jax.rewards.base import Reward
from densegrpo_jax.rewards.composite import CompositeReward

# What such a reward has beside `Reward`: scores(params, images [N, H, W, 3] in [0, 1], features) ->
# [N]; params() -> its weights; text_features(prompts) -> features [N, D].
FACE = ('scores', 'params', 'text_features')


def has_gradient(reward: CompositeReward) -> bool:
    """Whether every part of the sum with non-zero weight is differentiable in the images."""
    return not without_gradient(reward)


def without_gradient(reward: CompositeReward) -> list[str]:
    """The names of the parts with non-zero weight that compute elsewhere."""
    return [
        part.name for part, _ in _parts(reward) if not all(hasattr(part, name) for name in FACE)
    ]


def reward_params(reward: CompositeReward) -> list[Any]:
    """The weights of the parts, as `scores` takes them; reads them from their files."""
    return [part.params() for part, _ in _parts(reward)]


def text_features(reward: CompositeReward, prompts: Sequence[str]) -> list[np.ndarray]:
    """The features [N, D] of N prompts, for each part."""
    return [part.text_features(prompts) for part, _ in _parts(reward)]


def shapes(reward: CompositeReward, count: int) -> tuple[list[Any], list[Any]]:
    """jax.ShapeDtypeStruct of `reward_params` and of the `text_features` of `count` prompts; a
    reward with a method shapes(count) for them reads no weights.
    """
    import jax  # rewards on the host do without

    def held(part):
        if hasattr(part, 'shapes'):
            return part.shapes(count)
        return part.params(), part.text_features([''] * count)

    shape = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
    params, features = zip(*jax.tree.map(shape, [held(part) for part, _ in _parts(reward)]))
    return [*params], [*features]


def weights_bytes(reward: CompositeReward) -> int:
    """Bytes of `reward_params`, by their `shapes`."""
    import jax  # rewards on the host do without

    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(shapes(reward, 1)[0]))


def scores(reward: CompositeReward, params: Sequence[Any], images, features: Sequence[Any]):
    """float32 [N], the weighted sum for images [N, H, W, 3] in [0, 1]; pure."""
    return sum(
        weight * part.scores(given, images, text)
        for (part, weight), given, text in zip(_parts(reward), params, features)
    )


def _parts(reward: CompositeReward) -> list[tuple[Any | Reward, float]]:
    return [(part, weight) for part, weight in reward.parts if weight]
