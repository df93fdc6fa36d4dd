"""Measures the host memory that loading needs beyond the arrays themselves, with a synthetic
multi-shard FLUX transformer of several GiB.

    python -m benchmarks.bench_loading --gib=4 --shard_gib=1 [--devices=8] \\
        [--folder=/tmp/bench_loading]

Writes random bfloat16 weights in shards (kept for the next call) and loads them in a separate
process. Prints the peak of that process's memory (VmHWM, mapped files included), minus its memory
before and the arrays themselves, which on a CPU are in host memory too.
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import time

from absl import app, flags

GIB = flags.DEFINE_float('gib', 4.0, 'Size of the checkpoint.')
SHARD = flags.DEFINE_float('shard_gib', 1.0, 'Size of its files.')
DEVICES = flags.DEFINE_integer('devices', 8, 'CPU devices that the weights are split over (fsdp).')
FOLDER = flags.DEFINE_string('folder', '/tmp/bench_loading', 'Where the checkpoint is written.')
LOAD = flags.DEFINE_bool('load', False, 'Internal: only load, and print the measurement.')


def network(blocks: int):
    from densegrpo_jax.networks import flux

    config = flux.FluxConfig(
        num_layers=blocks,
        num_single_layers=2 * blocks,
        attention_head_dim=128,
        num_attention_heads=16,
    )
    return flux.FluxTransformer(config, scan=True)


def shapes_of(net):
    from densegrpo_jax.pipelines.flux import FluxPipeline

    pipeline = FluxPipeline({'transformer': net}, (), {}, 0, {})
    return pipeline.abstract_params()['transformer']


def blocks_for(gib: float) -> int:
    # a double and two single blocks of this width have about 250 M weights
    return max(1, round(gib * 2**30 / 2 / 250e6))


def make(folder: pathlib.Path) -> None:
    """Writes the shards one at a time."""
    import ml_dtypes
    import numpy as np
    import safetensors.numpy

    from densegrpo_jax.pipelines.weights import files as weights

    net = network(blocks_for(GIB.value))
    entries = weights._entries(net.weight_rules(), shapes_of(net), '')
    folder.mkdir(parents=True, exist_ok=True)
    weight_map, shard, size = {}, {}, 0
    rng = np.random.default_rng(0)

    def flush():
        name = f'diffusion_pytorch_model-{len(set(weight_map.values())):05d}.safetensors'
        safetensors.numpy.save_file(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))

    for key, _, _, shape, _ in entries:
        shard[key] = (rng.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
        size += shard[key].nbytes
        if size >= SHARD.value * 2**30:
            flush()
            shard, size = {}, 0
    if shard:
        flush()
    (folder / 'diffusion_pytorch_model.safetensors.index.json').write_text(
        json.dumps({'weight_map': weight_map})
    )


def memory(field: str) -> int:
    return (
        int(re.search(rf'{field}:\s+(\d+) kB', pathlib.Path('/proc/self/status').read_text())[1])
        * 1024
    )


def load(folder: pathlib.Path) -> None:
    import jax

    jax.config.update('jax_num_cpu_devices', DEVICES.value)
    import jax.numpy as jnp

    from densegrpo_jax.networks.network import sharding_rules
    from densegrpo_jax.pipelines.weights import files as weights
    from densegrpo_jax.runtime.mesh import make_mesh
    from densegrpo_jax.runtime.sharding import shardings

    net = network(blocks_for(GIB.value))
    shapes = shapes_of(net)
    mesh = make_mesh({'data': 1, 'fsdp': -1, 'tensor': 1})
    placed = shardings(shapes, mesh, sharding_rules([net]))
    jax.block_until_ready(jnp.zeros(8) + 1)
    before, began = memory('VmRSS'), time.perf_counter()
    params = jax.block_until_ready(
        weights.load_weights(
            folder, net.weight_rules(), shapes, dtype=jnp.bfloat16, shardings=placed
        )
    )
    seconds, peak = time.perf_counter() - began, memory('VmHWM')
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    largest = max(p.stat().st_size for p in folder.glob('*.safetensors'))
    gib = lambda n: f'{n / 2**30:.2f} GiB'
    print(
        f'checkpoint {gib(held)} in {len(list(folder.glob("*.safetensors")))} files, the largest '
        f'{gib(largest)}; {DEVICES.value} devices'
    )
    print(
        f'peak beyond the arrays {gib(peak - before - held)}; allowed: largest file + 2 GiB = '
        f'{gib(largest + 2 * 2**30)}'
    )
    print(f'{seconds:.1f} s, {held / 2**30 / seconds:.2f} GiB/s')


def main(argv) -> None:
    folder = pathlib.Path(FOLDER.value) / f'{GIB.value:g}_{SHARD.value:g}'
    if LOAD.value:
        return load(folder)
    if not (folder / 'diffusion_pytorch_model.safetensors.index.json').is_file():
        make(folder)
    subprocess.run(
        [sys.executable, '-m', 'benchmarks.bench_loading', '--load', *argv[1:], *sys.argv[1:]],
        check=True,
    )


if __name__ == '__main__':
    app.run(main)
