"""Rewards of a user's own, tried on gray images before anything large is loaded: they may do
anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from densegrpo_jax.rewards.base import Interruptible, Reward, RewardError, check_scores
from densegrpo_jax.runtime.named import failure

IMAGES = 2  # with one, a score without an axis of images could pass


def try_own(
    reward: Reward, prompts: Sequence[str], metadata: Sequence[dict], size: tuple[int, int]
) -> None:
    """Scores `IMAGES` gray images of `size`, (height, width), for the first of the prompts, by each
    part of `reward` that is no class of this package. One that may wait for servers is not tried.

    Raises:
      ValueError: a part fails, or does not return what it declares.
      RewardError: a part itself says that it has no scores now.
    """
    texts, of_texts = list(prompts[:IMAGES]), list(metadata[:IMAGES])
    images = np.full((len(texts), *size, 3), 128, np.uint8)
    for part in [each for each, _ in getattr(reward, 'parts', ())] or [reward]:
        ours = type(part).__module__.startswith('densegrpo_jax.')
        if ours or isinstance(part, Interruptible):
            continue
        try:
            scores = part(images, texts, of_texts)
        except RewardError:
            raise
        except Exception as error:  # noqa: BLE001 (somebody's code may raise anything)
            raise ValueError(
                f'reward {part.name!r} failed on gray images: {failure(error)}'
            ) from error
        try:
            check_scores(scores, part, len(texts))
        except RewardError as error:
            raise ValueError(f'{error} (tried on {len(texts)} gray images)') from error
