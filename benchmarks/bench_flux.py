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

import jax
from absl import app, flags

from benchmarks.bases import random_session
from benchmarks.phases import Phase, phases
from benchmarks.torch_models import run_torch
from configs import flux_ocr
from densegrpo_jax.networks.attention import IMPLEMENTATIONS
from densegrpo_jax.planning.chips import chip_of
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.startup import start_devices

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


def configuration():
    """The configuration of the run."""
    config = flux_ocr.get_config()
    config.model.update(
        height=SIDE.value, width=SIDE.value, remat=REMAT.value, attention=ATTENTION.value
    )
    config.rollout.update(prompts=1, group=BATCH.value, prompts_per_batch=1)
    config.optim.microbatch = MICROBATCH.value or BATCH.value
    return config


def shown(phase: Phase, peak: float | None) -> dict:
    """Prints a phase, its rate and utilisation, and returns them."""
    row = {
        'phase': phase.name,
        'count': phase.count,
        'compile_s': phase.compile_s,
        'seconds': phase.seconds,
        'spread': phase.spread,
        'tflops_per_s': phase.flops / phase.seconds / 1e12,
        'mfu': peak and phase.flops / phase.seconds / peak,
        'gib': phase.bytes / 2**30,
    }
    share = '' if peak is None else f'  MFU {100 * row["mfu"]:5.1f} %'
    print(
        f'{phase.name + " (" + str(phase.count) + ")":34s} {phase.seconds:9.4f} s (spread '
        f'{phase.spread:.4f})  {row["tflops_per_s"]:8.3f} TFLOP/s{share}  {row["gib"]:6.2f} GiB; '
        f'compiled in {phase.compile_s:.1f} s',
        flush=True,
    )
    return row


def main(argv) -> None:
    config = configuration()
    small = SIZE.value == 'small'
    reference = run_torch(config, small, REPEAT.value) if TORCH.value else {}
    start_devices(1, 1)
    m, batch = config.model, BATCH.value
    device, mesh = jax.devices()[0], make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    known = chip_of(device.device_kind)
    session = random_session(config, mesh, small)
    count = sum(leaf.size for leaf in jax.tree.leaves(session.params['transformer']))
    print(
        f'{device.device_kind}, jax {jax.__version__}: {count / 1e9:.2f} B parameters, {m.width} x '
        f'{m.height} px, batch {batch}, {m.dtype}'
    )
    rows = [shown(phase, known and known[1].flops) for phase in phases(session, REPEAT.value)]
    stats = device.memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
        print(f'peak of the process on the device: {stats["peak_bytes_in_use"] / 2**30:.2f} GiB')
    for row in rows:
        if (name := row['phase']) in reference:
            theirs = reference[name]['seconds']
            print(
                f'torch {reference["torch"]} {name}: {theirs:.4f} s; ours takes '
                f'{row["seconds"] / theirs:.2f} of it'
            )
    summary = {
        'device': device.device_kind,
        'jax': jax.__version__,
        'side': SIDE.value,
        'batch': batch,
    }
    print(json.dumps({**summary, 'phases': rows, 'torch': reference}))


if __name__ == '__main__':
    app.run(main)
