"""One update against its formulas written out again in NumPy and float64: credit, weights,
clipping, KL, shares of prompts, average.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.core.grpo_loss import LossSums
from densegrpo_jax.core.losses import TRANSITIONS
from densegrpo_jax.training.batches import BATCHES
from tests.training.one_update import (
    BASE,
    CLIP,
    GROUP,
    PROMPT,
    PROMPTS,
    SAMPLES,
    SIGMAS,
    START,
    STEPS,
    TRAINED,
    Network,
    one_iteration,
)


def expected(c, rollout, rewards, valid):
    """(policy after the iteration, clip_fraction, ratio_deviation, approx_kl_old, kl),
    float64, from latents and rewards: Eq. 3 to 8 without this package.
    """
    s, latents = SIGMAS.astype(np.float64), np.asarray(rollout.latents, np.float64)
    of_state = np.stack([rewards[rollout.plan.sources_of()[k]] for k in range(STEPS + 1)]).astype(
        np.float64
    )
    gain, keep = of_state[1:] - of_state[:-1], valid.all(0)
    advantage = np.zeros((STEPS, SAMPLES))
    for group in np.arange(SAMPLES).reshape(PROMPTS, GROUP):
        kept = group[keep[group]]
        values = gain[:, kept]
        advantage[:, kept] = (values - values.mean(1, keepdims=True)) / (
            values.std(1, keepdims=True) + c.credit.std_eps
        )
    advantage = np.clip(advantage, -c.credit.clip, c.credit.clip)
    cps = c.rollout.kernel == 'cps'
    level = (
        np.full(STEPS, 0.6)
        if cps
        else 0.7 * np.sqrt(s[:-1] / (1 - np.where(s[:-1] == 1, s[1], s[:-1])))
    )
    std = s[1:] * np.sin(level * np.pi / 2) if cps else level * np.sqrt(s[:-1] - s[1:])
    weight = std**c.loss.noise_power / np.mean(std[:4] ** c.loss.noise_power)

    def mean(matrix, k, rows):
        x = latents[k, rows]
        v = jnp.tanh(x @ matrix) + s[k] * x + np.repeat(PROMPT, GROUP, 0)[rows][:, None, :]
        x0, x1 = x - s[k] * v, x + (1 - s[k]) * v
        if cps:
            return (1 - s[k + 1]) * x0 + np.sqrt(s[k + 1] ** 2 - std[k] ** 2) * x1
        return x - (s[k] - s[k + 1]) * (v + level[k] ** 2 / (2 * s[k]) * x1)

    def loss(policy, rows):
        total, clipped, deviation, square, kl = 0.0, 0, 0.0, 0.0, 0.0
        for k in TRAINED:
            now, old, reference = (mean(BASE + p, k, rows) for p in (policy, START, 0.0))
            of_elements = lambda square, scale: square.mean((1, 2)) / (2 * scale**2)
            ratio = jnp.exp(
                of_elements((latents[k + 1, rows] - old) ** 2, std[k])
                - of_elements((latents[k + 1, rows] - now) ** 2, std[k])
            )
            a = advantage[k, rows]
            clipped += (jnp.abs(ratio - 1) > CLIP).sum()
            deviation += jnp.abs(ratio - 1).sum()
            square += (jnp.log(ratio) ** 2).sum()
            total -= (
                jnp.minimum(ratio * a, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * a) * weight[k]
            ).sum()
            scale = std[k] if c.loss.kl_form == 'gaussian' else level[k]
            kl += of_elements((now - reference) ** 2, scale).sum()
        total += c.loss.beta * kl
        return total / (len(TRAINED) * len(rows)), jnp.stack([clipped, deviation, square / 2, kl])

    policy, sums = np.asarray(START, np.float64), np.zeros(4)
    for share in np.split(np.arange(SAMPLES), c.optim.updates):
        rows = share[keep[share]]
        sums += np.asarray(loss(policy, rows)[1])
        policy = policy - jax.grad(loss, has_aux=True)(policy, rows)[0]
    return np.asarray(policy), *sums / (len(TRAINED) * keep.sum())


@pytest.mark.parametrize(
    'invalid, changes',
    [
        (None, {}),
        (
            7,
            {
                'optim.updates': 2,
                'loss.noise_power': 1.0,
                'loss.beta': 0.04,
                'loss.kl_form': 'flow_grpo',
            },
        ),
        (
            7,
            {
                'optim.updates': 2,
                'loss.noise_power': 2.0,
                'loss.beta': 0.1,
                'rollout.kernel': 'cps',
                'rollout.noise': 'constant',
            },
        ),
    ],
    ids=['plain', 'weights and KL', 'cps'],
)
def test_an_iteration_moves_the_policy_as_its_formulas_say(invalid, changes):
    c, rollout, rewards, valid, new, metrics = one_iteration(invalid, **changes)
    with jax.enable_x64(True):
        policy, clipped, deviation, square, kl = expected(c, rollout, rewards, valid)
    np.testing.assert_allclose(
        new.policy['a'] - START, policy - START, atol=3e-6 * np.abs(policy - START).max()
    )
    assert (
        metrics['transitions'] == len(TRAINED) * (SAMPLES - (invalid is not None))
        and metrics['finite']
        and new.step == 21
    )
    # the first update is on the policy that sampled
    assert (clipped > 0.01) == (c.optim.updates > 1)
    np.testing.assert_allclose(
        [metrics['clip_fraction'], metrics['approx_kl_old']],
        [clipped, square],
        rtol=1e-3,
        atol=1e-12,
    )
    sides = metrics['clip_fraction_low'] + metrics['clip_fraction_high']
    np.testing.assert_allclose(sides, metrics['clip_fraction'], rtol=1e-6)
    np.testing.assert_allclose(metrics['ratio_deviation'], deviation, rtol=1e-3, atol=1e-6)
    if c.loss.beta:
        np.testing.assert_allclose(metrics['kl'], kl, rtol=1e-4)
    # d = min(decay, (1 + step) / (10 + step)) with the step before the update, 20; the average was
    # 0.
    np.testing.assert_allclose(new.ema['a'], (1 - 21 / 30) * new.policy['a'], rtol=1e-6)


def test_an_update_without_samples_has_finite_metrics():
    none = LossSums.zeros()
    for name, value in BATCHES[TRANSITIONS].metrics(none, none).items():
        assert value == 0, name


def test_a_sample_that_is_not_finite_costs_itself_and_not_the_update():
    *_, new, metrics = one_iteration(nan=7, **{'loss.beta': 0.1})
    assert (
        metrics['finite']
        and new.skipped == 0
        and metrics['transitions'] == len(TRAINED) * (SAMPLES - 1)
    )
    assert np.isfinite(new.policy['a']).all() and np.abs(new.policy['a'] - START).max() > 1e-4


def test_a_kl_that_is_only_measured_moves_nothing_even_if_it_is_not_finite(monkeypatch):
    plain = Network.velocity_fn

    def velocity_fn(self, base, policy, *given, **options):
        v = plain(self, base, policy, *given, **options)
        return v if policy is not None else lambda x, s: v(x, s) * np.inf

    without = one_iteration()[-2]
    monkeypatch.setattr(Network, 'velocity_fn', velocity_fn)
    *_, new, metrics = one_iteration(**{'loss.measure_kl': True})
    assert metrics['finite'] and new.skipped == 0 and not np.isfinite(metrics['kl'])
    np.testing.assert_allclose(new.policy['a'], without.policy['a'], rtol=1e-6)
