"""What benchmarks run on: a stored base model, or a released model's own shapes with random weights
made on the device.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp

from densegrpo_jax.pipelines.folder import build_pipeline
from densegrpo_jax.pipelines.released import RELEASED
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.conditioning import text_conditioning
from densegrpo_jax.sampling.loading import load_components, network_options, open_base

# FLUX with a few million parameters, for a processor.
SMALL = dict(
    num_layers=2,
    num_single_layers=4,
    attention_head_dim=64,
    num_attention_heads=4,
    joint_attention_dim=64,
    pooled_projection_dim=32,
    axes_dims_rope=[16, 24, 24],
    guidance_embeds=True,
)


def shapes_of(path: str, small: bool = False) -> tuple[type, dict, dict]:
    """(class of the pipeline, scheduler, configurations of the components) of a released model;
    `small`: of a FLUX with few parameters.
    """
    kind, scheduler, parts = RELEASED[path]
    if small:
        vae = parts['vae'] | dict(block_out_channels=[16, 32, 32, 32], norm_num_groups=8)
        parts = parts | dict(transformer=SMALL, vae=vae)
    return kind, scheduler, parts


def random_base(config, mesh, small: bool = False):
    """The pipeline of `config.model.path`, random weights of its transformer and autoencoder, and
    the conditioning of one prompt.
    """
    kind, scheduler, parts = shapes_of(config.model.path, small)
    pipeline = build_pipeline(
        parts,
        scheduler,
        (None,) * len(kind.TEXT_ENCODERS),
        kind=kind,
        **network_options(config, mesh),
    )
    params = random_weights(
        pipeline.abstract_params(['transformer', 'vae']), jnp.dtype(config.model.dtype)
    )
    return (
        pipeline,
        params,
        {
            name: random_weights(leaf, leaf.dtype)
            for name, leaf in pipeline.conditioning_shapes(1).items()
        },
    )


def stored_base(config, mesh, texts: list[str]):
    """(pipeline, weights, encoder that holds `texts` and the empty one in memory) of the model that
    the configuration names.
    """
    folder, pipeline = open_base(config, mesh)
    with TemporaryDirectory() as files:
        encoder = text_conditioning(
            config, Path(files), folder, pipeline, ['', *texts], mesh, StopRequest()
        )
        encoder(['', *texts])  # into memory
    return (
        pipeline,
        load_components(config, folder, pipeline, mesh, ('transformer', 'vae')),
        encoder,
    )


def random_weights(shapes, dtype):
    """Normal weights of standard deviation 0.02, every one made where it stays."""
    make = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=1)
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([make(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)])
