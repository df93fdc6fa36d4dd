"""Process rewards inside a rollout: what drifts, by how much, and what is scored, against gradients
taken outside of it; and the same over eight devices.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.pipelines.base import repeat_rows
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.pipelines.inside import hidden_fn
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.streams import key_data, stream_key
from densegrpo_jax.sampling.guide import guide_maker
from densegrpo_jax.sampling.process_reward import Probe, ProcessReward
from densegrpo_jax.sampling.sampler import make_rollout, normal_rows, sample_keys
from densegrpo_jax.sampling.schedule import make_schedule
from tests import compiled, miniature
from tests.meshes import one_device

PROMPTS = ['A neon sign that says "ONE"', 'A paper note with the word "TWO"']
SIZE, GROUP = (16, 32), 4
BASE = {
    'model.height': 16,
    'model.width': 32,
    'rollout.steps': 3,
    'rollout.group': GROUP,
    'rollout.prompts_per_batch': 2,
    'rollout.noise': 'constant',
    'rollout.level': 0.5,
    'credit.rule': 'sparse',
    'guide.steps': (1,),
    'guide.scale': 2.0,
}
FAMILIES = {
    'flux': miniature.random_flux,
    'sd3': miniature.random_sd3,
    'sd15': miniature.random_sd15,
}


@pytest.fixture(scope='module')
def opened(folder):
    return load_pipeline(folder, text_length=16)


def probe_of(size):
    """A probe with weights of about 1."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal(size).astype(np.float32)
    return Probe(hidden, np.float32([0.5, -1.0, 2.0]), {}, {})


def sample(opened, sizes=(1, 1, 1), **changes):
    """(the rollout, its noise levels of the grid, the inputs of its process reward)."""
    pipeline, params = opened
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict({**BASE, **changes})
    config.reward = {'pixels': {'weight': 2.0}}
    mesh = make_mesh(
        dict(zip(('data', 'fsdp', 'tensor'), sizes)), jax.devices()[: int(np.prod(sizes))]
    )
    schedule = make_schedule(pipeline, config)
    given, maker = (), ()
    if config.guide.source != 'none':
        width = pipeline.transformer.config.hidden_dim
        process = (
            ProcessReward(mesh, probe=probe_of(width))
            if config.guide.source == 'probe'
            else ProcessReward(mesh, build_reward(config.reward))
        )
        given = (process.inputs(PROMPTS),)
        maker = (guide_maker(pipeline, config, schedule, mesh, process.reward),)
    rollout = make_rollout(pipeline, config, schedule, mesh, *maker)
    text = compiled.encode(pipeline, params, PROMPTS)
    key = key_data(stream_key(0, 1, 0))
    found, *_ = rollout(params, None, text, None, key, np.arange(2), schedule.noise_levels, *given)
    return jax.device_get(found), schedule.sigmas, *given


@pytest.fixture(scope='module')
def plain(opened):
    """The rollout without a process reward, and its grid."""
    return sample(opened)


def networks(opened):
    """(velocity, hidden states) of weights at both prompts' samples, outside a rollout."""
    pipeline, params = opened
    text = repeat_rows(compiled.encode(pipeline, params, PROMPTS), GROUP)
    options = (text, 1.5, *SIZE)
    return (
        lambda params, *at: pipeline.velocity_fn(params['transformer'], None, *options)(*at),
        lambda params, *at: hidden_fn(pipeline, params['transformer'], *options)(*at),
    )


def with_slopes(scores, params):
    """(x, s) -> (`scores(params, x, s)`, their gradients in x), by one program whose weights are
    arguments: as constants they would take longer to compile.
    """

    def summed(x, params, s):
        each = scores(params, x, s)
        return each.sum(), each

    program = jax.jit(jax.grad(summed, has_aux=True))
    return lambda x, s: program(x, params, s)[::-1]


def test_a_probe_moves_the_step_by_its_gradient_and_scores_states(opened, plain):
    plain, sigmas = plain
    found, _, inputs = sample(
        opened, **{'guide.source': 'probe', 'guide.file': 'x', 'credit.process': 'gain'}
    )
    np.testing.assert_allclose(found.latents[:2], plain.latents[:2], atol=1e-5)  # up to 9 large
    _, hidden = networks(opened)

    def scores(params, x, s):
        s = jnp.full(len(x), s)
        return hidden(params, x, s) @ inputs['hidden'] + 0.5 - s + 2 * s**2

    scored = with_slopes(scores, opened[1])
    for k in (1, 2):
        expected, _ = scored(found.latents[k], sigmas[k])
        np.testing.assert_allclose(found.process[k], expected, rtol=1e-4, atol=1e-4)
    assert not found.process[[0, 3]].any()
    _, gradient = scored(plain.latents[1], sigmas[1])
    moved = 2.0 * np.square(plain.std[1])[:, None, None] * gradient
    scale = np.abs(moved).max()
    np.testing.assert_allclose(found.latents[2] - plain.latents[2], moved, atol=1e-4 * scale)
    assert scale > 1e-3
    size = np.sqrt(np.square(moved).mean((1, 2))) / plain.std[1]
    np.testing.assert_allclose(found.drift, [0 * size, size, 0 * size], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.log_prob[:1], plain.log_prob[:1], atol=1e-6)


def test_the_reward_of_the_prediction_has_its_gradient_through_decoder_and_network(opened, plain):
    (pipeline, params), (plain, sigmas) = opened, plain
    found, *_ = sample(opened, **{'guide.source': 'value', 'credit.process': 'gain'})
    velocity, _ = networks(opened)
    colour = np.float32([0.9, 0.2, 0.2])

    def scores(params, x, s):
        s = jnp.full(len(x), s)
        x0 = x - s[:, None, None] * velocity(params, x, s)
        image, _ = pipeline.decode_float(params, x0, *SIZE)
        return -2.0 * ((image.mean((1, 2)) - colour) ** 2).sum(-1)

    scored = with_slopes(scores, params)
    for k in (1, 2):
        expected, _ = scored(found.latents[k], sigmas[k])
        np.testing.assert_allclose(found.process[k], expected, rtol=1e-4, atol=1e-5)
    _, gradient = scored(plain.latents[1], sigmas[1])
    moved = 2.0 * np.square(plain.std[1])[:, None, None] * gradient
    scale = np.abs(moved).max()
    assert scale > 1e-4
    np.testing.assert_allclose(found.latents[2] - plain.latents[2], moved, atol=1e-2 * scale + 8e-6)
    # what is given up by x' is not in the log-prob, which is that of the noise alone
    np.testing.assert_allclose(found.log_prob[0], plain.log_prob[0], atol=1e-6)


def test_differences_of_rewards_stand_for_the_gradient(opened, plain):
    (pipeline, params), (plain, sigmas) = opened, plain
    changes = {'guide.source': 'spsa', 'guide.spsa_directions': 2, 'guide.spsa_step': 0.1}
    found, *_ = sample(opened, **changes, **{'guide.scale': 200.0})
    velocity, _ = networks(opened)
    x, s = plain.latents[1], jnp.full(2 * GROUP, sigmas[1])
    x0 = x - sigmas[1] * jax.jit(velocity)(params, x, s)
    keys = sample_keys(stream_key(0, 1, 0), jnp.arange(2), GROUP)
    colour, total = np.float32([0.9, 0.2, 0.2]), 0

    @jax.jit
    def scores(params, z):
        image, _ = pipeline.decode_float(params, z, *SIZE)
        return -2.0 * ((image.mean((1, 2)) - colour) ** 2).sum(-1)

    reward = lambda z: scores(params, z)
    for i in range(2):
        u = normal_rows(keys, 2 * len(sigmas) + 2 + i, x.shape[1:])
        slope = (reward(x0 + 0.1 * u) - reward(x0 - 0.1 * u)) / 0.2
        total += slope[:, None, None] * u / 2
    moved = 200.0 * np.square(plain.std[1])[:, None, None] * total
    scale = np.abs(moved).max()
    np.testing.assert_allclose(found.latents[2] - plain.latents[2], moved, atol=0.02 * scale + 8e-6)
    assert scale > 1e-4


def shift_of(gradient, std, **changes):
    """The shift of a step from s = 0.7 to 0.3 of two groups of four samples."""
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict({**BASE, 'guide.source': 'value', **changes})
    schedule = make_schedule(Grid(), config)
    mesh = one_device()
    guide = guide_maker(None, config, schedule, mesh, None)({}, {}, None, None, {'text': []})
    s, s_next = np.full(8, 0.7, np.float32), np.full(8, 0.3, np.float32)
    return np.asarray(guide.shift(gradient, std, s, s_next))


@pytest.mark.parametrize('source', ['value', 'spsa'])
def test_a_prediction_without_a_score_has_none(source):
    """It counts as unscored, not as a reward of 0, and its own sample alone has no drift."""
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict({**BASE, 'guide.source': source})
    config.reward = {'pixels': {'weight': 2.0}}
    mesh = one_device()
    process = ProcessReward(mesh, build_reward(config.reward))
    make = guide_maker(Decodes(), config, make_schedule(Decodes(), config), mesh, process.reward)
    keys = sample_keys(stream_key(0, 1, 0), jnp.arange(1), GROUP)
    velocity = lambda x, s: 0.1 * x
    guide = make({}, {}, keys, velocity, process.inputs(PROMPTS[:1]))
    x, s = jnp.ones((GROUP, 2, 2, 3)).at[1].set(9.0), jnp.full(GROUP, 0.5)
    others = np.arange(GROUP) != 1
    np.testing.assert_array_equal(np.isfinite(guide.score(x, x, s)), others)
    given = () if guide.evaluates else (velocity(x, s),)
    gradient = np.asarray(guide.fn(x, s, 1, *given)[-1])
    assert np.isfinite(gradient[others]).all() and gradient[others].any((1, 2, 3)).all()
    assert not (np.isfinite(gradient[1]).all() and gradient[1].any())


class Grid:
    """The part of a pipeline that a schedule asks."""

    def sigmas(self, steps, height, width):
        return np.linspace(1, 0, steps + 1, dtype=np.float32)


class Decodes(Grid):
    """And the part that a process reward asks: latents are images, finite ones below 5."""

    end_scale = 1.0

    def decode_float(self, params, z, height, width):
        return z / 10, (z < 5).all((1, 2, 3))


def test_sizes_of_drifts():
    """Normalised, a drift is guide.scale times the std in units of the std; a share of each group
    alone; at a fixed rate, the length of the step counts instead of its variance.
    """
    gradient = np.random.default_rng(0).standard_normal((8, 3, 2)).astype(np.float32)
    std = np.linspace(0.1, 0.4, 8, dtype=np.float32)
    size = lambda shift: np.sqrt(np.square(shift).mean((1, 2)))
    variance = np.square(std)[:, None, None]
    np.testing.assert_allclose(shift_of(gradient, std), 2 * variance * gradient, rtol=1e-5)
    unit = shift_of(gradient, std, **{'guide.normalise': True})
    np.testing.assert_allclose(size(unit) / std, 2 * std, rtol=1e-5)
    half = shift_of(gradient, std, **{'guide.normalise': True, 'guide.share': 0.4})
    first = np.array([1, 1, 0, 0] * 2)[:, None, None]  # two of four: rounded up
    np.testing.assert_array_equal(half, first * unit)
    fixed = {'guide.normalise': True, 'guide.clip': 0.5, 'guide.scale': 0.0, 'guide.rate': 3.0}
    np.testing.assert_allclose(size(shift_of(gradient, std, **fixed)), 0.5 * 3 * 0.4, rtol=1e-5)
    small = 0.1 * gradient / size(gradient)[:, None, None]
    kept = shift_of(small, std, **{'guide.clip': 0.5})
    np.testing.assert_allclose(kept, 2 * variance * small, rtol=1e-5)


# Rollouts are compared over eight devices in tests/training/test_meshes.py, updates with a process
# reward in test_euphonium.py.
@pytest.mark.slow
@pytest.mark.parametrize('source', ['probe', 'value'])
def test_eight_devices_sample_as_one_does(opened, source):
    changes = {'guide.source': source, 'credit.process': 'gain', 'guide.share': 0.5}
    changes |= {'guide.file': 'x' * (source == 'probe')}
    one, *_ = sample(opened, **changes)
    eight, *_ = sample(opened, (2, 2, 2), **changes)
    for name in ('latents', 'log_prob', 'process', 'drift'):
        expected = np.asarray(getattr(one, name))
        np.testing.assert_allclose(
            getattr(eight, name), expected, atol=1e-4 * np.abs(expected).max(), err_msg=name
        )


@pytest.mark.parametrize('family', FAMILIES)
def test_hidden_states_are_what_the_output_layer_sees(tmp_path, family):
    """With the output layers' inputs changed by nothing: the states' shape, their dependence on x,
    and a velocity that does not change when they are kept.
    """
    pipeline, params = load_pipeline(FAMILIES[family](tmp_path), text_length=16)
    size = (32, 32)
    text = compiled.encode(pipeline, params, PROMPTS)
    x = jax.random.normal(jax.random.key(0), (2, *pipeline.latent_shape(*size)))
    s = jnp.full(2, 0.5)
    options = text, 1.5, *size
    base = params['transformer']

    @jax.jit
    def hidden(base, x):
        network = pipeline.network_fn(base, None, *options)
        return hidden_fn(pipeline, base, *options)(x, s), network(x, s)

    states, plain = hidden(base, x)
    assert states.shape[0] == 2 and states.ndim == 2 and states.dtype == jnp.float32
    moved = np.asarray(hidden(base, x.at[0].add(0.1))[0] - states)
    assert np.abs(moved[0]).max() > 1e-4 and np.abs(moved[1]).max() < 1e-5  # rows are independent
    found = []
    keeping = dataclasses.replace(pipeline, sown=found, sows='hidden')

    @jax.jit
    def kept(base, x):
        v = keeping.network_fn(base, None, *options)(x, s)
        return v, jax.tree.leaves(found.pop())

    v, (of_positions,) = kept(base, x)
    np.testing.assert_allclose(v, plain, atol=1e-6 * np.abs(plain).max())
    flat = np.asarray(of_positions, np.float32).reshape(2, -1, of_positions.shape[-1])
    np.testing.assert_allclose(states, flat.mean(1), atol=1e-4 * np.abs(flat).max())
