"""The policy and the network that moves the samples, defined in one place: if sampler and update
disagreed, the first ratio would not be 1. Rollouts use merged weights where both agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from densegrpo_jax.config.method import kernel_of
from densegrpo_jax.core.sde_step import StepOutput, sde_step
from densegrpo_jax.core.transitions import Transitions
from densegrpo_jax.networks import lora
from densegrpo_jax.pipelines.base import Conditioning, Pipeline


def policy_velocity(
    pipeline: Pipeline,
    config,
    params: dict,
    policy: dict | None,
    conditioning: Conditioning,
    negative: Conditioning | None,
    *,
    sampling: bool = False,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`v(x [B, ...], s [B]) -> [B, ...]` float32, see `Pipeline.velocity_fn`.

    With `loss.cfg` the policy is the guided network, as in Flow-GRPO. Without it guidance moves the
    samples, but the policy is the prompt's own prediction.

    Args:
      params: the base's parameters.
      policy: the policy's parameters; None: the reference policy.
      conditioning: B rows.
      negative: of the empty prompt, 1 row; None: no classifier-free guidance.
      sampling: if set, without `loss.cfg` the function returns the pair (prediction of the prompt
        alone, guided prediction).
    """
    m, cfg = config.model, config.loss.cfg
    return pipeline.velocity_fn(
        params['transformer'],
        policy,
        conditioning,
        m.guidance,
        m.height,
        m.width,
        negative=negative if cfg or sampling else None,
        both=not cfg,
    )


def merged(
    pipeline: Pipeline, config, params: dict, policy: dict | None, mesh: Mesh
) -> tuple[dict, dict | None]:
    """`params` and `policy` for a rollout: where `merges` says so, the adapters are in the base's
    kernels, which saves their products at every evaluation, and the policy is None.
    """
    if policy is None or not merges(config, params['transformer'], mesh):
        return params, policy
    base = lora.merge(params['transformer'], policy, pipeline.transformer.lora.scale)
    return params | {'transformer': base}, None


def merges(config, base: dict, mesh: Mesh) -> bool:
    """Whether a rollout's base takes the adapters in: on CPUs, if all is float32.

    Elsewhere the first ratio would not be 1: in bfloat16, and in the products of accelerators,
    which round float32 to fewer bits, the sum loses what the adapters add. A quantised base has no
    kernels to add to.
    """
    exact = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(base))
    exact = exact and all(device.platform == 'cpu' for device in mesh.devices.flat)
    return exact and not config.full and config.model.dtype == 'float32'


def rescore(config, velocity: Callable, t: Transitions) -> StepOutput:
    """Mean, std and log-probability of the transitions t [B, ...] that were sampled, under the
    policy of `velocity`.
    """
    return sde_step(
        velocity(t.x, t.s),
        t.x,
        t.s,
        t.s_next,
        t.noise_level,
        sample=t.x_next,
        kernel=kernel_of(config),
        log_prob=config.rollout.log_prob,
    )
