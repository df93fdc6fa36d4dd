"""The interface of a reward: uint8 images, prompts and metadata in; named scores and a validity
mask out.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from densegrpo_jax.runtime.reading import shown

log = logging.getLogger(__name__)


class RewardError(RuntimeError):
    """Scores could not be computed; the caller must not continue without them."""


class RewardsGone(RewardError):
    """The servers that compute the scores have been unreachable for longer than the configured
    time; the run may continue once they are back.
    """


class Scores(NamedTuple):
    """Scores of N images.

    values: name -> float32 [N]; NaN wherever `valid` is False, so that an unscored image cannot
    pass for a 0. valid: bool [N]; False if any score of the image could not be computed. Scores
    that a sum only logs do not count: they may be NaN in a valid image.
    """

    values: dict[str, np.ndarray]
    valid: np.ndarray


class Reward(Protocol):
    """A reward model. Instances may be called from several threads at once.

    name: short name, the key of its options in a config.
    names: names of the scores it returns; training uses names[0], the others are only logged.
    range: (lowest, highest) possible value of names[0]; +-inf if unbounded.
    batch_size (optional): images that it computes at once. A reward that declares it is given that
      many per call: smaller calls would only wait for each other, and leave its batches unfilled.
      The others get an equal share of a batch per thread.
    weight_files (optional): a method without arguments, the paths of its files of weights. Whoever
      continues a run or a table is refused where their contents have changed.
    """

    name: str
    names: tuple[str, ...]
    range: tuple[float, float]

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
    """A reward whose calls may wait long for servers that do not answer."""

    def interrupt(self) -> None:
        """Soon ends the running calls of other threads, and all later calls, with a RewardError."""


def interrupt(rewards: Iterable) -> None:
    """Interrupts those of `rewards` that are `Interruptible`."""
    for reward in rewards:
        if isinstance(reward, Interruptible):
            reward.interrupt()


def at_least_one(owner: str, **options: int) -> None:
    """Raises ValueError, naming OWNER.OPTION, if an option is below 1."""
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


def each_or_none(what: str, function: Callable, batch_size: int, *columns: Sequence) -> list:
    """Results of `function`, which takes rows of all columns and returns one result a row;
    `batch_size` rows at a time.

    If it raises, it gets each row of that batch alone, and a row for which it raises again has
    None. The log names these as images on which `what` failed.
    """
    found: list = []
    for start in range(0, len(columns[0]), batch_size):
        batch = [column[start : start + batch_size] for column in columns]
        try:
            found += function(*batch)
        except Exception:  # noqa: BLE001 (one image must not invalidate its neighbours)
            for i in range(len(batch[0])):
                try:
                    found.append(function(*(column[i : i + 1] for column in batch))[0])
                except Exception:
                    text = '%s failed on image %d of the batch; it stays without a score'
                    log.exception(text, what, start + i)
                    found.append(None)
    return found


def check_scores(scores: Any, reward: Reward, count: int, *, tell: bool = True) -> None:
    """Raises RewardError unless `scores` are `Scores` as `reward` declares them, for `count`
    images, and are finite where valid.

    Scores in the reward's `log_only`, if it has that attribute (`CompositeReward`), may be NaN in
    valid images. With `tell` the log says once if a score lies beyond the reward's range.
    """
    if not isinstance(scores, Scores) or not isinstance(scores.values, Mapping):
        raise RewardError(
            f'reward {reward.name!r} returned {shown(scores)}; expected rewards.Scores: values '
            '(name -> array [N]) and valid (bool [N])'
        )
    for what, array in [('valid', scores.valid), *scores.values.items()]:
        dtype = getattr(array, 'dtype', None)
        foreign = dtype is not None and not isinstance(dtype, np.dtype)
        if dtype is None or foreign or dtype.kind in 'OSUV':
            raise RewardError(
                f'reward {reward.name!r}: {what} is {shown(array)}; expected a numpy array, of '
                f'{"truth values" if array is scores.valid else "numbers"}'
                + (' (torch: .detach().cpu().numpy())' if foreign else '')
            )
    if set(scores.values) != set(reward.names):
        raise RewardError(
            f'reward {reward.name!r} returned scores {sorted(map(str, scores.values))}; it '
            f'declares {sorted(reward.names)}'
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
    if tell:
        _tell_beyond(reward, scores)


def _tell_beyond(reward: Reward, scores: Scores) -> None:
    """Says once of a reward that a score lies beyond the range that it declares."""
    low, high = getattr(reward, 'range', (-np.inf, np.inf))
    known = scores.values[reward.names[0]][scores.valid]
    slack = 1e-3 * (1 + min(abs(low), abs(high)))  # of rounding
    beyond = known[(known < low - slack) | (known > high + slack)]
    if len(beyond) and reward.name not in _TOLD:
        _TOLD.add(reward.name)
        log.warning(
            'reward %r: the score %r of an image is %g, beyond its range %g to %g; one of them is '
            'wrong',
            *(reward.name, reward.names[0], beyond[0], low, high),
        )


_TOLD: set[str] = set()  # names of rewards


def to_uint8(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-bit images from model output, rounded as Diffusers does: round(255 * clip(x / 2 + 1/2, 0,
    1)).

    Args:
      images: float [N, H, W, 3] in [-1, 1].

    Returns:
      uint8 [N, H, W, 3], and bool [N]: False where an image holds NaN or infinity (drawn black);
      `&` it into Scores.valid.
    """
    images = np.asarray(images, np.float32)
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    images = np.where(finite[:, None, None, None], images, -1.0)
    return np.round(np.clip(images / 2 + 0.5, 0, 1) * 255).astype(np.uint8), finite
