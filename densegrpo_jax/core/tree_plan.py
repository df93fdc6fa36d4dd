"""The plan of trees: trajectories that begin together and split at chosen steps (BranchGRPO,
arXiv 2509.06040).

The samples of a tree are its leaves, adjacent in the batch. Until they split they are one node:
same latents, same noise, one network evaluation. The value of a node is the mean reward of its
leaves, and the credit of the transition into it.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from densegrpo_jax.core.masks import StepMasks
from densegrpo_jax.core.rollout_plan import RolloutPlan, trajectory_plan


def leaves_together(num_steps: int, splits: Sequence[int], leaves: int) -> tuple[int, ...]:
    """[T] the number of leaves below one node after the step from grid index k.

    Every split but the first is in two; the first is in as many as are then left, which are two in
    the paper, where `leaves` = 2^(number of splits).

    Raises:
        ValueError: splits are not increasing steps of 0 ... T-1, or do not divide the leaves.
    """
    if (
        not splits
        or list(splits) != sorted(set(splits))
        or not 0 <= splits[0] <= splits[-1] < num_steps
    ):
        raise ValueError(
            f'splits are {tuple(splits)}; expected one or more increasing steps of 0 ... '
            f'{num_steps - 1}'
        )
    if leaves % 2 ** len(splits):
        raise ValueError(
            f'{len(splits)} splits in two need a multiple of {2 ** len(splits)} leaves, and a tree '
            f'has {leaves}'
        )
    done = np.searchsorted(splits, np.arange(num_steps), side='right')
    return tuple(leaves if n == 0 else 2 ** (len(splits) - int(n)) for n in done)


def tree_plan(
    masks: StepMasks, splits: Sequence[int], leaves: int, split_noise: float = 4.0
) -> RolloutPlan:
    """One tree of a prompt and its leaves' images.

    Args:
        masks: of T transitions. splits: see `leaves_together`. leaves: of a tree, which share their
            initial noise.
        split_noise: b in the noise (xi + b eta) / sqrt(1 + b^2) of a child, xi of all children of
            its parent and eta its own; of variance 1.

    Returns:
        RolloutPlan of a trajectory for each leaf; per leaf it takes the sum over k of
        1 / (leaves that share state k) evaluations, and one image.

    Raises:
        ValueError: see `leaves_together`; or a split where no noise is added.
    """
    together = leaves_together(len(masks.stochastic), splits, leaves)
    if silent := [k for k in splits if not masks.stochastic[k]]:
        raise ValueError(
            f'the transition from state {silent[0]} adds no noise, so a tree cannot split there: '
            f'splits {tuple(splits)}'
        )
    plan = trajectory_plan(masks)
    return plan._replace(
        together=together, copies=(leaves, *together[:-1]), split_noise=split_noise
    )


def node_means(
    values: Float[ArrayLike, 'T B'], together: Sequence[int], used: Bool[ArrayLike, 'B']
) -> Float[Array, 'T B']:
    """The value of the node that each sample passes through at each step: the mean over its leaves.

    Args:
        values: of the leaves, such as their rewards.
        together: [T] leaves of a node, `RolloutPlan.together`.
        used: the others are left out; a node without any keeps its values.
    """
    values, used = jnp.asarray(values), jnp.asarray(used)

    def mean(row, width):
        of_node = lambda a: a.reshape(-1, width).sum(1)
        total = of_node(jnp.where(used, row, 0))
        count = of_node(used.astype(row.dtype))
        means = jnp.repeat(total / jnp.maximum(count, 1), width)
        return jnp.where(jnp.repeat(count, width) > 0, means, row)

    return jnp.stack(
        [row if width == 1 else mean(row, width) for row, width in zip(values, together)]
    )
