"""From the rewards of branches to advantages and weights, against their definitions in NumPy; and
the methods on branches that are each other's degenerate cases.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.config.methods import apply_method
from densegrpo_jax.config.validation import validate
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.core.grpo_loss import noise_weights
from densegrpo_jax.core.rollout import Rollout
from densegrpo_jax.core.schedules import flow_grpo_noise_levels, sigmas_from_scheduler
from densegrpo_jax.core.transitions import OUTCOME
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import open_shapes
from densegrpo_jax.training.announce import scored
from densegrpo_jax.training.learner import make_credit

P, G = 2, 12


@pytest.fixture(scope='module')
def pipeline():
    config = tiny_ocr.get_config()
    return open_shapes(config, make_mesh(config.mesh, jax.devices()[:1]))


def method(name, **changes):
    config = apply_method(tiny_ocr.get_config(), name)
    config.rollout.update(prompts=P, group=G, prompts_per_batch=P)
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    config.credit.update(std_eps=0.0, clip=100.0)
    validate(config)
    return config


def rollout(schedule):
    """A rollout of the schedule's plan with the stds of its grid."""
    plan, t = schedule.plan, schedule.plan.transitions
    starts, ends = np.array(t.k_from), np.array(t.k_to)
    s, s_next = (
        jnp.asarray(np.repeat(schedule.sigmas[i][:, None], P * G, 1)) for i in (starts, ends)
    )
    level = jnp.asarray(schedule.noise_levels)[starts][:, None] + 0 * s
    return Rollout(
        latents=jnp.zeros((plan.kept, P * G, 2)),
        s=s,
        s_next=s_next,
        log_prob=0 * s,
        std=level * jnp.sqrt(s - s_next),
        noise_level=level,
        completions=jnp.zeros((len(plan.completions), P * G, 2)),
        similarity=None,
        plan=plan,
    )


def credit(pipeline, config, rewards=None, weights=None, **scores):
    """(schedule, record, metrics); rewards [S, B]."""
    schedule = make_schedule(pipeline, config)
    sampled = rollout(schedule)
    if rewards is None:
        shape = len(schedule.plan.completions), P * G
        rewards = np.random.default_rng(0).random(shape).astype(np.float32)
    if (
        config.credit.combine == 'advantages' and not scores
    ):  # a run passes every reward by its name
        weights, scores = {'alone': 1.0}, {'alone': rewards}
    record, metrics = make_credit(config, schedule, weights=weights)(
        [sampled], rewards, np.ones(rewards.shape, bool), group_ids_of([G] * P), scores
    )
    return schedule, record, metrics, rewards


def normalised(rewards, size):
    """(r - mean) / std of each group of `size` adjacent samples, float64."""
    r = np.float64(rewards).reshape(len(rewards), -1, size)
    return ((r - r.mean(2, keepdims=True)) / r.std(2, keepdims=True)).reshape(len(rewards), -1)


def by_step(record, name=OUTCOME):
    return np.asarray(record.advantage[name]).reshape(-1, P * G)


def test_strides_are_normalised_alone_and_added(pipeline):
    schedule, record, metrics, rewards = credit(pipeline, method('g2rpo'))
    assert schedule.plan.credited == ('branch', 'branch by 2')
    every, second = (
        rewards[list(schedule.plan.sources_of(kind)[:3])] for kind in schedule.plan.credited
    )
    expected = normalised(every, G) + normalised(second, G)
    np.testing.assert_allclose(by_step(record), expected, atol=2e-4)
    np.testing.assert_allclose(metrics['gain'][:3], every.mean(1), rtol=1e-5)
    assert np.isnan(metrics['gain'][3:]).all() and record.mask.all()
    np.testing.assert_allclose(by_step(record).reshape(3, P, G).mean(2), 0, atol=1e-5)


def test_several_rewards_are_normalised_for_every_stride(pipeline):
    config = method('g2rpo')
    shape = len(make_schedule(pipeline, config).plan.completions), P * G
    a, b = np.random.default_rng(1).random((2, *shape)).astype(np.float32)
    weights = {'a': 1.0, 'b': 0.5}
    schedule, record, _, _ = credit(pipeline, config, a + b, weights, a=a, b=b)
    expected = sum(
        weight * normalised(values[list(schedule.plan.sources_of(kind)[:3])], G)
        for kind in schedule.plan.credited
        for weight, values in ((1.0, a), (0.5, b))
    )
    np.testing.assert_allclose(by_step(record), expected, atol=3e-4)


def test_a_group_without_spread_adds_nothing_and_is_counted(pipeline):
    config = method('g2rpo', plan__strides=(1,))
    rewards = np.random.default_rng(0).random((3, P * G)).astype(np.float32)
    rewards[1, :G] = 0.5
    _, record, metrics, _ = credit(pipeline, config, rewards)
    np.testing.assert_array_equal(by_step(record)[1, :G], 0)
    assert np.abs(by_step(record)[1, G:]).max() > 0.5
    np.testing.assert_array_equal(metrics['zero_spread'][:3], [0, 0.5, 0])


@pytest.mark.parametrize('siblings, size', [('seed', 3), ('prompt', 12)])
def test_samples_of_a_seed_are_compared(pipeline, siblings, size):
    config = method('temp_flow', credit__siblings=siblings)
    schedule, record, _, rewards = credit(pipeline, config)
    values = rewards[list(schedule.plan.sources_of('branch')[:5])]
    np.testing.assert_allclose(by_step(record), normalised(values, size), atol=3e-4)
    # weights follow the noise, with a mean of 1
    weights = np.asarray(record.weight).reshape(5, P * G)[:, 0]
    std = np.asarray(record.std).reshape(5, P * G)[:, 0]
    np.testing.assert_allclose(weights, std / std.mean(), rtol=1e-5)


def test_the_std_may_be_that_of_the_batch(pipeline):
    config = method('temp_flow', credit__siblings='prompt', credit__std='global')
    schedule, record, _, rewards = credit(pipeline, config)
    r = np.float64(rewards[list(schedule.plan.sources_of('branch')[:5])])
    centred = r - np.repeat(r.reshape(5, P, G).mean(2), G, 1)
    np.testing.assert_allclose(by_step(record), centred / r.std(1, keepdims=True), atol=3e-4)


def test_constants_of_temp_flow():
    """Its released code types the weights' scale in, 2.25 for SD3.5 and 1.73 for FLUX: 1 / (mean
    std) over all transitions but the last.
    """
    sd3 = {'num_train_timesteps': 1000, 'shift': 3.0}
    flux = {'use_dynamic_shifting': True}
    for config, name, tokens, level, constant in (
        (sd3, 'sd3', 1024, 0.7, 2.25),
        (flux, 'flux', 4096, 0.9, 1.73),
    ):
        sigmas = sigmas_from_scheduler(config, 10, tokens, own_range=name == 'sd3')
        std = flow_grpo_noise_levels(sigmas, level) * np.sqrt(-np.diff(sigmas))
        trained = np.arange(10) < 9
        np.testing.assert_allclose(
            noise_weights(std, trained, 1)[:9] / std[:9], constant, atol=5e-3
        )


def test_unmerged_e_grpo_is_g2rpo_with_one_stride(pipeline):
    """The same table of evaluations, and nothing else that differs: the same program."""
    ours = method('e_grpo', plan__merge_tau=0.0)
    other = method('g2rpo', plan__strides=(1,))
    for config in (ours, other):
        config.label = ''
    assert ours.to_dict() == other.to_dict()
    assert make_schedule(pipeline, ours).plan == make_schedule(pipeline, other).plan
    merged = make_schedule(pipeline, method('e_grpo')).plan
    assert merged.transitions.k_to == (1, 2, 4) and merged.nfe == 3 / 12 + 5 + 4 + 2


def test_temp_flow_with_one_seed_is_g2rpo_with_one_stride(pipeline):
    """Bit for bit, the weights included."""
    shared = {'plan__active': 'first_half', 'plan__strides': (1,), 'loss__noise_power': 0.0}
    ours = method('temp_flow', plan__seeds=1, loss__beta=0.0, **shared)
    other = method('g2rpo', **shared)
    found, expected = (credit(pipeline, config) for config in (ours, other))
    assert found[0].plan == expected[0].plan
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_credit_of_a_tree(pipeline):
    """12 leaves, split into 6 nodes of 2 and then into single ones: the mean reward of a node's
    leaves, normalised over the nodes of its depth.
    """
    schedule, record, metrics, rewards = credit(pipeline, method('branch'))
    assert schedule.plan.together == (2, 2, 1, 1, 1, 1)
    pairs = np.repeat(np.float64(rewards[0]).reshape(-1, 2).mean(1), 2)
    expected = normalised([pairs, pairs, rewards[0], rewards[0], rewards[0]], G)
    np.testing.assert_allclose(by_step(record), expected, atol=2e-4)
    np.testing.assert_allclose(metrics['gain'][:5], rewards.mean(), rtol=1e-5)


def test_a_tree_that_splits_at_once_has_sparse_credit(pipeline):
    found = credit(pipeline, method('branch', plan__splits=(0,)))
    sparse = {'plan__kind': 'trajectory', 'plan__splits': (0,), 'rollout__shared_noise': True}
    expected = credit(pipeline, method('branch', **sparse))
    assert found[0].plan.nfe == 5 + 1 / 12 and expected[0].plan.nfe == 6
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_announcement_names_merged_steps_and_those_below_tau(pipeline):
    config = method('e_grpo', plan__merge_tau=2.0, plan__active='window')
    text = scored(config, make_schedule(pipeline, config))
    assert text == (
        'scored branch (0, 1, 2, 3, 4), merged steps 2 to 4, 3 to 5, '
        'e^h of steps (4,) is below plan.merge_tau even so'
    )
    fixed = method('e_grpo', plan__merge_tau=0.0, plan__merge=(2, 2, 1))
    assert scored(fixed, make_schedule(pipeline, fixed)) == (
        'scored branch (0, 1, 2), merged steps 0 to 2, 1 to 3'
    )
    with pytest.raises(ValueError, match=r'plan.merge=\(2, 2\) has 2 lengths; expected 3'):
        make_schedule(pipeline, method('e_grpo', plan__merge_tau=0.0, plan__merge=(2, 2)))
