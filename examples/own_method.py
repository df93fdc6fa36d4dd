"""A method of one's own: a credit rule and a loss, each of which goes with any recipe.

The rule credits a transition with what the image gained from there on. The loss is that of SPO
(arXiv 2401.16025): it pulls a ratio back to 1, so that no sample loses its gradient by clipping.
"""

import jax.numpy as jnp

from densegrpo_jax.core.credit_rules import CreditRule, read_offsets
from densegrpo_jax.core.losses import Loss, loss_sums
from densegrpo_jax.core.roles import POLICY
from densegrpo_jax.core.sde_step import log_prob_ratio
from densegrpo_jax.core.transitions import OUTCOME


def still_gained(rewards):
    """V_T - V_k of every transition k, from V [T+1, B], rewards of the states, to [T, B]."""
    return rewards[-1] - rewards[:-1]


def pulled_ratio(outputs, batch, *, clip_range, log_prob):
    """-r A + |A| (r - 1)^2 / (2 clip_range), r = p(x' | x) / p_old(x' | x)."""
    moved = log_prob_ratio(outputs[POLICY], batch.log_prob, log_prob=log_prob)
    ratio = jnp.exp(jnp.where(batch.mask, moved, 0))
    advantage = batch.advantage[OUTCOME]
    pull = jnp.abs(advantage) * (ratio - 1) ** 2 / (2 * clip_range)
    return loss_sums(batch.weight * (pull - ratio * advantage), batch.mask)


rule = CreditRule(still_gained, states=read_offsets(0))  # completes and scores the states k
loss = Loss(pulled_ratio)
