"""Measures how long a stop takes to save the last update: adapters, moving average (EMA) and
moments of the shipped FLUX.1-dev recipe, 2.7 GiB.

    python -m benchmarks.bench_preemption [--folder=/tmp/bench_preemption]

Saves random arrays of the recipe's shapes as the loop does on SIGTERM: once with nothing else to
do, and once during an earlier save, which it waits for. Needs 9 GiB of memory and 6 GiB in the
folder, which is emptied before and after. The time excludes copying from an accelerator: the arrays
are already in host memory.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import time

import jax
import numpy as np
from absl import app, flags, logging

from configs import flux_ocr
from densegrpo_jax.pipelines.released import released_pipeline
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.session import network_options
from densegrpo_jax.sampling.state import optimiser, state_shapes

FOLDER = flags.DEFINE_string(
    'folder', '/tmp/bench_preemption', 'Where the checkpoints are written: the disk to be measured.'
)


def random_state(config):
    """A TrainState of the configuration with random arrays, which do not compress."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    pipeline = released_pipeline(config.model.path, **network_options(config, mesh))
    shapes = state_shapes(pipeline, optimiser(config, pipeline.transformer))
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = (
            rng.standard_normal(leaf.shape, np.float32)
            if leaf.dtype == np.float32
            else rng.integers(0, 100, leaf.shape, leaf.dtype)
        )
        return jax.device_put(values)

    return jax.tree.map(draw, shapes)


def main(_) -> None:
    jax.config.update('jax_platforms', 'cpu')
    logging.set_verbosity(logging.ERROR)
    folder = pathlib.Path(FOLDER.value)
    shutil.rmtree(folder, ignore_errors=True)
    state = random_state(flux_ocr.get_config('devices=1'))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**30
    try:
        with Checkpoints(folder) as checkpoints:
            began = time.monotonic()
            checkpoints.prepare(state)  # after every update, before a stop can come
            print(f'{size:.2f} GiB; digests {time.monotonic() - began:.1f} s, compilation included')

            def stop(step):
                began = time.monotonic()
                checkpoints.save(step, state, {})
                released = time.monotonic() - began
                checkpoints.wait_until_finished()
                return (
                    f'{time.monotonic() - began:.1f} s ({released:.1f} s until the loop may go on)'
                )

            print('saved by a stop:', stop(1))
            checkpoints.save(2, state, {})
            print('saved by a stop that comes while a checkpoint is being written:', stop(3))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    peak = (
        int(re.search(r'VmHWM:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1]) / 2**20
    )
    print(f'peak memory {peak:.1f} GiB')


if __name__ == '__main__':
    app.run(main)
