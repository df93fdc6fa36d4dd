"""The jitted rollout of a batch: which noise is shared, and that pictures do not depend on the
batch they are sampled in.
"""

import jax
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.runtime.mesh import batch_sharding
from densegrpo_jax.runtime.streams import key_data, stream_key
from densegrpo_jax.sampling import sampler as sampling
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.schedule import make_schedule
from tests import compiled
from tests.meshes import data_mesh, one_device


@pytest.fixture(scope='module')
def opened(folder):
    return load_pipeline(folder, text_length=16)


_rollouts = {}  # configuration -> program, which some tests have in common


def drawn(opened, prompts, places, **changes):
    pipeline, params = opened
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict(
        {'model.height': 16, 'model.width': 32, 'rollout.steps': 2, 'rollout.group': 3, **changes}
    )
    mesh = one_device()
    schedule, key = make_schedule(pipeline, config), repr(config.to_dict())
    if key not in _rollouts:
        _rollouts[key] = make_rollout(pipeline, config, schedule, mesh)
    conditioning = compiled.encode(pipeline, params, prompts)
    return _rollouts[key](
        params,
        None,
        conditioning,
        None,
        key_data(stream_key(0, 1, 0)),
        np.array(places),
        schedule.noise_levels,
    )[:2]


def sample(*args, **changes):
    """The rollout of `drawn`."""
    return drawn(*args, **changes)[0]


def test_shared_noise_is_shared_by_a_group_and_only_at_the_start(opened):
    prompts = ['A neon sign that says "ONE"', 'A neon sign that says "TWO"']
    own, shared = (
        np.asarray(sample(opened, prompts, [0, 1], **{'rollout.shared_noise': s}).latents)
        for s in (False, True)
    )
    groups = lambda latents: latents.reshape(2, 3, -1)
    assert (groups(shared[0]) == groups(shared[0])[:, :1]).all() and (
        groups(shared[0])[0] != groups(shared[0])[1]
    ).all()
    # the group's first sample is as it was
    assert (groups(shared[0])[:, 0] == groups(own[0])[:, 0]).all()
    for latents in (own[0], own[1], shared[1]):
        assert all(
            (groups(latents)[:, i] != groups(latents)[:, j]).any()
            for i, j in ((0, 1), (0, 2), (1, 2))
        )


def test_a_prompt_gets_its_noise_by_its_place_not_by_its_batch(opened):
    prompts = ['A neon sign that says "ONE"', 'A neon sign that says "TWO"']
    both, second = sample(opened, prompts, [4, 5]), sample(opened, prompts[1:], [5])
    np.testing.assert_allclose(both.latents[:, 3:], second.latents, atol=1e-4)


def test_how_states_are_completed_changes_the_completions_alone(opened):
    ways = {
        'all steps': {},
        'two steps': {'credit.completion_steps': 2},
        'every second state': {'credit.completion_every': 2},
    }
    changes = {'rollout.steps': 6, 'rollout.group': 2}
    (whole, images), (two, other), (fewer, _) = (
        drawn(opened, ['A neon sign that says "ONE"'], [0], **changes, **more)
        for more in ways.values()
    )
    for found in (two, fewer):
        np.testing.assert_allclose(found.latents, whole.latents, atol=1e-4)
    assert (two.plan.sources_of(), two.nfe) == ((0, 1, 2, 3, 4, 5, 5), 6 + 5)
    assert (other != images)[:4].any() and len(whole.completions) == 1  # the sample's latent alone
    assert (fewer.plan.states, fewer.plan.sources_of(), fewer.nfe) == (
        (0, 2, 4, 6),
        (0, -1, 1, -1, 2, 3, 3),
        6 + 5 + 3 + 1,
    )


def test_decoding_a_few_at_a_time_changes_nothing(opened, monkeypatch):
    pipeline, params = opened
    latents = jax.random.normal(jax.random.key(0), (2, 8, *pipeline.latent_shape(16, 32)))
    rows = latents.reshape(16, *latents.shape[2:])
    expected, _ = compiled.decode(pipeline, params, rows, 16, 32)
    mesh = data_mesh(2)
    latents = jax.device_put(latents.at[1, 5, 0].set(np.nan), batch_sharding(mesh, 1))
    for rows in (4, 2, 1):  # of the four that each device has
        monkeypatch.setattr(sampling, 'DECODED_PIXELS', rows * 16 * 32)
        program = (
            jax.jit(lambda z: sampling.decode_few(pipeline, params, z, 16, 32, mesh))
            .lower(latents)
            .compile()
        )
        pictures, finite = program(latents)
        assert (
            pictures.sharding.is_equivalent_to(latents.sharding, pictures.ndim)
            and 'all-gather' not in program.as_text()
        )
        assert np.argwhere(~np.asarray(finite)).tolist() == [[1, 5]]
        differences = np.abs(
            np.asarray(pictures, int) - np.asarray(expected, int).reshape(pictures.shape)
        )
        differences[1, 5] = 0
        assert differences.max() <= 1, rows


def test_one_program_serves_any_noise_table_and_its_numbers_are_those_of_a_constant(opened):
    pipeline, params = opened
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict(
        {'model.height': 16, 'model.width': 32, 'rollout.steps': 3, 'rollout.group': 2}
    )
    mesh = one_device()
    schedule = make_schedule(pipeline, config)
    rollout = make_rollout(pipeline, config, schedule, mesh)
    conditioning = compiled.encode(pipeline, params, ['A neon sign that says "ONE"'])
    arguments = (params, None, conditioning, None, key_data(stream_key(0, 1, 0)), np.arange(1))
    given = [
        rollout(*arguments, levels) for levels in (schedule.noise_levels, 0 * schedule.noise_levels)
    ]
    (given, _, _), (_, images, _) = given
    assert rollout._cache_size() == 1
    np.testing.assert_array_equal(
        given.noise_level,
        np.where(schedule.masks.stochastic, schedule.noise_levels, 0)[:, None].repeat(2, 1),
    )
    closed_over = jax.jit(
        lambda *a: rollout.__wrapped__(*a, schedule.noise_levels), compiler_options=sampling.EXACT
    )(*arguments)[0]
    np.testing.assert_array_equal(given.latents, closed_over.latents)
    np.testing.assert_array_equal(given.log_prob, closed_over.log_prob)
    # Without noise every state lies on the ODE path that its completion follows, so all completions
    # are the sample.
    assert len(images) == 3 and np.ptp(np.int32(images), axis=0).max() <= 1


@pytest.mark.parametrize(
    'changes, stochastic, trained',
    [
        ({}, 'xxx.', 'xxx.'),
        ({'rollout.noisy_end': True}, 'xxxx', 'xxx.'),
        ({'rollout.train_end': True}, 'xxxx', 'xxxx'),
        ({'rollout.first': 1, 'rollout.last': 3}, '.xx.', '.xx.'),
    ],
)
def test_the_configuration_says_which_transitions_have_noise(opened, changes, stochastic, trained):
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict(
        {'model.height': 16, 'model.width': 32, 'rollout.steps': 4, **changes}
    )
    masks = make_schedule(opened[0], config).masks
    shown = [''.join('x' if on else '.' for on in m) for m in (masks.stochastic, masks.trained)]
    assert shown == [stochastic, trained]
