"""The probe of attention: row entropies against float64 and known cases, and networks that give the
same velocity with and without it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks.attention import row_entropy
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.pipelines.inside import probe_fn
from tests import compiled, miniature

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_row_entropy_of_known_rows():
    k = normal(2, 5, 3, 4)
    uniform = row_entropy(np.zeros((2, 6, 3, 4), np.float32), k)
    np.testing.assert_allclose(uniform, 1, rtol=1e-6)  # log(keys) / log(keys)
    keys = np.zeros((1, 5, 1, 4), np.float32)
    keys[0, 2] = 1
    query = np.full((1, 1, 1, 4), 25, np.float32)  # one logit 50 above the rest
    assert 0 <= float(row_entropy(query, keys)[0, 0]) < 1e-18
    two = np.zeros((1, 2, 1, 4), np.float32)  # logits 0 and log 3: weights 1/4, 3/4
    two[0, 1] = np.log(3) / 2
    found = float(row_entropy(np.ones((1, 1, 1, 4), np.float32), two)[0, 0])
    expected = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(2)
    assert found == pytest.approx(expected, rel=1e-6)


def test_row_entropy_agrees_with_its_definition_in_float64():
    q, k = 3 * normal(2, 7, 3, 4), normal(2, 9, 3, 4)
    logits = np.einsum('bqhd,bkhd->bhqk', q.astype(np.float64), k.astype(np.float64)) / 2
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = -(weights * np.log(weights)).sum(-1).mean(1) / np.log(9)
    np.testing.assert_allclose(row_entropy(q, k), expected, rtol=1e-5)
    # a shift of all logits of a row changes nothing: the same vector added to every key
    np.testing.assert_allclose(row_entropy(q, k + normal(4)), expected, rtol=1e-5)


@pytest.fixture(scope='module')
def flux(tmp_path_factory):
    folder = miniature.random_flux(tmp_path_factory.mktemp('flux'), double=2, single=2)
    return load_pipeline(folder, text_length=16)


def evaluated(kind, pipeline, params, guided=False):
    """What `Pipeline.velocity_fn` or `probe_fn` gives for two prompts."""
    size, prompts = (32, 32), ['a red circle', 'a blue star']
    text = compiled.encode(pipeline, params, [*prompts, ''])
    rows = lambda part: {name: a[part] for name, a in text.items()}
    x = jax.random.normal(jax.random.key(0), (2, *pipeline.latent_shape(*size)))

    @jax.jit  # weights are arguments: as constants they would take longer to compile
    def evaluate(base, text, negative):
        network = kind(
            pipeline, base, None, text, 1.5, *size, negative=negative if guided else None
        )
        return network(x, jnp.array([0.9, 0.4]))

    return evaluate(params['transformer'], rows(slice(0, 2)), rows(slice(2, 3)))


def probed(pipeline, params, guided=False):
    of = pipeline, params, guided
    return evaluated(Pipeline.velocity_fn, *of), *evaluated(probe_fn, *of)


@pytest.fixture(scope='module')
def unscanned(flux):
    return probed(*flux)


def test_a_probed_network_gives_the_same_velocity(unscanned):
    plain, v, entropy = unscanned
    np.testing.assert_allclose(v, plain, atol=1e-5 * float(jnp.abs(plain).max()))
    assert entropy.shape == (2,) and entropy.dtype == jnp.float32
    assert 0 < float(entropy.min()) < float(entropy.max()) < 1 and entropy[0] != entropy[1]


def test_scanned_blocks_have_the_same_entropies(flux, unscanned):
    pipeline, params = flux
    stacked = lambda name: jax.tree.map(
        lambda *blocks: jnp.stack(blocks), *(params['transformer'][f'{name}_{i}'] for i in range(2))
    )
    names = ('transformer_blocks', 'single_transformer_blocks')
    left = {k: v for k, v in params['transformer'].items() if not k.startswith(names)}
    scanned = {**params, 'transformer': left | {name: stacked(name) for name in names}}
    network = pipeline.transformer.clone(scan=True, remat='full')
    other = dataclasses.replace(pipeline, modules={**pipeline.modules, 'transformer': network})
    for here, there in zip(unscanned, probed(other, scanned)):
        np.testing.assert_allclose(there, here, atol=2e-5 * float(jnp.abs(here).max()))


def test_guided_networks_are_probed_at_the_prompts_own_rows(tmp_path):
    pipeline, params = load_pipeline(miniature.random_sd3(tmp_path, layers=2), text_length=16)
    plain, v, entropy = probed(pipeline, params, guided=True)
    np.testing.assert_allclose(v, plain, atol=1e-5 * float(jnp.abs(plain).max()))
    _, alone = evaluated(probe_fn, pipeline, params)
    np.testing.assert_allclose(entropy, alone, rtol=1e-4)


def test_a_family_without_a_probe_says_so(tmp_path):
    pipeline, params = load_pipeline(miniature.random_sd15(tmp_path), text_length=1)
    named = 'StableDiffusionPipeline cannot be probed; that of FluxPipeline, Flux2Kl.*Diffusion3'
    with pytest.raises(ValueError, match=named):
        probe_fn(pipeline, params['transformer'], None, {}, 1.0, 64, 64)
