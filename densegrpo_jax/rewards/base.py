"""What a reward is: uint8 pictures, prompts and metadata in; named scores and a validity mask
out.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class RewardError(RuntimeError):
    """Scores could not be computed and the caller must not go on as if they had been."""


class RewardsGone(RewardError):
    """What computes the scores has been out of reach for longer than the configured time; the same
    run may go on once it is back.
    """


class Scores(NamedTuple):
    """Scores of N pictures.

    values: name -> float32 [N]; NaN wherever `valid` is False, so that an unscored picture cannot
    pass for a 0. valid: bool [N]; False where any score of the picture could not be computed, but
    for those that a sum only logs: NaN by themselves.
    """

    values: dict[str, np.ndarray]
    valid: np.ndarray


class Reward(Protocol):
    """A reward model. Instances may be called from several threads at once.

    name: short name, the key of its options in a config.
    names: names of the scores it returns; names[0] is the one that is trained on, the others are
    only logged. range: (lowest, highest) possible value of names[0]; +-inf where unbounded.
    device: 'host' or 'accelerator', where it computes.
    needs_metadata: True if prompts alone are not enough.
    """

    name: str
    names: tuple[str, ...]
    range: tuple[float, float]
    device: str
    needs_metadata: bool

    def check(self, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
        """Raises ValueError, naming the prompt, if one of them cannot be scored. Cheap: call it
        before a run starts.
        """

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]
    ) -> Scores:
        """Scores images uint8 [N, H, W, 3] (RGB) against prompts [N] with metadata [N]."""


@runtime_checkable
class Interruptible(Protocol):
    """A reward whose calls may wait for long, for servers that are not there."""

    def interrupt(self) -> None:
        """Ends the calls under way in other threads soon, with a RewardError, and all later
        ones.
        """


def interrupt(rewards: Iterable) -> None:
    """Interrupts those of `rewards` that can be."""
    for reward in rewards:
        if isinstance(reward, Interruptible):
            reward.interrupt()


def fingerprints(rewards: Iterable) -> dict[str, str]:
    """names[0] -> what its servers call it, of rewards and parts of sums that other machines
    compute; asks servers not yet asked.
    """
    found = {}
    for reward in rewards:
        if hasattr(type(reward), 'fingerprint'):
            found[reward.names[0]] = reward.fingerprint
        found |= fingerprints(part for part, _ in getattr(reward, 'parts', ()))
    return found


def at_least_one(owner: str, **options: int) -> None:
    """Raises ValueError, naming OWNER.OPTION, if one of them is below 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f'{owner}.{name} is {value}; expected at least 1')


def check_batch(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
    """Raises TypeError or ValueError unless images are uint8 [N, H, W, 3] with N prompts and N
    metadata dicts.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = f'{type(images).__name__} of {getattr(images, "dtype", "no dtype")}'
        raise TypeError(
            f'images: expected a numpy array of uint8, found {found}; convert model output with '
            'rewards.to_uint8'
        )
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f'images: expected shape [N, H, W, 3], found {images.shape}')
    if not len(images) == len(prompts) == len(metadata):
        raise ValueError(
            f'{len(images)} images, {len(prompts)} prompts and {len(metadata)} metadata: expected '
            'equal numbers'
        )


def check_scores(scores: Scores, reward: Reward, count: int) -> None:
    """Raises RewardError unless `scores` are what `reward` declares, for `count` pictures, and
    finite where valid.

    Those in the reward's `log_only`, where it has that attribute (`CompositeReward`), may be NaN
    there.
    """
    if set(scores.values) != set(reward.names):
        raise RewardError(
            f'reward {reward.name!r} returned scores {sorted(scores.values)}; it declares '
            f'{sorted(reward.names)}'
        )
    if scores.valid.shape != (count,) or scores.valid.dtype != np.bool_:
        raise RewardError(
            f'reward {reward.name!r}: valid is {scores.valid.dtype}{scores.valid.shape}; expected '
            f'bool({count},)'
        )
    for name, value in scores.values.items():
        if value.shape != (count,):
            raise RewardError(
                f'reward {reward.name!r}: score {name!r} has shape {value.shape}; expected '
                f'({count},)'
            )
        known = value[scores.valid]
        if name in getattr(reward, 'log_only', ()):
            known = known[~np.isnan(known)]
        if not np.isfinite(known).all():
            raise RewardError(
                f'reward {reward.name!r}: score {name!r} is not finite but marked valid; mark it '
                'invalid'
            )


def to_uint8(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-bit pictures from model output, rounded as Diffusers does: round(255 * clip(x / 2 + 1/2, 0,
    1)).

    Args:
      images: float [N, H, W, 3] in [-1, 1].

    Returns:
      uint8 [N, H, W, 3], and bool [N]: False where a picture holds NaN or infinity (drawn black);
      `&` it into Scores.valid.
    """
    images = np.asarray(images, np.float32)
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    images = np.where(finite[:, None, None, None], images, -1.0)
    return np.round(np.clip(images / 2 + 0.5, 0, 1) * 255).astype(np.uint8), finite
