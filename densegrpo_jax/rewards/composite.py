"""Several rewards as one: the weighted sum of their raw scores, each also returned under its own
name.
"""

import math
from collections.abc import Sequence

import numpy as np

from densegrpo_jax.rewards.base import Reward, RewardError, Scores, check_scores, interrupt
from densegrpo_jax.runtime.named import failure

TOTAL = 'total'
LARGEST = 1e15  # of a total: its square, in a variance over a batch, stays far below float32's end

# Names that no score may have -> what has them: the score would take that one's place in the log.
TAKEN = {
    TOTAL: 'the weighted sum of the rewards',
    'group_best': 'the metric train/reward_group_best',
    **{name: f'the metric guard/{name}' for name in ('brake', 'fallen')},
    **{
        name: f'the metric eval/{name}'
        for name in ('images', 'seconds', 'since', 'standard_error', 'valid_share')
    },
}


def check_score_names(reward: Reward) -> None:
    """Raises ValueError if a score has a name that the log gives to something else (`TAKEN`)."""
    for name in reward.names:
        if name in TAKEN:
            raise ValueError(
                f'reward {reward.name!r} has a score {name!r}, which is the name of {TAKEN[name]}: '
                'rename the score; of a remote reward, the option `prefix` is put before its names'
            )


class CompositeReward:
    """total = sum_i weight_i * score_i, where score_i is the first of reward i's scores.

    Sums raw scores, so weights must make up for different scales; a sum beyond LARGEST is a
    RewardError. An image is valid if it is valid for every reward of non-zero weight. The scores
    of the other rewards, named in `log_only`, may be NaN in a valid image: a score of weight 0 does
    not decide validity.

    `weights` maps the names of the score_i of non-zero weight to the weight_i, for other ways of
    combining them.

    Args:
      parts: (reward, weight) pairs; a weight may be negative, and 0 only logs the score.

    Raises:
      ValueError: no part, only zero weights, a weight that is not finite, two scores with one name,
        or a score with a name of `check_score_names`.
    """

    name = 'composite'

    def __init__(self, parts: Sequence[tuple[Reward, float]]):
        if not any(weight for _, weight in parts):
            raise ValueError(
                'the reward is a sum over no part of non-zero weight; give at least one'
            )
        for reward, weight in parts:
            if not math.isfinite(weight):
                raise ValueError(
                    f'the weight of reward {reward.name!r} is {weight}; expected a finite number'
                )
            check_score_names(reward)
        names = [TOTAL, *(name for reward, _ in parts for name in reward.names)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f'score names {sorted(twice)} occur twice among the parts of the reward; names '
                'must differ: the option `prefix` of a remote reward is put before its names'
            )
        self.parts = tuple(parts)
        self.names = tuple(names)
        self.weights = {reward.names[0]: weight for reward, weight in parts if weight}
        self.log_only = frozenset(
            name for reward, weight in parts if not weight for name in reward.names
        )
        ends = [sorted(weight * end for end in reward.range) for reward, weight in parts if weight]
        self.range = (sum(low for low, _ in ends), sum(high for _, high in ends))

    @property
    def batch_size(self) -> int | None:
        """The largest of the parts that declare one: a part without one loses threads by it, but
        smaller calls would cost an accelerator whole batches.
        """
        return max(getattr(part, 'batch_size', None) or 0 for part, _ in self.parts) or None

    def check(self, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
        """Raises ValueError, naming the prompt, if a part cannot score it."""
        for reward, _ in self.parts:
            reward.check(prompts, metadata)

    def interrupt(self) -> None:
        """Implements `Interruptible`."""
        interrupt(reward for reward, _ in self.parts)

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]
    ) -> Scores:
        """Implements `Reward`."""
        total, valid, values = np.zeros(len(images), np.float32), np.ones(len(images), bool), {}
        for reward, weight in self.parts:
            try:
                scores = reward(images, prompts, metadata)
            except RewardError:
                raise
            except Exception as error:  # else the caller could not tell which reward failed
                raise RewardError(f'reward {reward.name!r} failed: {failure(error)}') from error
            check_scores(scores, reward, len(images))
            values.update(
                {
                    name: np.where(scores.valid, value, np.float32(np.nan))
                    for name, value in scores.values.items()
                }
            )
            if weight:
                valid &= scores.valid
                with np.errstate(over='ignore'):  # an error below
                    total += np.float32(weight) * scores.values[reward.names[0]]
        if (beyond := valid & ~(np.abs(total) <= LARGEST)).any():
            raise RewardError(
                f'the weighted sum of the rewards is {total[beyond][0]:g} for an image; expected '
                f'at most {LARGEST:g} in size, beyond which float32 has no variance: choose '
                f'smaller weights than {self.weights}'
            )
        return Scores(
            {
                name: np.where(valid, value, np.float32(np.nan))
                for name, value in {TOTAL: total, **values}.items()
            },
            valid,
        )
