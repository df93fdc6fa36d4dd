"""Credit assignment: rewards of completed states -> one reward per transition (DenseGRPO Sec. 4.1
and its baselines).
"""

import jax
import jax.numpy as jnp
import numpy as np

# Credit rule -> which states besides T must be completed and scored, as offsets from a trained
# transition k; None: all from it on.
CREDIT_RULES = {
    'sparse': (),  # Flow-GRPO: the terminal reward for every transition
    'dense_baseline': (1,),  # the reward of the state after the transition
    'dense': (0, 1),  # DenseGRPO: the gain across the transition
    'gae': None,  # the gain, and what later gains add to it
    'coca_share': (),  # CoCA: the terminal reward, shared out by latent similarity
    'coca_to_go': (),  # CoCA: the share that is still to come
}


def needed_states(credit, masks):
    """States whose reward the credit rule reads, given which transitions are trained.

    Args:
        credit: a key of CREDIT_RULES.
        masks: StepMasks.

    Returns:
        tuple of int, increasing; always ends with T. The rule 'gae' reads every state from the
        first trained transition on; those on a deterministic tail share the sample's reward where
        completions use every remaining grid point (`completion_source`).
    """
    _check_credit(credit)
    trained, num_steps = np.flatnonzero(masks.trained), len(masks.trained)
    if CREDIT_RULES[credit] is None:
        return tuple(range(int(trained[0]), num_steps + 1))
    states = {int(k) + offset for k in trained for offset in CREDIT_RULES[credit]}
    return tuple(sorted(states | {num_steps}))


def every_state(states, every):
    """Of the states a rule needs, those that are completed when the rewards between are
    interpolated: the first and every `every`-th after it, the last one before T, and T.

    The last one bounds the interpolation: where the trained transitions end before T, none of the
    way from there is shared out to them.

    Args:
        states: `needed_states`.
        every: m >= 1; 1 keeps all.

    Returns:
        tuple of int, increasing; ends with T.
    """
    if every < 1:
        raise ValueError(f'every is {every}; expected 1 (all states) or more')
    before_end = states[:-1]
    return tuple(sorted({*before_end[::every], *before_end[-1:], states[-1]}))


def state_rewards(values, sources, *, interpolate=False):
    """Rewards of the distinct completions -> rewards of all states.

    Args:
        values: [S, B] rewards of `Rollout.completions`.
        sources: `RolloutPlan.sources_of()`, T+1 row numbers.
        interpolate: a state that was not completed, between two that were, gets the reward on the
            line between theirs, in k: the transitions between them share the gain evenly.

    Returns:
        [T+1, B]; NaN for states that were not asked for (interpolated: for those before the first
        that was).
    """
    values = jnp.asarray(values)
    sources = np.asarray(sources)
    if sources.max() != len(values) - 1:
        raise ValueError(
            f'values has {len(values)} rows; the rollout has {sources.max() + 1} distinct completions'
        )
    if not interpolate:
        return jnp.where((sources >= 0)[:, None], values[np.maximum(sources, 0)], jnp.nan)
    states, scored = np.arange(len(sources)), np.flatnonzero(sources >= 0)
    right = scored[np.searchsorted(scored, states)]
    left = scored[np.maximum(np.searchsorted(scored, states, side='right') - 1, 0)]
    part = np.where(right > left, (states - left) / np.maximum(right - left, 1), 0).astype(
        np.float32
    )[:, None]
    low, high = values[sources[left]], values[sources[right]]
    return jnp.where((states >= scored[0])[:, None], low + part * (high - low), jnp.nan)


def dense_reward(rewards, credit='dense', *, similarity=None, window=1, alpha=0.0, gae_lambda=0.5):
    """Per-transition rewards, before any normalisation.

    With V_k the reward of the completion of state k (the paper's R_{T-k}; V_T is the ordinary
    terminal reward), transition k from state k to k+1 receives

        dense            V_{k+1} - V_k       DenseGRPO Eq. 7; the gains sum to V_T - V_0
        gae              A_k = sum_{j >= k} lambda^(j-k) (V_{j+1} - V_j)
        dense_baseline   V_{k+1}
        sparse           V_T                 Flow-GRPO
        coca_share       V_T u_k             CoCA (arXiv 2505.19196), u = `coca_shares`
        coca_to_go       V_T (alpha + (1 - alpha) sum_{j >= k} u_j)

    `gae` is generalised advantage estimation (arXiv 1506.02438, gamma = 1) with the completion as
    the value function and no reward before the end, so that a gain is the temporal-difference
    error: lambda = 0 is `dense`, lambda = 1 is V_T - V_k, the terminal reward with a baseline that
    costs no critic. V is the value of the *deterministic* policy: a small lambda trusts it after a
    step or two (little variance, biased where later noise changes the reward on average), a large
    one waits for the sample (no bias, but the luck of all later noise). The default 0.5 weighs a
    gain's effect over about 1 / (1 - lambda) = 2 transitions.

    The DenseGRPO paper normalises the result per transition, whatever the rule. CoCA's code
    normalises V_T first, so that the shares scale a signed advantage: for that, pass the terminal
    group advantages broadcast to [T+1, B] as rewards and use the result as advantages. The first
    order depends on where the reward has its zero, the second does not.

    Args:
        rewards: [T+1, B] V; states that the rule does not read may be NaN.
        credit: a key of CREDIT_RULES.
        similarity: [T+1, B], `Rollout.similarity`; needed by the CoCA rules.
        window, alpha: options of the CoCA rules.
        gae_lambda: lambda of `gae`, 0 ... 1.

    Returns:
        [T, B] float32; NaN where a state the rule reads was not scored.

    Raises:
        ValueError: unknown rule, rewards that are not [T+1, B], a CoCA rule without similarity, or
            lambda outside 0 ... 1.
    """
    _check_credit(credit)
    rewards = jnp.asarray(rewards)
    if rewards.ndim != 2 or rewards.shape[0] < 2:
        raise ValueError(f'rewards have shape {rewards.shape}; expected [T+1, B] with T >= 1')
    after = rewards[1:]
    if credit == 'dense':
        return after - rewards[:-1]
    if credit == 'gae':
        return _discounted(after - rewards[:-1], gae_lambda)
    if credit == 'dense_baseline':
        return after
    terminal = jnp.broadcast_to(rewards[-1], after.shape)
    if credit == 'sparse':
        return terminal
    if similarity is None or jnp.shape(similarity) != rewards.shape:
        found = None if similarity is None else jnp.shape(similarity)
        raise ValueError(
            f'credit {credit!r} needs similarity of shape {rewards.shape} (Rollout.similarity); got {found}'
        )
    shares = coca_shares(similarity, window)
    if credit == 'coca_share':
        return terminal * shares
    to_go = jnp.cumsum(shares[::-1], axis=0)[::-1]
    return terminal * (alpha + (1 - alpha) * to_go)


def coca_shares(similarity, window=1, *, min_total=1e-3):
    """Each transition's share of the terminal reward, from how much nearer it brings x0hat to the
    final sample.

    The similarities c_1 ... c_T are averaged in windows of `window` transitions (the last may be
    shorter); a window's gain is the rise of that average over the previous window's (over c_0 for
    the first); gains are divided by their sum and spread evenly over the window. Single shares may
    be negative. Where the sum, the total rise, is below `min_total` (the first prediction was the
    final image already) the shares would explode, and are uniform instead.

    Args:
        similarity: [T+1, B] cosines c_k, c_T = 1.
        window: W >= 1 transitions per window.

    Returns:
        [T, B] shares that sum to 1 over the transitions.
    """
    c = jnp.asarray(similarity)
    num_steps = len(c) - 1
    if not 1 <= window <= num_steps:
        raise ValueError(f'window is {window}; expected 1 <= window <= {num_steps} transitions')
    starts = range(0, num_steps, window)
    lengths = np.array([min(window, num_steps - start) for start in starts])
    means = jnp.stack(
        [c[1 + start : 1 + start + length].mean(0) for start, length in zip(starts, lengths)]
    )
    gains = means - jnp.concatenate([c[:1], means[:-1]])
    total = means[-1] - c[0]
    usable = total >= min_total
    per_window = gains / jnp.where(usable, total, 1) / lengths[:, None]
    return jnp.where(
        usable,
        jnp.repeat(per_window, lengths, axis=0, total_repeat_length=num_steps),
        1 / num_steps,
    )


def _discounted(gains, decay):
    """A_k = d_k + decay A_{k+1} of d [T, B], from the end: NaN of a state that was not scored
    reaches only the transitions before it.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f'gae_lambda is {decay}; expected 0 <= gae_lambda <= 1')

    def add(later, gain):
        total = gain + decay * later
        return total, total

    return jax.lax.scan(add, jnp.zeros_like(gains[0]), gains, reverse=True)[1]


def _check_credit(credit):
    if credit not in CREDIT_RULES:
        raise ValueError(f'unknown credit rule {credit!r}; expected one of {sorted(CREDIT_RULES)}')
