"""What a sharded network and its gradient send: weights, however large the batch is."""

import jax
import jax.numpy as jnp

from configs import tiny_ocr
from densegrpo_jax.planning.collectives import collective_bytes
from densegrpo_jax.runtime.mesh import batch_sharding, make_mesh
from densegrpo_jax.runtime.sharding import shardings, with_shardings
from densegrpo_jax.sampling.session import open_base
from densegrpo_jax.sampling.state import optimiser, state_shapes


def test_weights_are_gathered_and_not_activations():
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict({'lora.rank': 8, 'model.scan': True, 'model.remat': 'full'})
    mesh = make_mesh({'data': 1, 'fsdp': 8, 'tensor': 1})
    _, pipeline = open_base(config, mesh)
    split = lambda tree: shardings(tree, mesh, pipeline.sharding_rules, min_bytes=0)
    placed = lambda tree: with_shardings(tree, split(tree))
    base = pipeline.abstract_params(['transformer'])['transformer']
    adapters = state_shapes(pipeline, optimiser(config, pipeline.transformer)).policy
    size = (128, 256)

    def sent(batch):
        rows = lambda tree: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), tree
        )

        @jax.jit
        @jax.grad
        def gradient(adapters, base, conditioning, x):
            return pipeline.velocity_fn(base, adapters, conditioning, 1.0, *size)(
                x, jnp.full(batch, 0.5)
            ).sum()

        latents = jax.ShapeDtypeStruct((batch, *pipeline.latent_shape(*size)), jnp.float32)
        arguments = (
            placed(adapters),
            placed(base),
            rows(pipeline.conditioning_shapes(batch)),
            rows(latents),
        )
        return collective_bytes(gradient.lower(*arguments).compile().as_text())

    few, many = sum(sent(16).values()), sum(sent(32).values())
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves((base, adapters)))
    # Once forward and once backward, where the recomputed block and its gradient share them.
    assert 1.5 < few / weights < 2.5 and (many - few) / few < 0.1
