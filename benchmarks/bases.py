"""Models for benchmarks without stored weights: the shapes of a released model, with random weights
made on the device.
"""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.pipelines.base import Pipeline, repeat_rows
from densegrpo_jax.pipelines.flux import FluxPipeline
from densegrpo_jax.pipelines.folder import PIPELINES, build_pipeline, resolve_folder
from densegrpo_jax.pipelines.released import released
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
    if path not in released():
        folder = resolve_folder(path)
        read = lambda file: read_json(folder / file)
        kind = PIPELINES[read('model_index.json')['_class_name']]
        names = 'transformer', 'vae'
        return kind, {}, {name: read(f'{kind.folder(name)}/config.json') for name in names}
    kind, scheduler, parts = released()[path]
    if small:
        vae = parts['vae'] | dict(block_out_channels=[16, 32, 32, 32], norm_num_groups=8)
        parts = parts | dict(transformer=parts['transformer'] | SMALL[kind], vae=vae)
    return kind, scheduler, parts


def random_session(config, mesh, small: bool = False) -> Session:
    """The model of `config.model.path` with random weights of its transformer and autoencoder; all
    prompts have the same random conditioning.
    """
    pipeline = random_pipeline(config, mesh, small)
    shapes = pipeline.abstract_params(['transformer', 'vae'])
    one = random_values(pipeline.conditioning_shapes(1))
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


def random_pipeline(config, mesh, small: bool = False) -> Pipeline:
    """The pipeline of `random_session`."""
    kind, scheduler, parts = shapes_of(config.model.path, small)
    encoders = (None,) * len(kind.TEXT_ENCODERS)
    return build_pipeline(parts, scheduler, encoders, kind=kind, **network_options(config, mesh))


def random_values(shapes):
    """Normal values of standard deviation 1, each array made on its own device in its own dtype."""
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([_normal(_block(), i, s.shape, s.dtype) for i, s in enumerate(leaves)])


def random_weights(shapes, dtype):
    """Weights with which activations keep their size, as a trained network's do, each array made on
    its own device: kernels of variance 1 / inputs, scales 1, biases 0. Small ones would leave
    nothing to round: every test of what bfloat16 changes would pass.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    made = []
    for i, (path, leaf) in enumerate(leaves):
        name = getattr(path[-1], 'key', '')
        if name in ('scale', 'var', 'bias', 'mean'):
            value = 1 if name in ('scale', 'var') else 0
            made.append(jnp.asarray(np.full(leaf.shape, value), dtype))
        else:
            deviation = inputs(leaf.shape) ** -0.5 if name == 'kernel' else 0.02
            made.append(_normal(_block(), i, leaf.shape, dtype, deviation))
    return tree.unflatten(made)


def inputs(shape: tuple[int, ...]) -> int:
    """How many inputs a kernel sums: [in, out], [blocks, in, out] or [height, width, in, out]."""
    return math.prod(shape[-4:-1]) if len(shape) >= 4 else shape[-2]


@functools.cache
def _block() -> jax.Array:
    """Normal values; as many as a prime, so that no rows and no blocks of a network are alike."""
    return jax.random.normal(jax.random.key(0), 4_194_301)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _normal(block, offset, shape: tuple[int, ...], dtype, deviation=1.0):
    """The block, repeated: random bits for every array would take seconds to compile for each."""
    index, stride = jnp.uint32(104_729) * offset, 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    return (deviation * block[index % len(block)]).astype(dtype)
