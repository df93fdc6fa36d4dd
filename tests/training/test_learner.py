"""One update against its formulas written out again in NumPy and float64: credit, weights,
clipping, KL, shares of prompts, average.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.core.dense_reward import needed_states
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import state_points, trajectory_plan
from densegrpo_jax.core.schedules import flow_grpo_noise_levels
from densegrpo_jax.pipelines.base import repeat_rows
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.sampler import Schedule
from densegrpo_jax.sampling.state import TrainState
from densegrpo_jax.training.learner import make_credit, make_update

SIGMAS = np.array([1, 0.9, 0.7, 0.45, 0.2, 0], np.float32)
STEPS, PROMPTS, GROUP, TOKENS, CHANNELS = 5, 4, 6, 3, 4
SAMPLES, TRAINED, CLIP, DECAY = PROMPTS * GROUP, range(4), 2e-3, 0.9
RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((CHANNELS, CHANNELS)).astype(np.float32) / 2
START = RNG.standard_normal((CHANNELS, CHANNELS)).astype(np.float32) * 0.01
PROMPT = RNG.standard_normal((PROMPTS, CHANNELS)).astype(np.float32) * 0.3
NOISE = RNG.standard_normal((STEPS, SAMPLES, TOKENS, CHANNELS)).astype(np.float32)
FIRST = RNG.standard_normal((SAMPLES, TOKENS, CHANNELS)).astype(np.float32)


class Network:
    """A pipeline whose velocity is tanh(x W) + s x + the prompt; W = base + policy."""

    def velocity_fn(
        self, base, policy, conditioning, guidance, height, width, *, negative=None, both=False
    ):
        matrix = base['w'] if policy is None else base['w'] + policy['a']
        return lambda x, s: (
            jnp.tanh(x @ matrix) + s[:, None, None] * x + conditioning['pooled'][:, None, :]
        )


def one_iteration(invalid=None, nan=None, **changes):
    """(configuration, rollout, rewards [S, B], valid [S, B], new state, metrics). `nan`: the sample
    whose latents are not finite.
    """
    c = default_config()
    c.update_from_flattened_dict(
        {
            'rollout.steps': STEPS,
            'rollout.prompts': PROMPTS,
            'rollout.group': GROUP,
            'rollout.prompts_per_batch': PROMPTS,
            'rollout.kernel': 'sde',
            'rollout.noise': 'flow_grpo',
            'rollout.level': 0.7,
            'loss.clip_range': CLIP,
            'credit.std': 'group',
            'optim.microbatch': 6,
            'ema.decay': DECAY,
            'ema.every': 1,
            **changes,
        }
    )
    masks = step_masks(SIGMAS)
    levels = (
        flow_grpo_noise_levels(SIGMAS, 0.7)
        if c.rollout.kernel == 'sde'
        else np.full(STEPS, 0.6, np.float32)
    )
    plan = trajectory_plan(masks, state_points(needed_states('dense', masks)))
    schedule = Schedule(SIGMAS, levels, masks, plan)
    mesh = make_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
    conditioning = {'pooled': jnp.asarray(PROMPT)}
    noise = (
        NOISE
        if nan is None
        else np.where(np.arange(SAMPLES)[:, None, None] == nan, np.float32(np.nan), NOISE)
    )
    repeated = repeat_rows(conditioning, GROUP)
    sampler = Network().velocity_fn({'w': BASE}, {'a': START}, repeated, 1, 1, 1)
    rollout = jax.jit(
        lambda: run_plan(
            sampler,
            FIRST,
            SIGMAS,
            levels,
            plan,
            lambda k: jnp.asarray(noise)[k],
            kernel=c.rollout.kernel,
        )
    )()
    rewards = np.asarray(jnp.sin(3 * rollout.completions).mean((2, 3)))
    valid = np.isfinite(rewards)
    if invalid is not None:
        valid[2, invalid] = False
    rewards = np.where(valid, rewards, 0)
    batch, _ = make_credit(c, schedule, mesh)(
        [rollout], rewards, valid, group_ids_of([GROUP] * PROMPTS)
    )
    tx, policy = optax.sgd(1.0), {'a': jnp.asarray(START)}  # an update is then the gradient itself
    state = TrainState(
        policy, jax.tree.map(jnp.zeros_like, policy), tx.init(policy), jnp.int32(20), jnp.int32(0)
    )
    return (
        c,
        rollout,
        rewards,
        valid,
        *make_update(Network(), c, tx, mesh)(
            state, {'transformer': {'w': BASE}}, conditioning, None, batch
        ),
    )


def expected(c, rollout, rewards, valid):
    """(policy after the iteration, clip_fraction, approx_kl_old), float64, from latents and
    rewards: Eq. 3 to 8 without this package.
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
        total, clipped, square = 0.0, 0, 0.0
        for k in TRAINED:
            now, old, reference = (mean(BASE + p, k, rows) for p in (policy, START, 0.0))
            of_elements = lambda square, scale: square.mean((1, 2)) / (2 * scale**2)
            ratio = jnp.exp(
                of_elements((latents[k + 1, rows] - old) ** 2, std[k])
                - of_elements((latents[k + 1, rows] - now) ** 2, std[k])
            )
            a = advantage[k, rows]
            clipped, square = (
                clipped + (jnp.abs(ratio - 1) > CLIP).sum(),
                square + (jnp.log(ratio) ** 2).sum(),
            )
            total -= (
                jnp.minimum(ratio * a, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * a) * weight[k]
            ).sum()
            total += (
                c.loss.beta
                * of_elements(
                    (now - reference) ** 2, std[k] if c.loss.kl_form == 'gaussian' else level[k]
                ).sum()
            )
        return total / (len(TRAINED) * len(rows)), jnp.stack([clipped, square / 2])

    policy, sums = np.asarray(START, np.float64), np.zeros(2)
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
        policy, clipped, square = expected(c, rollout, rewards, valid)
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
    # d = min(decay, (1 + step) / (10 + step)) with the step before the update, 20; the average was
    # 0.
    np.testing.assert_allclose(new.ema['a'], (1 - 21 / 30) * new.policy['a'], rtol=1e-6)


def test_a_sample_that_is_not_finite_costs_itself_and_not_the_update():
    *_, new, metrics = one_iteration(nan=7, **{'loss.beta': 0.1})
    assert (
        metrics['finite']
        and new.skipped == 0
        and metrics['transitions'] == len(TRAINED) * (SAMPLES - 1)
    )
    assert np.isfinite(new.policy['a']).all() and np.abs(new.policy['a'] - START).max() > 1e-4
