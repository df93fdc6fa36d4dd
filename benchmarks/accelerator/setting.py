"""The configurations that the steps measure: recipes with random weights, one batch at a time."""

from __future__ import annotations

import jax

from benchmarks.bases import random_session
from configs import flux_ocr, sd35_ocr
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.session import Session

RECIPES = {'flux': flux_ocr, 'sd35': sd35_ocr}
KERNELS = {'gpu': 'cudnn', 'cuda': 'cudnn', 'tpu': 'splash', 'cpu': 'xla'}
# GiB that the weights, adapters and a batch of one recipe take at least.
LEAST_GIB = {'flux': 30.0, 'sd35': 12.0}
SMALL_SIDE = 64


def configuration(model: str, side: int, small: bool):
    """The recipe of a model at `side` pixels: a batch that a device of 80 GB holds, scanned blocks,
    the fused kernel of the device.
    """
    config = RECIPES[model].get_config('devices=1')
    config.unlock()
    batch, micro = (8, 4) if side <= 512 else (2, 1)
    if small:
        side, batch, micro = SMALL_SIDE, 2, 2
        config.rollout.steps = 3
        config.lora.update(rank=4, alpha=8.0)
        config.model.t5_length = 16
    config.model.update(height=side, width=side, scan=True)
    config.model.attention = KERNELS[jax.devices()[0].platform]
    config.rollout.update(prompts=1, group=batch, prompts_per_batch=1)
    config.optim.microbatch = micro
    return config


def session_of(config, small: bool) -> Session:
    """Random weights on the first device."""
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    return random_session(config, mesh, small)


def too_small(model: str, small: bool) -> str:
    """A sentence if this device does not hold a model, '' if it does or does not say."""
    limit = (jax.devices()[0].memory_stats() or {}).get('bytes_limit')
    if small or not limit or limit / 2**30 >= LEAST_GIB[model]:
        return ''
    return f'{model} needs {LEAST_GIB[model]:.0f} GiB, JAX has {limit / 2**30:.1f}'


def peak_gib() -> float | None:
    """The most that this process has held on the device; None if the device does not say."""
    held = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    return held and held / 2**30
