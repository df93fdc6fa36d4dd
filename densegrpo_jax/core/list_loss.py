"""A listwise objective: LIRE (arXiv 2405.13516) with the log-ratios of a group's samples at a
transition in place of the log-probabilities of sentences.
"""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from densegrpo_jax.core.grpo_loss import LossSums
from densegrpo_jax.core.lists import Samples, list_softmax, list_sum
from densegrpo_jax.core.sde_step import StepOutput, log_prob_ratio

SENTENCE_TEMPERATURE = 2.0  # T of the source, whose logits are summed log-probabilities over T
EFFECTIVE, LOGIT_MAX = 'list_effective', 'list_logit_max'  # metrics


def list_temperature_of(given: float, elements: int) -> float:
    """tau of a latent with n elements: the given one, or 2 / n for 0. As log-probabilities are
    means over elements, 2 / n is the source's temperature of 2 on sums.
    """
    return given or SENTENCE_TEMPERATURE / elements


def listwise_loss(
    log_ratio: Float[ArrayLike, 'M'],
    reward: Float[ArrayLike, 'M'],
    ids: Int[ArrayLike, 'M'],
    used: Bool[ArrayLike, 'M'],
    *,
    temperature: float,
    reward_temperature: float,
) -> Float[Array, 'M']:
    """The terms of -n sum_i P_i R_i of every list with n members in use, P = softmax(log_ratio /
    temperature), R = softmax(reward / reward_temperature).

    At log_ratio = 0 the gradient is that of `grpo_loss` with the advantages (R_i - 1 / n) /
    temperature. A list with fewer than two members in use has none.

    Args:
        log_ratio: of policy and sampler; 0 where not used.
        reward: any finite or infinite value where not used. No gradient flows into it.
        ids: the list of each row, `lists.list_ids`.
        used: False leaves the row out of its list.

    Returns:
        [M] terms, 0 where not used.
    """
    used = jnp.asarray(used)
    p = list_softmax(jnp.asarray(log_ratio) / temperature, ids, used)
    r = list_softmax(jax.lax.stop_gradient(jnp.asarray(reward)) / reward_temperature, ids, used)
    return -list_sum(used.astype(p.dtype), ids) * p * r


def list_loss(
    step: StepOutput,
    log_prob_old: Float[ArrayLike, 'M'],
    advantage: Mapping[str, Float[ArrayLike, 'M']],
    ids: Int[ArrayLike, 'M'],
    *,
    mask: Bool[ArrayLike, 'M'],
    weight: Float[ArrayLike, 'M'],
    temperature: float,
    reward_temperature: float,
    samples: Samples | None = None,
) -> LossSums:
    """`listwise_loss` of transitions, with their advantages as rewards.

    Log-ratios take the place of log-probabilities: those of siblings differ by the noise that each
    drew, sqrt(n / 2) nats for n elements, which the policy does not control; P would be 1 for the
    sample with the smallest noise.

    Args:
        step: StepOutput of `sde_step(v, x, ..., sample=x_next)` under the current policy.
        log_prob_old: as the sampler stored it.
        advantage: by name; the losses of several are added.
        ids: the list of each row.
        mask: False leaves a sample out of its list, and out of the count.
        weight: step weights.
        temperature: 0 for 2 / n, see `list_temperature_of`.
        reward_temperature: of the advantages.
        samples: of a batch of whole trajectories. A list then has the samples of a group, each with
            the weighted sum of its log-ratios and the mean of its advantages, and counts as all
            their transitions; `ids` is not read.

    Returns:
        LossSums; 'list_effective' is the effective number 1 / sum P^2 of each row's list,
        'list_logit_max' the largest |log_ratio| / temperature (of `samples` that of the weighted
        sums). Nothing is clipped.
    """
    mask = jnp.asarray(mask) & (step.std > 0)
    log_ratio = jnp.where(mask, log_prob_ratio(step, log_prob_old), 0)
    tau = list_temperature_of(temperature, math.prod(step.mean.shape[1:]))
    options = {'temperature': tau, 'reward_temperature': reward_temperature}
    weight = jnp.where(mask, weight, 0)
    logits, used, scale = log_ratio, mask, weight
    if samples is not None:
        ids, of_sample = samples.ids, lambda v: jax.ops.segment_sum(v, samples.row, len(mask))
        steps = of_sample(mask.astype(log_ratio.dtype))
        logits, used, scale = of_sample(weight * log_ratio), steps > 0, steps
        mean = lambda a: of_sample(jnp.where(mask, a, 0)) / jnp.maximum(steps, 1)
        advantage = {name: mean(a) for name, a in advantage.items()}
    terms = functools.reduce(
        jnp.add, [listwise_loss(logits, a, ids, used, **options) for a in advantage.values()]
    )
    squares = list_sum(list_softmax(jax.lax.stop_gradient(logits) / tau, ids, used) ** 2, ids)
    return LossSums.of_ratios(mask, jnp.abs(jnp.expm1(log_ratio)), log_ratio)._replace(
        policy_sum=(terms * scale).sum(),
        sums={EFFECTIVE: (jnp.where(mask, 1 / jnp.where(mask, squares, 1), 0)).sum()},
        maxima={LOGIT_MAX: jnp.abs(jax.lax.stop_gradient(logits)).max(initial=0.0) / tau},
    )
