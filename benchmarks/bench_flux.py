"""Time, memory and utilisation of an iteration's phases on FLUX.1-dev's own shapes, with random
weights made on the device.

    # 512 px, bfloat16, one accelerator
    python -m benchmarks.bench_flux
    python -m benchmarks.bench_flux --side=1024 --batch=4 --attention=cudnn
    # Diffusers' network and decoder first: same shapes, compiled
    python -m benchmarks.bench_flux --torch
    # anywhere
    python -m benchmarks.bench_flux --size=small --side=64 --batch=2 --torch

Utilisation (MFU) is the number of the model's operations over the chip's peak in bfloat16 (data
sheet) in that time. The operations are counted from the program (`planning.flops`): the forward
pass once per velocity evaluation; for the update the forward pass and the backward pass to the
activations (the base is frozen), without the repetitions of rematerialisation. Phases run alone
after compilation; the median counts.
"""

import json
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.bases import random_session, random_weights, shapes_of
from configs import flux_ocr
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.networks.attention import IMPLEMENTATIONS
from densegrpo_jax.pipelines.base import repeat_rows
from densegrpo_jax.planning.flops import count_flops
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.startup import start_devices
from densegrpo_jax.runtime.streams import STREAM_ROLLOUT, key_data, stream_key
from densegrpo_jax.sampling.sampler import make_rollout, make_schedule
from densegrpo_jax.sampling.state import init_state, optimiser
from densegrpo_jax.training.learner import make_credit, make_update

SIZE = flags.DEFINE_enum(
    'size', 'dev', ['dev', 'small'], "'dev' (12 B) or 'small' (a few million parameters)."
)
SIDE = flags.DEFINE_integer('side', 512, 'Height and width in pixels.')
BATCH = flags.DEFINE_integer('batch', 8, 'Images sampled together.')
MICROBATCH = flags.DEFINE_integer(
    'microbatch', 0, 'Transitions per gradient accumulation step; 0 = the batch.'
)
REMAT = flags.DEFINE_string('remat', 'full', 'Rematerialisation policy of the update.')
ATTENTION = flags.DEFINE_enum('attention', 'xla', IMPLEMENTATIONS, 'Implementation of attention.')
REPEAT = flags.DEFINE_integer('repeat', 5, 'Timed runs per phase.')
TORCH = flags.DEFINE_bool('torch', False, 'Time Diffusers first, in a separate process.')

# Dense bfloat16 operations per second on one device, by a part of its device_kind (data sheets; a
# TPU7x chip is two devices).
PEAK = {
    'H100': 989e12,
    'H200': 989e12,
    'A100': 312e12,
    'v5 lite': 197e12,
    'v5p': 459e12,
    'v5': 459e12,
    'v6 lite': 918e12,
    'TPU7': 1153e12,
}


def configuration():
    """The configuration of the run."""
    config = flux_ocr.get_config()
    config.model.update(
        height=SIDE.value, width=SIDE.value, remat=REMAT.value, attention=ATTENTION.value
    )
    config.rollout.update(prompts=1, group=BATCH.value, prompts_per_batch=1)
    config.optim.microbatch = MICROBATCH.value or BATCH.value
    return config


def timed(name: str, function, flops: float, peak: float | None, memory=None) -> dict:
    """Median seconds over the repeats, rate and utilisation, as a printed line and a dict."""
    jax.block_until_ready(function())
    walls = []
    for _ in range(REPEAT.value):
        start = time.perf_counter()
        jax.block_until_ready(function())
        walls.append(time.perf_counter() - start)
    seconds = statistics.median(walls)
    row = {
        'phase': name,
        'seconds': seconds,
        'spread': max(walls) - min(walls),
        'tflops_per_s': flops / seconds / 1e12,
        'mfu': peak and flops / seconds / peak,
        'gib': memory and memory / 2**30,
    }
    share = '' if peak is None else f'  MFU {100 * row["mfu"]:5.1f} %'
    held = '' if memory is None else f'  {row["gib"]:6.2f} GiB'
    print(
        f'{name:34s} {seconds:9.4f} s (spread {row["spread"]:.4f})  {row["tflops_per_s"]:8.3f} '
        f'TFLOP/s{share}{held}',
        flush=True,
    )
    return row


def needs(compiled) -> int:
    """Bytes of arguments, results and temporaries of a compiled program."""
    m = compiled.memory_analysis()
    return (
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        + m.temp_size_in_bytes
        - m.alias_size_in_bytes
    )


def run_torch(config) -> dict:
    """The same network and decoder in Diffusers, see `torch_flux`."""
    _, _, parts = shapes_of(config.model.path, SIZE.value == 'small')
    request = dict(
        transformer=parts['transformer'],
        vae=parts['vae'],
        side=SIDE.value,
        batch=BATCH.value,
        text=config.model.t5_length,
        steps=config.rollout.steps,
        repeat=REPEAT.value,
    )
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks.torch_flux'],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(argv) -> None:
    config = configuration()
    reference = run_torch(config) if TORCH.value else {}
    start_devices(1, 1)
    m, batch, dtype = config.model, BATCH.value, jnp.dtype(config.model.dtype)
    device, mesh = jax.devices()[0], make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    peak = next((rate for name, rate in PEAK.items() if name in device.device_kind), None)
    session = random_session(config, mesh, SIZE.value == 'small')
    pipeline, params, conditioning = session.pipeline, session.params, session.conditioning([''])
    tx = optimiser(config)
    state = jax.jit(lambda base: init_state(pipeline, tx, jax.random.key(0), base))(
        params['transformer']
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(params['transformer']))
    print(
        f'{device.device_kind}, jax {jax.__version__}: {count / 1e9:.2f} B parameters, {m.width} x '
        f'{m.height} px, batch {batch}, {dtype}'
    )

    repeated = repeat_rows(conditioning, batch)
    x = random_weights(
        jax.ShapeDtypeStruct((batch, *pipeline.latent_shape(m.height, m.width)), jnp.float32),
        jnp.float32,
    )
    s = jnp.full(batch, 0.7)

    def velocity(params, adapters, x):
        return pipeline.velocity_fn(
            params['transformer'], adapters, repeated, m.guidance, m.height, m.width
        )(x, s)

    decode = lambda params, x: pipeline.decode(params, x, m.height, m.width)
    forward, decoding = count_flops(velocity, params, None, x), count_flops(decode, params, x)
    one, pictures = (
        jax.jit(velocity).lower(params, state.policy, x).compile(),
        jax.jit(decode).lower(params, x).compile(),
    )
    rows = [
        timed('one velocity', lambda: one(params, state.policy, x), forward, peak, needs(one)),
        timed(
            f'decode {batch} images', lambda: pictures(params, x), decoding, peak, needs(pictures)
        ),
    ]
    key = key_data(stream_key(0, STREAM_ROLLOUT, 0))
    for rule, name in (('sparse', 'rollout'), ('dense', 'rollout with completions')):
        config.credit.rule = rule
        schedule = make_schedule(pipeline, config)
        text = conditioning, None  # guidance is an input of the network
        arguments = (params, state.policy, *text, key, np.arange(1), schedule.noise_levels)
        sample = make_rollout(pipeline, config, schedule, mesh).lower(*arguments).compile()
        rollout, images, _ = sample(*arguments)
        work = rollout.nfe * forward + len(images) * decoding
        title = f'{name}: {int(rollout.nfe)} velocities, {len(images)} decodes'
        rows.append(timed(title, lambda f=sample, a=arguments: f(*a), work, peak, needs(sample)))
    values = jnp.asarray(np.random.default_rng(0).random(images.shape[:2]), jnp.float32)
    ids = group_ids_of([values.shape[1]])
    record, _ = make_credit(config, schedule)([rollout], values, jnp.ones_like(values, bool), ids)
    update = (
        jax.jit(make_update(pipeline, config, tx, mesh).__wrapped__)
        .lower(state, params, conditioning, None, record)
        .compile()
    )
    count = record.x.shape[0]
    learn = lambda: update(state, params, conditioning, None, record)[1]
    rows.append(
        timed(
            f'update, {count} transitions', learn, 2 * forward * count / batch, peak, needs(update)
        )
    )
    stats = device.memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
        print(f'peak of the process on the device: {stats["peak_bytes_in_use"] / 2**30:.2f} GiB')
    for name, ours in (('one velocity', rows[0]), ('decode', rows[1])):
        if name in reference:
            print(
                f'torch {reference["torch"]} {name}: {reference[name]:.4f} s; ours takes '
                f'{ours["seconds"] / reference[name]:.2f} of it'
            )
    summary = {
        'device': device.device_kind,
        'jax': jax.__version__,
        'side': SIDE.value,
        'batch': batch,
        'forward_tflop': forward / 1e12,
    }
    print(json.dumps({**summary, 'phases': rows, 'torch': reference}))


if __name__ == '__main__':
    app.run(main)
