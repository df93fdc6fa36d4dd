"""The loss: against a hand-written Flow-GRPO in numpy, finite differences, masks, counts, and
jit.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.advantages import group_advantages, group_ids_of
from densegrpo_jax.core.dense_reward import dense_reward, needed_states, state_rewards
from densegrpo_jax.core.grpo_loss import LossSums, grpo_loss, kl_divergence, noise_weights
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import state_points, trajectory_plan
from densegrpo_jax.core.schedules import flow_grpo_noise_levels
from densegrpo_jax.core.sde_step import StepOutput, log_prob_ratio, sde_step
from densegrpo_jax.core.transitions import OUTCOME, transitions

GRID = np.array([1.0, 0.85, 0.6, 0.3, 0.0], np.float32)
T, P, G = 4, 2, 3
MASKS = step_masks(GRID, train_end=True)
A, BETA, CLIP = 0.7, 0.04, 3e-4
RNG = np.random.default_rng(0)
THETA = RNG.standard_normal((5, 5)).astype(np.float32) / 2
THETA_NEW = THETA + 3e-3 * RNG.standard_normal((5, 5)).astype(np.float32)
THETA_REF = THETA + 1e-2 * RNG.standard_normal((5, 5)).astype(np.float32)
X_INIT = RNG.standard_normal((P * G, 7, 5)).astype(np.float32)
NOISE = RNG.standard_normal((T, P * G, 7, 5)).astype(np.float32)


def velocity(theta, x, s):
    tanh = np.tanh if isinstance(x, np.ndarray) else jnp.tanh
    return tanh(x @ theta) + s[:, None, None] * x


@functools.cache
def rollout(complete=(T,)):
    fn, noise = functools.partial(velocity, THETA), lambda k: jnp.asarray(NOISE)[k]
    levels, plan = flow_grpo_noise_levels(GRID, A), trajectory_plan(MASKS, state_points(complete))
    return jax.jit(lambda first: run_plan(fn, first, GRID, levels, plan, noise))(X_INIT)


def terminal_reward(latents):
    return jnp.sin(3 * latents).mean(axis=(-2, -1))


@functools.partial(jax.jit, static_argnames=('credit', 'std'))
def record_of(dense, credit='sparse', std='global'):
    rewards = state_rewards(terminal_reward(dense.completions), dense.plan.sources_of())
    advantages = group_advantages(dense_reward(rewards, credit), P, std=std).values
    return transitions(dense, {OUTCOME: advantages}, group_ids_of([G] * P))


def loss_of(theta, record, kl_form='flow_grpo', clip_range=CLIP):
    where = (record.x, record.s, record.s_next, record.noise_level)
    step = sde_step(velocity(theta, record.x, record.s), *where, sample=record.x_next)
    reference = sde_step(velocity(THETA_REF, record.x, record.s), *where, sample=record.x_next)
    sums = grpo_loss(
        step,
        record.log_prob,
        record.advantage,
        mask=record.mask,
        weight=record.weight,
        clip_range=clip_range,
        mean_ref=reference.mean,
        kl_form=kl_form,
        noise_level=record.noise_level,
    )
    return sums.policy_sum / sums.policy_count + BETA * sums.kl_sum / sums.kl_count, sums


jitted_loss = jax.jit(loss_of, static_argnames=('kl_form', 'clip_range'))


def flow_grpo_in_numpy(theta):
    """Flow-GRPO written out step by step in float64: sample, score the end, normalise, clip, add
    the KL without dt.
    """
    sigma = GRID.astype(np.float64)

    def step(theta, x, k):
        v = velocity(theta.astype(np.float64), x, np.full(len(x), sigma[k]))
        std_dev = np.sqrt(sigma[k] / (1 - (sigma[1] if sigma[k] == 1 else sigma[k]))) * A
        dt = sigma[k + 1] - sigma[k]
        mean = (
            x * (1 + std_dev**2 / (2 * sigma[k]) * dt)
            + v * (1 + std_dev**2 * (1 - sigma[k]) / (2 * sigma[k])) * dt
        )
        return mean, std_dev, std_dev * np.sqrt(-dt)

    def log_prob(x_next, mean, std):
        density = -((x_next - mean) ** 2) / (2 * std**2) - np.log(std) - np.log(np.sqrt(2 * np.pi))
        return density.mean(axis=(1, 2))

    x, path = X_INIT.astype(np.float64), []
    for k in range(T):
        mean, _, std = step(THETA, x, k)
        x_next = mean + std * NOISE[k]
        path.append((x, x_next, log_prob(x_next, mean, std)))
        x = x_next
    rewards = np.sin(3 * x).mean(axis=(1, 2)).reshape(P, G)
    advantage = np.clip(
        ((rewards - rewards.mean(1, keepdims=True)) / (rewards.std() + 1e-4)).reshape(-1), -5, 5
    )
    policy, kl = [], []
    for k, (x, x_next, old) in enumerate(path):
        mean, std_dev, std = step(theta, x, k)
        reference, _, _ = step(THETA_REF, x, k)
        ratio = np.exp(log_prob(x_next, mean, std) - old)
        policy.append(
            np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - CLIP, 1 + CLIP))
        )
        kl.append(((mean - reference) ** 2).mean(axis=(1, 2)) / (2 * std_dev**2))
    return np.mean(policy), np.mean(kl)


def test_all_steps_stochastic_and_sparse_credit_equal_a_hand_written_flow_grpo():
    record = record_of(rollout())
    for theta in (THETA, THETA_NEW):
        policy, kl = flow_grpo_in_numpy(theta)
        loss, sums = jitted_loss(theta, record)
        assert sums.policy_count == sums.kl_count == T * P * G
        assert float(sums.policy_sum / sums.policy_count) == pytest.approx(policy, abs=2e-6)
        assert float(sums.kl_sum / sums.kl_count) == pytest.approx(kl, rel=1e-4)
        assert float(loss) == pytest.approx(policy + BETA * kl, abs=2e-6)
    # the comparison reached both branches
    assert 0.1 < float(sums.clip_sum / sums.policy_count) < 0.95


@pytest.mark.parametrize('credit', ['sparse', 'dense'])
def test_first_update_ratio_is_one(credit):
    dense = rollout(needed_states(credit, MASKS))
    for clip_range in (1e-4, 1e-5):
        _, sums = jitted_loss(THETA, record_of(dense, credit, 'group'), clip_range=clip_range)
        assert sums.ratio_deviation_max <= 1e-6 and sums.clip_sum == 0
    assert sums.ratio_deviation_sum <= sums.policy_count * 1e-6


@pytest.mark.parametrize('kl_form', ['gaussian', 'flow_grpo'])
def test_gradient_against_finite_differences(kl_form):
    record = jax.tree.map(np.asarray, record_of(rollout()))
    with jax.enable_x64(True):
        record = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64) if a.dtype == np.float32 else jnp.asarray(a),
            record,
        )
        # float64 all the way: the stored log-prob is taken again, so that ratios are 1 at THETA to
        # double precision.
        where = (record.x, record.s, record.s_next, record.noise_level)
        step = jax.jit(sde_step)(
            velocity(jnp.asarray(THETA, jnp.float64), record.x, record.s),
            *where,
            sample=record.x_next,
        )
        record = record._replace(log_prob=step.log_prob)
        theta = jnp.asarray(THETA_NEW, jnp.float64)
        direction = jnp.asarray(np.random.default_rng(3).standard_normal((5, 5)))

        def loss(theta):
            return jitted_loss(theta, record, kl_form)[0]

        gradient = float((jax.jit(jax.grad(loss))(theta) * direction).sum())
        eps = 1e-7
        numeric = float((loss(theta + eps * direction) - loss(theta - eps * direction)) / (2 * eps))
    assert abs(gradient) > 1e-4
    assert gradient == pytest.approx(numeric, rel=1e-5)


def test_jit_equals_no_jit():
    record = record_of(rollout())
    plain, jitted = (
        jax.grad(loss_of, has_aux=True)(THETA_NEW, record),
        jax.jit(jax.grad(loss_of, has_aux=True))(THETA_NEW, record),
    )
    for ours, expected in zip(jax.tree.leaves(jitted), jax.tree.leaves(plain)):
        np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-6)


def test_microbatches_merge_to_the_whole():
    record = record_of(rollout())
    _, whole = jitted_loss(THETA_NEW, record)
    parts = [
        jitted_loss(THETA_NEW, jax.tree.map(lambda a: a[i : i + 8], record))[1]
        for i in range(0, T * P * G, 8)
    ]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert isinstance(merged, LossSums)
    assert merged.sums == merged.maxima == {}
    for name, ours, expected in zip(whole._fields[:-2], merged, whole):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def steps_of(log_ratios, std=0.05):
    """StepOutputs [M, 1] whose log-prob against an old log-prob of 0 is log_ratios."""
    m = len(log_ratios)
    std = np.broadcast_to(np.float32(std), (m,))
    constant = -np.log(std) - 0.5 * np.log(2 * np.pi)
    sample = np.sqrt(2 * (constant - log_ratios))[:, None] * std[:, None]
    return StepOutput(
        jnp.asarray(sample), jnp.zeros((m, 1)), jnp.asarray(std), jnp.asarray(log_ratios)
    )


def test_clipped_surrogate_by_hand():
    ratios = np.array([1.0, 1.3, 1.3, 0.7, 0.7, 1.05], np.float32)
    advantages = np.array([2.0, 1.0, -1.0, 1.0, -1.0, 3.0], np.float32)
    weight = np.array([1, 1, 1, 1, 1, 2], np.float32)
    step = steps_of(np.log(ratios))
    np.testing.assert_allclose(log_prob_ratio(step, jnp.zeros(6)), np.log(ratios), atol=2e-6)
    sums = grpo_loss(
        step, jnp.zeros(6), advantages, mask=np.ones(6, bool), weight=weight, clip_range=0.2
    )
    # pessimistic: only moves that would help too much are clipped
    expected = [-2.0, -1.2, 1.3, -0.7, 0.8, -6.3]
    assert float(sums.policy_sum) == pytest.approx(sum(expected), abs=1e-5)
    assert (sums.policy_count, sums.clip_sum, sums.clip_low_sum) == (6, 4, 2)
    assert float(sums.ratio_deviation_max) == pytest.approx(0.3, abs=1e-5)
    assert float(sums.ratio_deviation_sum) == pytest.approx(1.25, abs=1e-5)
    assert float(sums.log_ratio_square_sum) == pytest.approx((np.log(ratios) ** 2).sum(), abs=1e-5)
    assert sums.kl_sum == sums.kl_count == 0


def test_masked_and_deterministic_transitions_leave_sums_counts_and_gradients():
    def policy_sum(sample, mask, std):
        step = StepOutput(sample, jnp.zeros_like(sample), std, jnp.zeros(len(std)))
        reference = jnp.full_like(sample, jnp.nan).at[:2].set(0.1)
        sums = grpo_loss(
            step,
            jnp.zeros(4),
            jnp.array([1.0, -1.0, jnp.nan, jnp.nan]),
            mask=mask,
            clip_range=10.0,
            mean_ref=reference,
        )
        return sums.policy_sum + sums.kl_sum, sums

    sample = jnp.array([[0.1], [0.2], [jnp.nan], [1e30]])
    std = jnp.array([1.0, 1.0, 1.0, 0.0])
    gradient, sums = jax.jit(jax.grad(policy_sum, has_aux=True))(
        sample, jnp.array([True, True, False, True]), std
    )
    assert sums.policy_count == sums.kl_count == 2
    assert np.isfinite(jax.tree.leaves(sums)).all()
    # row 2 is NaN: why `transitions` masks x as well
    assert np.isfinite(gradient[:2]).all() and np.abs(gradient[:2]).min() > 0
    np.testing.assert_array_equal(gradient[3], 0)
    empty = grpo_loss(
        StepOutput(sample[:2], sample[:2], std[:2], jnp.zeros(2)),
        jnp.zeros(2),
        jnp.ones(2),
        mask=jnp.zeros(2, bool),
        clip_range=0.1,
    )
    assert empty.policy_sum == empty.policy_count == empty.ratio_deviation_max == 0


def test_zero_spread_groups_add_nothing_and_stay_in_the_count():
    record = record_of(rollout())
    kept = jnp.where(record.prompt_id == 0, 0, record.advantage[OUTCOME])
    silent = record._replace(advantage={OUTCOME: kept})
    _, sums = jitted_loss(THETA_NEW, silent)
    _, whole = jitted_loss(THETA_NEW, record)
    _, other = jitted_loss(THETA_NEW, record._replace(mask=record.mask & (record.prompt_id == 1)))
    assert sums.policy_count == whole.policy_count == 2 * other.policy_count
    assert float(sums.policy_sum) == pytest.approx(float(other.policy_sum), abs=1e-5)


def test_kl_forms():
    mean, reference = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 2.0], [3.0, 3.0]])
    step = StepOutput(mean, mean, jnp.array([0.5, 0.0]), jnp.zeros(2))
    np.testing.assert_allclose(kl_divergence(step, reference), [0.5 / (2 * 0.25), 0.0])
    levels = jnp.array([2.0, 2.0])
    np.testing.assert_allclose(
        kl_divergence(step, reference, form='flow_grpo', noise_level=levels), [0.5 / (2 * 4.0), 0.0]
    )
    # On a whole step the two differ by the factor -dt.
    rng = np.random.default_rng(2)
    v, v_ref, x = (rng.standard_normal((3, 6)).astype(np.float32) for _ in range(3))
    ours, ref = (sde_step(u, x, 0.8, 0.55, 0.7, noise=x) for u in (v, v_ref))
    gaussian = kl_divergence(ours, ref.mean)
    np.testing.assert_allclose(
        gaussian * 0.25, kl_divergence(ours, ref.mean, form='flow_grpo', noise_level=0.7), rtol=1e-5
    )
    # The Gaussian form is the divergence: E_p[log p - log p_ref], by sampling.
    z = rng.standard_normal((3, 200_000)).astype(np.float32)
    difference = np.asarray((ours.mean - ref.mean) / ours.std[:, None], np.float64)
    sampled = [
        np.mean([((z[b] + d) ** 2 - z[b] ** 2).mean() / 2 for d in difference[b]]) for b in range(3)
    ]
    np.testing.assert_allclose(gaussian, sampled, rtol=0.05)
    for options in (
        dict(form='flow_grpo', kernel='cps', noise_level=levels),
        dict(form='flow_grpo'),
    ):
        with pytest.raises(ValueError, match='sde kernel'):
            kl_divergence(step, reference, **options)
    with pytest.raises(ValueError, match='k3'):
        kl_divergence(step, reference, form='k3')


def test_noise_weights():
    trained = np.array([True, True, True, False])
    np.testing.assert_array_equal(
        noise_weights(jnp.array([0.9, 0.6, 0.3, 0.0]), trained, 0.0), [1, 1, 1, 0]
    )
    np.testing.assert_allclose(
        noise_weights(jnp.array([0.9, 0.6, 0.3, 0.0]), trained, 1.0),
        [1.5, 1.0, 0.5, 0.0],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        noise_weights(jnp.array([2.0, 1.0, 1.0, 9.0]), trained, 2.0),
        [2.0, 0.5, 0.5, 0.0],
        rtol=1e-6,
    )


def test_noise_weights_have_tempflows_constant():
    """Its code multiplies sigma_k sqrt(s_k - s_k+1) by 2.25 on SD3.5-M: T = 10, a = 0.7, all
    transitions but the last trained.
    """
    s = np.array([1.0, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0.0])
    std = flow_grpo_noise_levels(s, 0.7) * np.sqrt(s[:-1] - s[1:])
    weights = np.asarray(noise_weights(jnp.asarray(std), np.arange(10) < 9, 1.0))
    np.testing.assert_allclose(weights[:9] / std[:9], 2.25, atol=5e-3)


def test_gradients_flow_into_the_policy_alone():
    """Not into the advantages or the reference; and what is only reported has none at all."""
    ratios = np.array([1.0, 1.3, 0.9], np.float32)
    step = steps_of(np.log(ratios))

    def sums_of(mean, advantage, reference):
        return grpo_loss(
            step._replace(mean=mean),
            jnp.zeros(3),
            advantage,
            mask=np.ones(3, bool),
            clip_range=0.5,
            mean_ref=reference,
        )

    inputs = (step.mean, jnp.array([1.0, -2.0, 0.5]), step.mean + 0.1)
    for name, into in (('policy_sum', (True, False, False)), ('kl_sum', (True, False, False))):
        slopes = jax.grad(lambda *a: getattr(sums_of(*a), name), argnums=(0, 1, 2))
        gradients = jax.jit(slopes)(*inputs)
        assert [bool(np.abs(g).max() > 0) for g in gradients] == list(into), name
    reported = sorted(set(LossSums._fields) - {'policy_sum', 'kl_sum'})
    jacobian = jax.jacrev(lambda *a: [getattr(sums_of(*a), name) for name in reported], (0, 1, 2))
    for name, gradients in zip(reported, jax.jit(jacobian)(*inputs)):
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0, err_msg=name)


def test_named_advantages_have_a_surrogate_each():
    ratios = np.array([1.0, 1.3, 0.7], np.float32)
    step, options = steps_of(np.log(ratios)), dict(mask=np.ones(3, bool), clip_range=0.2)
    of = lambda advantage, **more: grpo_loss(step, jnp.zeros(3), advantage, **options, **more)
    a, b = jnp.array([2.0, 1.0, -1.0]), jnp.array([-2.0, -1.0, 1.0])
    both = of({'a': a, 'b': b})
    # Surrogates add up, not advantages: a + b is 0, and clipping is pessimistic about each.
    assert float(both.policy_sum) == pytest.approx(float(of(a).policy_sum + of(b).policy_sum))
    assert float(both.policy_sum) > 0.1 and of(a + b).policy_sum == 0
    assert both.policy_count == 3  # transitions, not surrogates
    weighted = of({'a': a, 'b': b}, advantage_weights={'a': 1.0, 'b': 0.25})
    assert float(weighted.policy_sum) == pytest.approx(
        float(of(a).policy_sum + 0.25 * of(b).policy_sum)
    )
    np.testing.assert_array_equal(of({'a': a}).policy_sum, of(a).policy_sum)
