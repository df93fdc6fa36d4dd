"""Rewards: images, prompts and metadata in; named scores and a validity mask out."""

import importlib

_FACE = {
    'AestheticReward': 'local.aesthetic',
    'ClipScoreReward': 'local.clip_rewards',
    'CompositeReward': 'composite',
    'GenevalReward': 'local.geneval',
    'Hpsv2Reward': 'local.clip_rewards',
    'JpegReward': 'local.jpeg',
    'OcrReward': 'local.ocr',
    'PickScoreReward': 'local.clip_rewards',
    'REWARDS': 'build',
    'Reward': 'base',
    'RewardError': 'base',
    'RewardsGone': 'base',
    'Scorer': 'scorer',
    'ScorerCounts': 'scorer',
    'Scores': 'base',
    'build_reward': 'build',
    'ocr_score': 'local.ocr',
    'to_uint8': 'base',
}
__all__ = sorted(_FACE)


def __getattr__(name):
    # Resolved on first use: OpenCV and CLIP take seconds to import, and a run that reads text needs
    # neither.
    if name not in _FACE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_FACE[name]}'), name)


def __dir__():
    return sorted([*globals(), *__all__])
