"""Chooses the prompts of a training step by a pure function of the step number, so that a resumed
run needs no generator state.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from densegrpo_jax.data.prompts import Prompt

T = TypeVar('T')


def prompts_for_step(prompts: Sequence[T], count: int, step: int, seed: int) -> list[T]:
    """The prompts of a training step, one group of samples each.

    Every epoch is a fresh seeded permutation cut into floor(len(prompts) / count) steps. The rest
    of the permutation is dropped, so a step never holds a prompt twice (two groups of one prompt
    would be one group).

    Args:
      prompts: the whole set.
      count: groups per step, over all processes.
      step: training step, counted from 0.
      seed: of the run.

    Returns:
      `count` prompts with different indices.

    Raises:
      ValueError: fewer prompts than a step needs, or a negative step.
    """
    if not 0 < count <= len(prompts):
        raise ValueError(
            f'{count} prompts per step: expected 1 to {len(prompts)}, the number of prompts in the '
            'set'
        )
    if step < 0:
        raise ValueError(f'step = {step}: expected 0 or more')
    epoch, position = divmod(step, len(prompts) // count)
    order = np.random.default_rng([seed, epoch]).permutation(len(prompts))
    return [prompts[int(i)] for i in order[position * count : (position + 1) * count]]


def some_prompts(prompts: Sequence[Prompt], count: int, seed: int, stream: int) -> list[Prompt]:
    """`count` rows in their order, or all if there are fewer; at random by the seed and the stream,
    as a set may be in some order. Rows of equal text are no independent ones for a statistic: a
    text comes a second time only if all others are there.
    """
    rng = np.random.default_rng([seed, stream])
    rows: dict[str, int] = {}
    again = [i for i, prompt in enumerate(prompts) if rows.setdefault(prompt.text, i) != i]
    picked: list[int] = []
    for among in ([*rows.values()], again):
        size = min(count - len(picked), len(among))
        picked += rng.choice(among, size=size, replace=False).tolist() if size else []
    return [prompts[i] for i in sorted(picked)]
