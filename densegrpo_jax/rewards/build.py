"""Rewards from a config."""

import importlib
import inspect
from collections.abc import Callable

from densegrpo_jax.rewards.base import Reward
from densegrpo_jax.rewards.composite import CompositeReward

# Name in a config -> the reward, or 'module:Class' of this package, which is imported when a config asks for it: some need OpenCV or jax.
REWARDS: dict[str, str | Callable[..., Reward]] = {
    'ocr': 'ocr:OcrReward', 'jpeg': 'jpeg:JpegReward', 'geneval': 'geneval:GenevalReward', 'remote': 'remote:RemoteReward',
    'judge': 'judge:JudgeReward', 'shapes': 'shapes:ShapesReward', 'preference': 'preference:PreferenceReward',
    'clipscore': 'clip_rewards:ClipScoreReward', 'pickscore': 'clip_rewards:PickScoreReward', 'hpsv2': 'clip_rewards:Hpsv2Reward',
    'aesthetic': 'aesthetic:AestheticReward',
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
        reward = _resolve(REWARDS[kind])
        known = [key for key in inspect.signature(reward).parameters if not key.startswith('make_')]
        weight = options.pop('weight', 1.0)
        if unknown := [key for key in options if key not in known]:
            raise ValueError(f'reward {name!r} has no option {unknown[0]!r}; known options: {", ".join(["weight", "kind", *known])}')
        parts.append((reward(**options), float(weight)))
    return CompositeReward(parts)


def _resolve(reward: str | Callable[..., Reward]) -> Callable[..., Reward]:
    if not isinstance(reward, str):
        return reward
    module, _, name = reward.partition(':')
    return getattr(importlib.import_module(f'densegrpo_jax.rewards.{module}'), name)
