"""Batches that do not divide over the devices are split all the same: no device computes all rows,
and the numbers are those of one device.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.runtime.mesh import make_mesh, replicated
from densegrpo_jax.sampling.probe import make_probe
from densegrpo_jax.sampling.sampler import in_parts, make_sampler
from densegrpo_jax.search.model import Model

SIGMAS, WIDTH = np.float32([1, 0.6, 0.2]), 32


@dataclasses.dataclass(frozen=True)
class Products:
    """A pipeline whose network and decoder are products of matrices."""

    sown: list | None = None  # of an evaluation, as in `Pipeline`

    end_scale = 1.0
    image_tokens = staticmethod(lambda height, width: 1)
    initial_scale = staticmethod(lambda sigmas: 1.0)
    sigmas = staticmethod(lambda steps, height, width: SIGMAS)
    latent_shape = staticmethod(lambda height, width: (WIDTH,))

    def decode(self, params, z, height, width):
        image = jnp.tanh(z @ params['vae'])
        return jnp.uint8(100 + 100 * image).reshape(len(z), 2, 4, 4), jnp.isfinite(image).all(1)

    def velocity_fn(self, base, policy, conditioning, guidance, height, width, *, negative=None):
        def velocity(x, s):
            v = jnp.tanh(x @ base + s[:, None] + conditioning['pooled'])
            if self.sown is not None:
                self.sown.append({'entropy': v.sum(1, keepdims=True)})
            return v

        return velocity


PIPELINE, CONFIG = Products(), default_config()
WEIGHTS = jax.random.normal(jax.random.key(0), (2, WIDTH, WIDTH))
PARAMS = {'transformer': WEIGHTS[0], 'vae': WEIGHTS[1]}


def text(count):
    return {'pooled': jnp.arange(1.0, 1 + count)[:, None] * jnp.ones(WIDTH)}


def drawn(mesh, count):
    keys = jax.random.key_data(jax.random.split(jax.random.key(1), count))
    return make_sampler(PIPELINE, CONFIG, 2, mesh), (PARAMS, None, text(count), None, keys)


def asked(mesh, count):
    key = jax.random.key_data(jax.random.key(1))
    probe = make_probe(PIPELINE, CONFIG, SIGMAS, mesh, base=True)
    return probe, (PARAMS, None, text(count), None, key, jnp.arange(count))


@functools.cache
def model(mesh):
    masks = types.SimpleNamespace(stochastic=np.ones(2, bool))
    schedule = types.SimpleNamespace(masks=masks, noise_levels=np.ones(2))
    session = types.SimpleNamespace(config=CONFIG, schedule=schedule, pipeline=PIPELINE)
    session.mesh, session.params, session.negative = mesh, PARAMS, None
    return Model(session, None, None, None)


def latents(count):
    return jax.random.normal(jax.random.key(2), (1, count, WIDTH))


def searched(mesh, count):
    step, fixed = model(mesh)._velocity, (PARAMS, None, None)
    return step, (*fixed, text(1), latents(count), jnp.float32(0.5))


def decoded(mesh, count):
    return model(mesh)._decode, (PARAMS, latents(count))


def differentiated(mesh, count):
    def slope(rows):
        return jax.grad(lambda x: jnp.tanh(x @ WEIGHTS[0]).sum())(rows)

    whole = jax.jit(lambda x: in_parts(slope, x, mesh, 8), out_shardings=replicated(mesh))
    return whole, (latents(count),)


@pytest.mark.parametrize('program', [drawn, asked, searched, decoded, differentiated])
def test_every_device_computes_its_share(program):
    one, four = (make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:n]) for n in (1, 4))

    def compiled(mesh, count):
        function, arguments = program(mesh, count)
        ready = function.lower(*arguments).compile()
        return ready(*arguments), ready.cost_analysis()['flops']

    (expected, _), (found, of_five), (_, of_eight) = (
        compiled(*given) for given in ((one, 5), (four, 5), (four, 8))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
    assert of_five == pytest.approx(of_eight, rel=0.05)  # two rows on a device, not five
