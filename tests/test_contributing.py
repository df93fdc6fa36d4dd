"""The examples of CONTRIBUTING.md do what the page says."""

import functools
import inspect
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from densegrpo_jax.config.loading import load
from densegrpo_jax.config.method import credit_rule_of, loss_of
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.validation import validate
from densegrpo_jax.core.clean_samples import NoisedSamples
from densegrpo_jax.core.dense_reward import dense_reward, needed_states
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.networks import sd3
from densegrpo_jax.networks.lora import LoraConfig
from densegrpo_jax.networks.network import Network
from densegrpo_jax.pipelines import folder as pipeline_folder
from densegrpo_jax.pipelines import saving
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.flux import FluxPipeline
from densegrpo_jax.pipelines.released import released
from densegrpo_jax.rewards import REWARDS, build_reward
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.sharding import shardings
from densegrpo_jax.sampling.session import open_shapes
from densegrpo_jax.sampling.state import optimiser, state_shapes
from tests import miniature, own_family

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / 'CONTRIBUTING.md').read_text()
# '# path' in the first line of an example -> its code
EXAMPLES = dict(re.findall(r'```python\n# (\S+)\n(.*?)```', PAGE, re.DOTALL))


def example(name):
    module = {}
    exec(EXAMPLES[name], module)
    return module


def test_every_example_is_tested():
    tested = re.findall(
        r"example\('(\S+)'\)|EXAMPLES\['(\S+)'\]", pathlib.Path(__file__).read_text()
    )
    assert {first or second for first, second in tested} == set(EXAMPLES)
    assert PAGE.count('```python') == len(EXAMPLES)


def test_the_reward(monkeypatch):
    reward = example('densegrpo_jax/rewards/local/redness.py')['RednessReward']
    assert "`'redness': 'local.redness:RednessReward',`" in PAGE
    monkeypatch.setitem(REWARDS, 'redness', reward)
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[0, ..., 0], images[1, ..., 0], images[1, ..., 2] = 200, 10, 30
    scores = build_reward({'redness': {'weight': 1.0}})(images, ['a'] * 3, [{}] * 3)
    np.testing.assert_allclose(scores.values['redness'], [1, 0.25, np.nan])
    assert scores.valid.tolist() == [True, True, False]


def test_the_credit_rule(tmp_path, monkeypatch):
    (tmp_path / 'my_rules.py').write_text(EXAMPLES['my_rules.py'])
    monkeypatch.syspath_prepend(tmp_path)
    config = default_config()
    config.credit.rule, _ = re.findall(r"`c\.credit\.rule = '(.*?)'`", PAGE)
    validate(config)
    rule = credit_rule_of(config)
    assert needed_states(rule, step_masks(np.float32([1, 0.8, 0.4, 0]), last=1)) == (0, 1, 3)
    rewards = np.float32([[1, 2], [3, 2], [0, 4]])
    np.testing.assert_allclose(dense_reward(rewards, rule), [[1, 2], [-1.5, 3]])
    np.testing.assert_allclose(dense_reward(rewards, rule, mix=1.0), [[0, 4], [0, 4]])


def test_the_loss(tmp_path, monkeypatch):
    (tmp_path / 'my_losses.py').write_text(EXAMPLES['my_losses.py'])
    monkeypatch.syspath_prepend(tmp_path)
    config = default_config()
    (config.loss.kind,) = re.findall(r"`c\.loss\.kind = '(.*?)'`", PAGE)
    config.credit.rule = 'sparse'
    validate(config)
    rng = np.random.default_rng(0)
    x0, noise, v = (rng.standard_normal((3, 4, 2)).astype(np.float32) for _ in range(3))
    given = {'x': x0, 's': np.zeros(3), 'reward': np.zeros(3), 'prompt_id': np.zeros(3, int)}
    given['weight'] = np.ones(3)
    advantage, mask = np.float32([1, -1, 2]), np.array([True, True, False])
    batch = NoisedSamples(x0=x0, noise=noise, advantage={'outcome': advantage}, mask=mask, **given)
    sums = loss_of(config).fn({'policy': v}, batch, temperature=0.5)
    wanted = np.exp(2 * advantage) * ((v - (noise - x0)) ** 2).mean((1, 2))
    np.testing.assert_allclose(sums.policy_sum, wanted[:2].sum(), rtol=1e-5)
    assert sums.policy_count == 2


def test_the_model_family(tmp_path, monkeypatch):
    name = 'CleanFluxPipeline'  # the example sets it; afterwards it is removed
    monkeypatch.setitem(pipeline_folder.PIPELINES, name, FluxPipeline)
    example('densegrpo_jax/pipelines/clean_flux.py')
    folder = miniature.random_flux(tmp_path)
    index = json.loads((folder / 'model_index.json').read_text())
    velocities = {}
    for name in ('FluxPipeline', 'CleanFluxPipeline'):
        (folder / 'model_index.json').write_text(json.dumps(index | {'_class_name': name}))
        pipeline, params = pipeline_folder.load_pipeline(folder, text_length=16)
        shapes = pipeline.conditioning_shapes(2)
        conditioning = jax.tree.map(lambda shape: jnp.ones(shape.shape, shape.dtype), shapes)
        velocity = pipeline.velocity_fn(params['transformer'], None, conditioning, 1.0, 32, 32)
        x = jax.random.normal(jax.random.key(0), (2, *pipeline.latent_shape(32, 32)))
        velocities[name] = jax.jit(velocity)(x, jnp.array([0.5, 0.25]))
    wanted = (x - velocities['FluxPipeline']) / jnp.array([0.5, 0.25])[:, None, None]
    np.testing.assert_allclose(velocities['CleanFluxPipeline'], wanted, rtol=1e-6)
    assert float(jnp.abs(velocities['FluxPipeline']).max()) > 0.1
    assert released()['black-forest-labs/FLUX.1-dev'][0] is FluxPipeline  # not the subclass


def test_the_parts_of_a_family_are_listed():
    section = PAGE.split('## A model family')[1].split('## ')[0]
    rows = re.findall(r'^\| `.*', section, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r'`(\w+)`', row)}
    of = lambda kind: {n for n, said in kind.__annotations__.items() if 'ClassVar' in str(said)}
    source = inspect.getsource(Pipeline) + inspect.getsource(Network)
    abstract = set(re.findall(r'def (\w+)\((?:(?!def ).)*?raise NotImplementedError', source, re.S))
    assert listed >= of(Pipeline) | of(Network) | abstract | {'layout'}
    assert listed <= of(Pipeline) | {*dir(Pipeline), *dir(Network), *dir(sd3)}


def test_a_family_is_asked_for_all_that_shared_code_needs(folder, tmp_path, monkeypatch):
    """Its layers have names that no other family has. The one line that is not its own is that of
    the registry.
    """
    monkeypatch.setitem(pipeline_folder.PIPELINES, 'PlainPipeline', own_family.PlainPipeline)
    flux = pipeline_folder.open_pipeline(folder, text_length=16)
    transformer = dict(
        _class_name=own_family.NETWORK, joint_attention_dim=16, pooled_projection_dim=16
    )
    written = pipeline_folder.build_pipeline(
        flux.configs | {'transformer': transformer},
        flux.scheduler,
        flux.tokenizers,
        kind=own_family.PlainPipeline,
        text_length=16,
    )
    draw = lambda s: np.random.default_rng(s.size).standard_normal(s.shape, np.float32) / 8
    weights = jax.tree.map(draw, written.abstract_params())
    saving.save_pipeline(tmp_path / 'plain', written, weights)

    # opened, with adapters on the layers that it names
    adapted = LoraConfig(2, 4.0, own_family.LORA_TARGETS)
    options = dict(text_length=16, lora=adapted, scan=True)
    pipeline = pipeline_folder.open_pipeline(tmp_path / 'plain', **options)
    pipeline_folder.check_params(tmp_path / 'plain', pipeline)
    layers = {f'stages.{i}.{name}' for i in range(2) for name in ('widen', 'narrow')}
    assert set(adapted.select(pipeline.adapter_names())) == layers

    # placed and quantised
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
    place = lambda tree: shardings(tree, mesh, pipeline.sharding_rules, min_bytes=0)
    load = functools.partial(pipeline_folder.load_params, tmp_path / 'plain', pipeline)
    stored = load(['transformer'], shardings=place, quantize='int8')['transformer']
    kernels = {name: stored['stages'][name]['kernel'] for name in ('widen', 'narrow')}
    spec = {name: kernel.qvalue.sharding.spec for name, kernel in kernels.items()}
    assert spec == {'widen': P(None, 'fsdp', 'tensor'), 'narrow': P(None, ('tensor', 'fsdp'))}
    assert isinstance(stored['enter']['kernel'], jax.Array)
    state = state_shapes(pipeline, optimiser(default_config(), pipeline.transformer))
    placed = place(state.policy)['stages']
    assert placed['widen']['b'].spec == P(None, 'fsdp', 'tensor')
    assert placed['narrow']['a'].spec == P(None, ('tensor', 'fsdp'))

    # trained: the gradient reaches its adapters
    base = load(['transformer'], quantize='int8')['transformer']
    policy = jax.tree.map(draw, state.policy)
    text = {n: jnp.ones(s.shape, s.dtype) for n, s in pipeline.conditioning_shapes(2).items()}
    x = jnp.ones((2, *pipeline.latent_shape(32, 32)))

    def loss(policy):
        velocity = pipeline.velocity_fn(base, policy, text, 1.0, 32, 32)
        return (velocity(x, jnp.array([0.5, 0.25])) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))(policy)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))

    # planned by the name of its release
    config = default_config()
    config.model.path = 'somebody/plain'
    config.lora.targets = own_family.LORA_TARGETS
    shapes = open_shapes(config, mesh).abstract_params(['transformer'])['transformer']
    assert shapes['stages']['widen']['kernel'].shape == (2, 2048, 4096)


def test_the_recipe(tmp_path):
    (tmp_path / 'tiny_sparse.py').write_text(EXAMPLES['configs/tiny_sparse.py'])
    config = load(str(tmp_path / 'tiny_sparse.py'))
    validate(config)
    assert (config.iterations, config.credit.rule, config.rollout.group) == (120, 'sparse', 12)


@pytest.mark.parametrize('command', re.findall(r'^    bash (\S+)', PAGE, re.MULTILINE))
def test_its_scripts_are_there(command):
    assert (ROOT / command).is_file()
