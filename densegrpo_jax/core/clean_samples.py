"""The final latents of a rollout as a batch, for losses that renoise them and use the velocity
there, instead of the transitions that made them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from densegrpo_jax.core.rollout import Rollout
from densegrpo_jax.core.sde_step import over


class CleanSamples(NamedTuple):
    """B samples of an iteration, in the order of the rollout."""

    x0: Float[Array, 'B *latent']  # 0 where masked
    reward: Float[Array, 'B']  # of the sample; 0 where masked
    advantage: Mapping[str, Float[Array, 'B']]  # by name
    mask: Bool[Array, 'B']  # False if the sample has no valid reward
    prompt_id: Int[Array, 'B']  # group (prompt) of the sample, 0 ... P-1


class NoisedSamples(NamedTuple):
    """M clean samples with fresh noise: x = (1 - s) x_0 + s eps, whose velocity is eps - x_0."""

    x: Float[Array, 'M *latent']
    s: Float[Array, 'M']  # uniform in [0, 1)
    x0: Float[Array, 'M *latent']
    noise: Float[Array, 'M *latent']  # eps, standard normal
    reward: Float[Array, 'M']
    advantage: Mapping[str, Float[Array, 'M']]
    mask: Bool[Array, 'M']
    prompt_id: Int[Array, 'M']
    weight: Float[Array, 'M']  # of the loss, `Loss.weights`; else 1


def clean_samples(
    rollout: Rollout,
    reward: Float[ArrayLike, 'B'],
    advantages: Mapping[str, Float[ArrayLike, 'B']],
    group_ids: Int[ArrayLike, 'B'],
    *,
    valid: Bool[ArrayLike, 'B'],
) -> CleanSamples:
    """The samples of a rollout with their rewards.

    Args:
        rollout: of B samples, the last of its completions.
        reward: of each sample; advantages: by name, such as {OUTCOME: values}.
        group_ids: the group of each sample, 0 ... P-1.
        valid: False leaves the sample out of the loss.
    """
    x0 = rollout.completions[-1]
    mask = jnp.asarray(valid)
    return CleanSamples(
        # Masked rows get no gradient, but the network's backward pass would multiply that 0 by a
        # latent that is not finite.
        x0=jnp.where(over(mask, x0), x0, 0),
        reward=jnp.where(mask, reward, 0),
        advantage={name: jnp.where(mask, a, 0) for name, a in advantages.items()},
        mask=mask,
        prompt_id=jnp.asarray(group_ids, jnp.int32),
    )


def best_weights(samples: CleanSamples) -> Float[Array, 'B']:
    """n / (number of winners) for the best sample of each group, its winner, where n is the number
    of its samples that count; 0 for the others. Those that tie for the best reward are all winners.
    """
    ids, count = samples.prompt_id, len(samples.mask)
    total = lambda of: jax.ops.segment_sum(of.astype(jnp.float32), ids, count)[ids]
    rewards = jnp.where(samples.mask, samples.reward, -jnp.inf)
    winner = samples.mask & (rewards >= jax.ops.segment_max(rewards, ids, count)[ids])
    return jnp.where(winner, total(samples.mask) / jnp.maximum(total(winner), 1), 0)


def noised_rows(
    samples: CleanSamples,
    rows: Int[ArrayLike, 'M'],
    key: Any,
    weight: Float[ArrayLike, 'M'] | None = None,
) -> NoisedSamples:
    """Draws a noise level s and noise for each row. They depend on its number in the iteration, not
    on the other rows and the devices, so that a microbatch can be made where it is used.

    Args:
        rows: numbers of rows; row r is of the sample r mod B. Rows 0 ... B - 1 are a single draw of
            all B samples, and D draws are rows 0 ... D B - 1.
        key: typed key [] of the iteration.
        weight: of the rows; None is 1.
    """
    rows = jnp.asarray(rows)
    samples = jax.tree.map(lambda a: a[rows % len(samples.x0)], samples)
    shape = samples.x0.shape[1:]
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(rows)
    draw = lambda sampler, i: jax.vmap(lambda k: sampler(jax.random.fold_in(k, i)))(keys)
    s = draw(jax.random.uniform, 0)
    noise = draw(lambda k: jax.random.normal(k, shape, samples.x0.dtype), 1)
    wide = over(s, noise)
    return NoisedSamples(
        x=(1 - wide) * samples.x0 + wide * noise,
        s=s,
        noise=noise,
        weight=jnp.ones(len(rows)) if weight is None else jnp.asarray(weight),
        **samples._asdict(),
    )


def velocity_difference(v: Float[Array, 'M *latent'], v_ref: Float[Array, 'M *latent']) -> Array:
    """Mean square over the elements of the difference of two velocities, [M]: the distance of a
    policy from the reference without transitions. No gradient flows into v_ref.
    """
    difference = v - jax.lax.stop_gradient(v_ref)
    return jnp.mean(difference**2, tuple(range(1, difference.ndim)))
