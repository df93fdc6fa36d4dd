"""The flat record of a rollout that an update trains on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from densegrpo_jax.core.rollout import Rollout
from densegrpo_jax.core.sde_step import over

OUTCOME = 'outcome'  # the name of the advantage that comes from the reward of the images
PROCESS = 'process'  # of the one that comes from a process reward, a reward of noisy latents


class Transitions(NamedTuple):
    """M trained transitions, the batch of an update: M = (trained transitions per sample) * B, in
    the order of the rollout's N, then b.
    """

    x: Float[Array, 'M *latent']  # 0 where masked
    x_next: Float[Array, 'M *latent']  # likewise
    s: Float[Array, 'M']
    s_next: Float[Array, 'M']
    noise_level: Float[Array, 'M']
    std: Float[Array, 'M']
    log_prob: Float[Array, 'M']  # as the sampler stored it
    advantage: Mapping[str, Float[Array, 'M']]  # by name; a loss adds one surrogate for each
    weight: Float[Array, 'M']  # step weight of the policy loss
    mask: Bool[Array, 'M']  # False if std is 0 or the sample has no valid reward
    prompt_id: Int[Array, 'M']  # group (prompt) of the transition, 0 ... P-1
    mean_old: Any = None  # [M, *latent] of the policy that sampled, 0 where masked; if kept


def transitions(
    rollout: Rollout,
    advantages: Mapping[str, Float[ArrayLike, 'N B']],
    group_ids: Int[ArrayLike, 'B'],
    *,
    weight: Float[ArrayLike, 'N'] | Float[ArrayLike, 'N B'] | None = None,
    valid: Bool[ArrayLike, 'B'] | Bool[ArrayLike, 'N B'] | None = None,
    chosen: Int[ArrayLike, 'K'] | None = None,
) -> Transitions:
    """The trained transitions of a rollout as a flat record: a gather of rows.

    Args:
        rollout: N transitions of B samples.
        advantages: by name, such as {OUTCOME: values}.
        group_ids: the group of each sample, 0 ... P-1.
        weight: step weights; default 1.
        valid: False leaves the transition out of the loss.
        chosen: the transitions of the record, increasing; may be traced. None: those that the plan
            trains.

    Returns:
        Transitions, ordered by the rollout's N, then b (so `reshape(K, B, ...)` undoes it).
    """
    shape = rollout.std.shape
    found = {name: jnp.shape(a) for name, a in advantages.items()}
    if jnp.shape(group_ids) != shape[1:] or any(a != shape for a in found.values()):
        raise ValueError(
            f'advantages have shapes {found} and group_ids {jnp.shape(group_ids)}; the rollout has '
            f'(N, B) = {shape}'
        )
    table = rollout.plan.transitions
    trained = np.flatnonzero(table.trained) if chosen is None else jnp.asarray(chosen)

    def flat(per_row):
        """[N, B, ...] (or broadcastable [N, 1], [B]) -> [K * B, ...] over the trained rows."""
        per_row = jnp.broadcast_to(per_row, shape + jnp.shape(per_row)[2:])[trained]
        return per_row.reshape(-1, *per_row.shape[2:])

    mask = rollout.std > 0
    if valid is not None:
        mask = mask & valid
    mask = flat(mask)
    weight = jnp.ones(shape[0]) if weight is None else jnp.asarray(weight, jnp.float32)

    def latents(x):
        # Masked rows get no gradient, but the network's backward pass would multiply that 0 by a
        # latent that is not finite.
        x = x.reshape(-1, *x.shape[2:])
        return jnp.where(over(mask, x), x, 0)

    rows_of = lambda column: (np if chosen is None else jnp).array(column)[trained]
    return Transitions(
        x=latents(rollout.latents[rows_of(table.x_row)]),
        x_next=latents(rollout.latents[rows_of(table.next_row)]),
        s=flat(rollout.s),
        s_next=flat(rollout.s_next),
        noise_level=flat(rollout.noise_level),
        std=flat(rollout.std),
        log_prob=flat(rollout.log_prob),
        advantage={name: flat(jnp.asarray(a)) for name, a in advantages.items()},
        weight=flat(weight[:, None] if weight.ndim == 1 else weight),
        mask=mask,
        prompt_id=flat(jnp.asarray(group_ids, jnp.int32)),
        mean_old=None if rollout.mean is None else latents(rollout.mean[trained]),
    )
