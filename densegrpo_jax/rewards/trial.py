"""Rewards of a user's own, tried on images of noise before anything large is loaded: they may do
anything.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from densegrpo_jax.rewards.base import Interruptible, Reward, RewardError, check_scores
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.runtime.named import failure

log = logging.getLogger(__name__)

IMAGES = 2  # with one, a score without an axis of images could pass


def try_own(
    reward: Reward, prompts: Sequence[str], metadata: Sequence[dict], size: tuple[int, int]
) -> None:
    """Scores `IMAGES` images of noise, of `size`, (height, width), for the first of the prompts, by
    each part of `reward` that is no class of this package. One that may wait for servers is not
    tried.

    Raises:
      ValueError: a part fails, or does not return what it declares.
      RewardError: a part itself says that it has no scores now.
    """
    texts, of_texts = list(prompts[:IMAGES]), list(metadata[:IMAGES])
    noise = np.random.default_rng(0).integers(0, 256, (len(texts), *size, 3), np.uint8)
    tried = f'{len(texts)} images of noise'
    for part in _parts(reward):
        ours = type(part).__module__.startswith('densegrpo_jax.')
        if ours or isinstance(part, Interruptible):
            continue
        log.info('trying reward %r on %s', part.name, tried)
        try:
            # copies: what it changes in place is not of the run
            scores = part(noise.copy(), [*texts], copy.deepcopy(of_texts))
        except RewardError:
            raise
        except (Exception, SystemExit) as error:  # somebody's code may raise anything
            raise ValueError(
                f'reward {part.name!r} failed on {tried}: {failure(error)}. For an image that it '
                'cannot score it must return valid False and NaN'
            ) from error
        try:
            check_scores(scores, part, len(texts), tell=False)
        except RewardError as error:
            raise ValueError(f'{error} (tried on {tried})') from error


def _parts(reward: Reward) -> Iterator[Reward]:
    """The rewards of a sum, also of sums in it."""
    if isinstance(reward, CompositeReward):
        for part, _ in reward.parts:
            yield from _parts(part)
    else:
        yield reward
