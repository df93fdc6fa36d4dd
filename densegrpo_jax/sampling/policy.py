"""The policy and the network that moves the samples, defined in one place: if sampler and update
disagreed, the first ratio would not be 1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

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
        alone, guided prediction); and adapters are merged into the base where `merges` says so.
    """
    m, cfg = config.model, config.loss.cfg
    base = params['transformer']
    if sampling and policy is not None and merges(config, base):
        base, policy = lora.merge(base, policy, pipeline.transformer.lora.scale), None
    return pipeline.velocity_fn(
        base,
        policy,
        conditioning,
        m.guidance,
        m.height,
        m.width,
        negative=negative if cfg or sampling else None,
        both=not cfg,
    )


def merges(config, base: dict) -> bool:
    """Whether rollouts merge the adapters into a copy of the base, which saves their products at
    every evaluation: all is float32. In bfloat16 the sum would lose what the adapters add, and the
    first ratio would not be 1; a quantised base has no kernels to add to.
    """
    exact = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(base))
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
