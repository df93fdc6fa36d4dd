"""Trajectories followed by the policy from any of their states, with fresh noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from densegrpo_jax.config.method import kernel_of
from densegrpo_jax.core.kernels import Kernel
from densegrpo_jax.core.schedules import Grid
from densegrpo_jax.core.sde_step import guided_shift, sde_step
from densegrpo_jax.pipelines.base import Conditioning, Pipeline, repeat_rows
from densegrpo_jax.sampling.policy import policy_velocity
from densegrpo_jax.sampling.sampler import EXACT, decode_few, normal_rows, sample_keys, split_rows
from densegrpo_jax.sampling.schedule import Schedule


def continue_trajectory(
    velocity_fn: Callable,
    x: jax.Array,
    k: jax.Array | int,
    sigmas: Grid,
    levels: jax.Array,
    noise_fn: Callable,
    *,
    kernel: str | Kernel = 'sde',
) -> jax.Array:
    """Follows the policy from state k to the clean end, with T - k network evaluations.

    Args:
        x: float32 [B, ...] latents of state k.
        k: 0 ... T; may be traced, so that one compiled body serves every state.
        levels: [T], of the noise that a step from grid index k adds; 0 where it adds none.
        velocity_fn, sigmas, noise_fn, kernel: as in `run_plan`.

    Returns:
        float32 [B, ...] latents of state T.
    """
    grid, levels = jnp.asarray(sigmas, x.dtype), jnp.asarray(levels)

    def body(j, x):
        found = velocity_fn(x, jnp.broadcast_to(grid[j], x.shape[:1]))
        v, guided = found if isinstance(found, tuple) else (found, None)
        at = grid[j], grid[j + 1], levels[j]
        shift = None if guided is None else guided_shift(guided, v, x, *at, kernel=kernel)
        return sde_step(v, x, *at, noise=noise_fn(j), kernel=kernel, shift=shift).sample

    return jax.lax.fori_loop(k, len(levels), body, x)


def make_continuations(pipeline: Pipeline, config, schedule: Schedule, mesh: Mesh, count: int):
    """The jitted continuation of trajectories by the policy, `count` times with fresh noise, from
    any state.

    Returns:
      `(params, policy or None, conditioning [p, ...], negative conditioning [1, ...] or None,
      key_data of a key, prompt_places [p], noise_levels [T], latents [p * G, ...] of state k, k) ->
      (images uint8 [count, p * G, H, W, 3], finite bool [count, p * G])`. Another key gives other
      continuations.
    """
    m, group, kernel = config.model, config.rollout.group, kernel_of(config)
    shape = pipeline.latent_shape(m.height, m.width)

    def continuations(
        params, policy, conditioning: Conditioning, negative, key, places, noise_levels, latents, k
    ) -> tuple[jax.Array, jax.Array]:
        split = lambda x: split_rows(x, mesh)
        levels = jnp.where(schedule.masks.stochastic, noise_levels, 0)
        velocity = policy_velocity(
            pipeline,
            config,
            params,
            policy,
            jax.tree.map(split, repeat_rows(conditioning, group)),
            negative,
            sampling=True,
        )

        def one(c):
            keys = sample_keys(jax.random.fold_in(jax.random.wrap_key_data(key), c), places, group)
            noise = lambda j: split(normal_rows(keys, j, shape))
            return continue_trajectory(
                velocity, split(latents), k, schedule.sigmas, levels, noise, kernel=kernel
            )

        return decode_few(
            pipeline, params, jax.lax.map(one, jnp.arange(count)), m.height, m.width, mesh
        )

    return jax.jit(continuations, compiler_options=EXACT)
