"""Classifier-free guidance over eight devices equals one: a batch that is split, the empty prompt's
rows beside it, and matrices in pieces. Whole iterations: tests/training/test_meshes.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from densegrpo_jax.networks import attention, lora
from densegrpo_jax.pipelines.folder import load_params, open_pipeline
from densegrpo_jax.runtime.mesh import BATCH_AXES, make_mesh
from densegrpo_jax.runtime.sharding import shardings
from tests import miniature

SIZE = 16, 32
ROWS = 4  # one for each pair of tensor devices
LENGTH = 40  # Z-Image fills texts up to 32 or 64 tokens
FAMILIES = {
    'klein': (
        miniature.random_klein,
        dict(double=1, single=1),
        r'(single_)?transformer_blocks\..*',
    ),
    'zimage': (miniature.random_zimage, dict(layers=1), r'(layers|\w+_refiner)\..*'),
}


def evaluate(folder, targets, sizes):
    """A guided velocity on a mesh, and the gradient of its adapters, on the host."""
    mesh = make_mesh(
        dict(zip(('data', 'fsdp', 'tensor'), sizes)), jax.devices()[: int(np.prod(sizes))]
    )
    pipeline = open_pipeline(
        folder,
        text_length=LENGTH,
        scan=True,
        remat='full',
        lora=lora.LoraConfig(2, 4.0, (targets,)),
        attend=attention.choose('xla', mesh, jnp.float32),
        cfg_normalization=0.9,
    )
    place = lambda tree: shardings(tree, mesh, pipeline.sharding_rules, min_bytes=1024)
    base = load_params(folder, pipeline, ('transformer',), shardings=place)['transformer']
    split = [leaf for leaf in jax.tree.leaves(base) if not leaf.sharding.is_fully_replicated]
    assert len(split) > 10 or mesh.size == 1
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)

    def text(rows, tokens):
        """Conditioning of `rows` prompts, the first `tokens` of which are no padding."""
        return {
            name: np.broadcast_to(np.arange(leaf.shape[1]) < tokens, leaf.shape)
            if leaf.dtype == bool
            else draw(*leaf.shape)
            for name, leaf in pipeline.conditioning_shapes(rows).items()
        }

    x, weight = draw(2, ROWS, *pipeline.latent_shape(*SIZE))
    negative, s = text(1, 5), np.linspace(0.2, 0.9, ROWS, dtype=np.float32)
    batch = text(ROWS, 40), x, s, weight
    batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))

    def loss(adapters, base, negative, conditioning, x, s, weight):
        velocity = pipeline.velocity_fn(base, adapters, conditioning, 4.0, *SIZE, negative=negative)
        v = velocity(x, s)
        return (v * weight).sum(), v

    names = pipeline.adapter_names()
    adapters = lora.init_adapters(pipeline.transformer.lora, names, base, jax.random.key(0))
    adapters = jax.device_put(jax.tree.map(lambda a: a + 0.1, adapters), place(adapters))
    (_, v), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        adapters, base, negative, *batch
    )
    return jax.device_get((v, gradient))


@pytest.mark.parametrize('family', FAMILIES)
def test_a_guided_velocity_and_its_gradient(family, tmp_path):
    write, layers, targets = FAMILIES[family]
    folder = write(tmp_path / family, **layers)
    expected = evaluate(folder, targets, (1, 1, 1))
    found = evaluate(folder, targets, (2, 2, 2))
    for want, have in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
        assert 0 < np.abs(want).max() < np.inf
        np.testing.assert_allclose(have, want, atol=1e-4 * np.abs(want).max())
