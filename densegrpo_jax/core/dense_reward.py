"""Credit assignment: turns the rewards of completed states into one reward per transition
(DenseGRPO Sec. 4.1 and its baselines).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from densegrpo_jax.core.credit_rules import CreditRule, as_credit_rule
from densegrpo_jax.core.masks import StepMasks
from densegrpo_jax.core.prediction_rewards import Predictions


def needed_states(credit: str | CreditRule, masks: StepMasks) -> tuple[int, ...]:
    """States whose reward the credit rule reads, given which transitions are trained.

    Args:
        credit: a key of CREDIT_RULES, or a CreditRule.
        masks: StepMasks.

    Returns:
        tuple of int, increasing; always ends with T. The rule 'gae' reads every state from the
        first trained transition on; states on a deterministic tail share the sample's reward if
        completions use every remaining grid point (`completion_source`).

    Raises:
        ValueError: the rule is unknown, or reads a state outside 0 ... T.
    """
    num_steps = len(masks.trained)
    states = {int(k) for k in as_credit_rule(credit).states(masks)} | {num_steps}
    if not 0 <= min(states) <= max(states) <= num_steps:
        raise ValueError(f'the credit rule reads the states {sorted(states)} of 0 ... {num_steps}')
    return tuple(sorted(states))


def every_state(
    states: tuple[int, ...], every: int, source: Callable[[int], int] = lambda k: k
) -> tuple[int, ...]:
    """Those of a rule's states that are completed if rewards between are interpolated: the first
    and every `every`-th after it, the last before T, and T; and all whose completion is that of one
    of these, as their reward is known.

    The last before T bounds the interpolation: if the trained transitions end before T, they get no
    share of the gain from there to T. The known ones keep gains from transitions without noise.

    Args:
        states: `needed_states`.
        every: m >= 1; 1 keeps all.
        source: state -> the state whose completion it has, `completion_source`.

    Returns:
        tuple of int, increasing; ends with T.
    """
    if every < 1:
        raise ValueError(f'every is {every}; expected 1 (all states) or more')
    before_end = states[:-1]
    known = {source(k) for k in (*before_end[::every], *before_end[-1:], states[-1])}
    return tuple(k for k in states if source(k) in known)


def state_rewards(
    values: Float[ArrayLike, 'S B'],
    sources: Sequence[int] | Int[np.ndarray, 'states'],
    *,
    interpolate: bool = False,
) -> Float[Array, 'states B']:
    """Rewards of the distinct completions -> rewards of all states.

    Args:
        values: rewards of `Rollout.completions`.
        sources: `RolloutPlan.sources_of(kind)`, T+1 row numbers.
        interpolate: a state without a completion, between two with one, gets the linear
            interpolation of their rewards in k: the transitions between share the gain evenly.

    Returns:
        [T+1, B]; NaN for states that were not completed (if interpolated: only before the first
        completed state).
    """
    values = jnp.asarray(values)
    rows = np.asarray(sources)
    if rows.max() >= len(values):
        raise ValueError(
            f'values has {len(values)} rows; the rollout has at least {rows.max() + 1} distinct '
            'completions'
        )
    if not interpolate:
        return jnp.where((rows >= 0)[:, None], values[np.maximum(rows, 0)], jnp.nan)
    states, scored = np.arange(len(rows)), np.flatnonzero(rows >= 0)
    right = scored[np.searchsorted(scored, states)]
    left = scored[np.maximum(np.searchsorted(scored, states, side='right') - 1, 0)]
    part = np.where(right > left, (states - left) / np.maximum(right - left, 1), 0).astype(
        np.float32
    )[:, None]
    low, high = values[rows[left]], values[rows[right]]
    return jnp.where((states >= scored[0])[:, None], low + part * (high - low), jnp.nan)


def dense_reward(
    rewards: Float[ArrayLike, 'states B'],
    credit: str | CreditRule = 'dense',
    *,
    similarity: Float[ArrayLike, 'states B'] | None = None,
    predictions: Predictions | None = None,
    **options: Any,
) -> Float[Array, 'states-1 B']:
    """Per-transition rewards, before any normalisation.

    With V_k the reward of the completion of state k (the paper's R_{T-k}; V_T is the ordinary
    terminal reward), transition k from state k to k+1 receives

        dense            V_{k+1} - V_k       DenseGRPO Eq. 7; the gains sum to V_T - V_0
        gae              A_k = sum_{j >= k} lambda^(j-k) (V_{j+1} - V_j)
        dense_baseline   V_{k+1}
        sparse           V_T                 Flow-GRPO
        turning          V_T - V_k at a turning point, else V_{k+1} - V_k
        turning_code     V_T - V_0, and + V_{k+1} - V_k at a turning point
        branch           V_k                 G^2RPO: here V_k is the reward of the branch of step k
        sdpo             sum_{j >= k} gamma^(j-k) r_j: here V_k is the reward of the prediction
                         x0hat_k, and r_k lies between three of them, `similarity_rewards`
        coca_share       V_T u_k             CoCA (arXiv 2505.19196), u = `coca_shares`
        coca_to_go       V_T (alpha + (1 - alpha) sum_{j >= k} u_j)

    `gae` is generalised advantage estimation (arXiv 1506.02438, gamma = 1) with the completion as
    the value function and no reward before the end, so that a gain is the temporal-difference
    error: lambda = 0 is `dense`, lambda = 1 is V_T - V_k, the terminal reward with a baseline that
    needs no critic. V is the value of the *deterministic* policy. A small lambda trusts it after a
    transition or two (little variance, but bias if later noise changes the mean reward); a large
    lambda waits for the sample (no bias, but the variance of all later noise). The default 0.5
    spreads a gain's effect over about 1 / (1 - lambda) = 2 transitions.

    `turning` is TP-GRPO (arXiv 2602.06422) with `turning_points`; `turning_code` is what all
    configurations of its code train with, where fewer conditions make more turning points. Without
    turning points they are `dense`, and the terminal reward with a baseline.

    The DenseGRPO paper normalises the result per transition, whatever the rule. CoCA's code
    normalises V_T first, so that the shares scale a signed advantage: for that, pass the terminal
    group advantages broadcast to [T+1, B] as rewards and use the result as advantages. The result
    of the first order depends on the reward's zero point, that of the second does not.

    Args:
        rewards: [T+1, B] V; states that the rule does not read may be NaN.
        credit: a key of CREDIT_RULES, or a CreditRule.
        similarity: [T+1, B], `Rollout.similarity`; for rules that read it, such as CoCA's.
        predictions: `Rollout.predictions`; for rules that read them, such as 'sdpo'.
        options: of the rule: `gae_lambda` of 'gae', the lambda above, 0 ... 1 (default 0.5);
            `sdpo_gamma` of 'sdpo' (0.99); `window` of the CoCA rules (1), `alpha` of 'coca_to_go'
            (0).

    Returns:
        [T, B] float32; NaN if a state that the rule reads was not scored.

    Raises:
        ValueError: unknown rule or option, rewards that are not [T+1, B], a missing similarity or
            predictions that the rule reads, a result whose shape is not [T, B], or lambda outside
            0 ... 1.
    """
    rule = as_credit_rule(credit)
    name = repr(credit) if isinstance(credit, str) else rule.assign.__qualname__
    rewards = jnp.asarray(rewards)
    if rewards.ndim != 2 or rewards.shape[0] < 2:
        raise ValueError(f'rewards have shape {rewards.shape}; expected [T+1, B] with T >= 1')
    if unknown := options.keys() - rule.options.keys():
        raise ValueError(f'credit {name} has no option {min(unknown)!r}; it has {[*rule.options]}')
    if rule.reads_similarity:
        if similarity is None or jnp.shape(similarity) != rewards.shape:
            found = None if similarity is None else jnp.shape(similarity)
            raise ValueError(
                f'credit {name} needs similarity of shape {rewards.shape} (Rollout.similarity); '
                f'got {found}'
            )
        options['similarity'] = similarity
    if rule.reads_predictions:
        if predictions is None or len(predictions.cosines) != len(rewards) - 1:
            raise ValueError(
                f'credit {name} needs predictions of {len(rewards) - 1} steps (Rollout.predictions)'
            )
        options['predictions'] = predictions
    given = rule.assign(rewards, **options)
    if jnp.shape(given) != rewards[1:].shape:
        raise ValueError(
            f'credit {name} gave the shape {jnp.shape(given)}; expected {rewards[1:].shape}, a '
            'reward for each transition'
        )
    return given
