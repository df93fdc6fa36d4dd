"""The training data of the flow: images as latents with their token ids, encoded once and stored in
a file that says what it was made from.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
import zlib

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.runtime.files import replacing
from densegrpo_jax.sampling import loading
from tools.make_miniature.datasets import Batches
from tools.make_miniature.vae_stage import to_model_range

# images drawn at a time; part of the random stream, so another number would give another pool
CHUNK = 1024
ORIGIN = 'origin'  # the array, a JSON text, that says what a stored pool was made from
EARLIER = {'latents', 'clip_ids', 't5_ids'}  # all arrays of a file of earlier versions


def check_size(size: int) -> None:
    """Raises ValueError unless `size`, config.stages.flow.pool, is a positive multiple of CHUNK."""
    if size <= 0 or size % CHUNK:
        nearest = max(1, round(size / CHUNK)) * CHUNK
        raise ValueError(
            f'stages.flow.pool={size} images: expected a positive multiple of {CHUNK}, such as '
            f'{nearest}'
        )


def origin(config, autoencoder: dict) -> dict:
    """Everything that a pool depends on, as JSON values by the names of the configuration.

    Args:
      config: of the pretraining.
      autoencoder: weights as their stage left them. Every process measures the scales per channel
        anew, and they may differ by rounding.
    """
    facts = {
        'dataset': config.dataset,
        'height': config.height,
        'width': config.width,
        'flow_fonts': config.get('flow_fonts', ()),
        'render_seed': config.render_seed,
        'stages.flow.pool': config.stages.flow.pool,
        'clip_length': config.clip_length,
        't5_length': config.t5_length,
        **{f'vae.{key}': value for key, value in config.vae.to_dict().items()},
        'the autoencoder': loading.weights_digest(autoencoder),
    }
    return json.loads(json.dumps(facts))


def encode(
    pipeline: Pipeline, autoencoder: dict, draw: Batches, seed: int, size: int, mesh: Mesh
) -> dict[str, np.ndarray]:
    """Encodes `size` images with the autoencoder.

    Args:
      autoencoder: its weights.
      draw: `(seed, step, CHUNK) -> images and prompts`, see `datasets.Dataset`.
      size: S, a multiple of CHUNK.
      mesh: its axis 'data' splits every chunk.

    Returns:
      latents (posterior means) float16 [S, h, w, 16], clip_ids int32 [S, Lc] and t5_ids int32 [S,
      Lt].
    """
    check_size(size)
    means = jax.jit(lambda p, x: pipeline.vae.apply({'params': p}, x, method='encode')[0])
    split = NamedSharding(mesh, PartitionSpec('data'))
    parts: dict[str, list] = {'latents': [], 'clip_ids': [], 't5_ids': []}
    for i in range(size // CHUNK):
        images, prompts = draw(seed, i, CHUNK)
        parts['latents'].append(
            np.asarray(
                means(autoencoder, jax.device_put(to_model_range(images), split)), np.float16
            )
        )
        for name, ids in zip(('clip_ids', 't5_ids'), pipeline.tokenize(prompts)):
            parts[name].append(ids)
        if i % 8 == 7:
            logging.info('encoding images %d/%d', (i + 1) * CHUNK, size)
    return {name: np.concatenate(values) for name, values in parts.items()}


def read(path: pathlib.Path, made_from: dict) -> dict[str, np.ndarray] | None:
    """The pool stored in `path`, as `encode` returned it.

    Args:
      made_from: what it must have been made from, see `origin`.

    Returns:
      None if there is no file; also, with a warning, if an earlier version left a file that does
      not say what it was made from.

    Raises:
      ValueError: the file was made from other data or weights, or is damaged.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            pool = dict(stored)
        if pool.keys() == EARLIER:
            logging.warning(
                '%s does not say what it was made from (an earlier version wrote it): it is made '
                'anew',
                path,
            )
            return None
        there = json.loads(str(pool.pop(ORIGIN)))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f'{path} is damaged ({error}); remove it, and the same command makes it anew'
        ) from None
    if there != made_from:
        absent = object()
        names = [
            name
            for name in made_from | there
            if there.get(name, absent) != made_from.get(name, absent)
        ]
        lines = '\n'.join(
            f'  {name}: {there.get(name, "absent")!r} there, {made_from.get(name, "absent")!r} here'
            for name in names
        )
        raise ValueError(
            f'{path} was made from something else:\n'
            f'{lines}\n'
            'Use the configuration it was made with, or another --workdir; or remove it '
            'and the checkpoints of the stages that learned from it (flow, distil), and the same '
            'command makes all of them anew.'
        )
    return pool


def write(path: pathlib.Path, pool: dict[str, np.ndarray], made_from: dict) -> None:
    """Stores a pool for `read`; the file appears under its name only when it is complete."""
    with replacing(path) as file:
        np.savez(file, **pool, **{ORIGIN: np.array(json.dumps(made_from))})
