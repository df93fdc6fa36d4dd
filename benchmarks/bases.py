"""Models for benchmarks without stored weights: the shapes of a released model, with random weights
made on the device.
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from densegrpo_jax.pipelines.base import repeat_rows
from densegrpo_jax.pipelines.flux import FluxPipeline
from densegrpo_jax.pipelines.folder import PIPELINES, build_pipeline, resolve_folder
from densegrpo_jax.pipelines.released import RELEASED
from densegrpo_jax.pipelines.sd3 import Sd3Pipeline
from densegrpo_jax.runtime.reading import read_json
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.session import Session, network_options

# Transformers with a few million parameters, for a processor.
SMALL = {
    FluxPipeline: dict(
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        axes_dims_rope=[16, 24, 24],
        guidance_embeds=True,
    ),
    Sd3Pipeline: dict(
        num_layers=3,
        attention_head_dim=64,
        num_attention_heads=4,
        caption_projection_dim=256,
        dual_attention_layers=[0],
    ),
}


def shapes_of(path: str, small: bool = False) -> tuple[type, dict, dict]:
    """(class of the pipeline, scheduler, configurations of the components) of a released model, or
    of a pipeline folder; `small`: of its family, with few parameters.
    """
    if path not in RELEASED:
        folder = resolve_folder(path)
        read = lambda file: read_json(folder / file)
        kind = PIPELINES[read('model_index.json')['_class_name']]
        names = 'transformer', 'vae'
        return kind, {}, {name: read(f'{kind.folder(name)}/config.json') for name in names}
    kind, scheduler, parts = RELEASED[path]
    if small:
        vae = parts['vae'] | dict(block_out_channels=[16, 32, 32, 32], norm_num_groups=8)
        parts = parts | dict(transformer=parts['transformer'] | SMALL[kind], vae=vae)
    return kind, scheduler, parts


def random_session(config, mesh, small: bool = False) -> Session:
    """The model of `config.model.path` with random weights of its transformer and autoencoder; all
    prompts have the same random conditioning.
    """
    kind, scheduler, parts = shapes_of(config.model.path, small)
    pipeline = build_pipeline(
        parts,
        scheduler,
        (None,) * len(kind.TEXT_ENCODERS),
        kind=kind,
        **network_options(config, mesh),
    )
    shapes = pipeline.abstract_params(['transformer', 'vae'])
    one = {
        name: random_weights(leaf, leaf.dtype)
        for name, leaf in pipeline.conditioning_shapes(1).items()
    }
    return Session(
        config=config,
        mesh=mesh,
        stop=StopRequest(),
        folder=Path(config.model.path),
        pipeline=pipeline,
        params=random_weights(shapes, jnp.dtype(config.model.dtype)),
        conditioning=lambda texts: repeat_rows(one, len(texts)),
        negative=one if pipeline.takes_negative(config.model.guidance) else None,
    )


def random_weights(shapes, dtype):
    """Normal weights of standard deviation 0.02, each made on its own device."""
    make = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=1)
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([make(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)])
