"""Rewards from a config."""

import inspect
from collections.abc import Callable

from densegrpo_jax.rewards.aesthetic import AestheticReward
from densegrpo_jax.rewards.base import Reward
from densegrpo_jax.rewards.clip_rewards import ClipScoreReward, Hpsv2Reward, PickScoreReward
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.rewards.geneval import GenevalReward
from densegrpo_jax.rewards.jpeg import JpegReward
from densegrpo_jax.rewards.judge import JudgeReward
from densegrpo_jax.rewards.ocr import OcrReward
from densegrpo_jax.rewards.preference import PreferenceReward
from densegrpo_jax.rewards.remote import RemoteReward
from densegrpo_jax.rewards.shapes import ShapesReward

REWARDS: dict[str, Callable[..., Reward]] = {
    'ocr': OcrReward, 'jpeg': JpegReward, 'geneval': GenevalReward, 'remote': RemoteReward, 'judge': JudgeReward,
    'shapes': ShapesReward, 'preference': PreferenceReward,
    'clipscore': ClipScoreReward, 'pickscore': PickScoreReward, 'hpsv2': Hpsv2Reward, 'aesthetic': AestheticReward,
}  # fmt: skip


def build_reward(spec) -> CompositeReward:
    """The weighted sum that a config describes, such as {'ocr': {'weight': 1.0, 'mode': 'recognise'}, 'jpeg': {'weight': 0.1}}.

    Args:
      spec: dict or ConfigDict, reward name -> options; `weight` (1.0 if absent) is the sum's, the rest the reward's own. Where a reward
        occurs twice, such as two sets of servers, keys are free and `kind` names the reward: {'deqa': {'kind': 'remote', ...}}.

    Raises:
      ValueError: an unknown reward or option (the message lists the known ones), or a value out of range.
    """
    parts = []
    for name, options in spec.items():
        options = dict(options.items())
        kind = options.pop('kind', name)
        if kind not in REWARDS:
            raise ValueError(f'unknown reward {kind!r}; known rewards: {", ".join(REWARDS)}')
        known = [key for key in inspect.signature(REWARDS[kind]).parameters if not key.startswith('make_')]
        weight = options.pop('weight', 1.0)
        if unknown := [key for key in options if key not in known]:
            raise ValueError(f'reward {name!r} has no option {unknown[0]!r}; known options: {", ".join(["weight", "kind", *known])}')
        parts.append((REWARDS[kind](**options), float(weight)))
    return CompositeReward(parts)
