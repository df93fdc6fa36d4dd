"""Rewards: pictures, prompts and metadata in; named scores and a validity mask out."""

from densegrpo_jax.rewards.aesthetic import AestheticReward
from densegrpo_jax.rewards.base import Reward, RewardError, RewardsGone, Scores, to_uint8
from densegrpo_jax.rewards.build import REWARDS, build_reward
from densegrpo_jax.rewards.clip_rewards import ClipScoreReward, Hpsv2Reward, PickScoreReward
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.rewards.geneval import GenevalReward
from densegrpo_jax.rewards.jpeg import JpegReward
from densegrpo_jax.rewards.ocr import OcrReward, ocr_score
from densegrpo_jax.rewards.scorer import Scorer, ScorerCounts

__all__ = [
    'REWARDS', 'AestheticReward', 'ClipScoreReward', 'CompositeReward', 'GenevalReward', 'Hpsv2Reward', 'JpegReward', 'OcrReward',
    'PickScoreReward', 'Reward', 'RewardError', 'RewardsGone', 'Scorer', 'ScorerCounts', 'Scores', 'build_reward', 'ocr_score', 'to_uint8',
]  # fmt: skip
