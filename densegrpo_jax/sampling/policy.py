"""The policy and the network that moves the samples, defined in one place: if sampler and update
disagreed, the first ratio would not be 1.

Adapters are not merged into the base, though it would save a tenth of sampling on a CPU: it rounds
otherwise, and the first ratio would be up to 1.8e-6 from 1 (docs/results/cpu.md).
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from densegrpo_jax.config.method import kernel_of
from densegrpo_jax.core.sde_step import StepOutput, sde_step
from densegrpo_jax.core.transitions import Transitions
from densegrpo_jax.pipelines.base import Conditioning, Pipeline

# Of log-ratios of an unchanged policy, whose true value is 0: bounds that the tests keep.
LOG_RATIO_ROUNDING = {'float32': 1e-6, 'bfloat16': 1e-5}


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
