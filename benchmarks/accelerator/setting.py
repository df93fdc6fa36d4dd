"""The configurations that the steps measure: recipes with random weights, one batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from benchmarks.accelerator.record import Record
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
    """The recipe of a model for one device, with one batch of its prompts an iteration: at 512 px
    with the recipe's own batch and microbatch, at 1024 px with two images and one transition.
    Scanned blocks, the fused kernel of the device.

    No reference is read (SD3.5-M's recipe has beta = 0.04): torch's update has none either.
    """
    config = RECIPES[model].get_config('devices=1')
    config.unlock()
    batch, micro = config.rollout.group, config.optim.microbatch
    if small:
        side, batch, micro = SMALL_SIDE, 2, 2
        config.rollout.steps = 3
        config.lora.update(rank=4, alpha=8.0)
        config.model.t5_length = 16
    elif side > 512:
        batch, micro = 2, 1
    config.model.update(height=side, width=side, scan=True)
    config.model.attention = KERNELS[jax.devices()[0].platform]
    config.rollout.update(prompts=1, group=batch, prompts_per_batch=1)
    config.optim.microbatch = micro
    config.loss.beta = 0.0
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


@contextlib.contextmanager
def fitting(record: Record, name: str) -> Iterator[None]:
    """What does not fit the device is a row that says so, and the next is measured."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        record.add(name, missing='it does not fit this device')


def peak_gib() -> float:
    """The most that this process has held on the device; 0 if the device does not say."""
    return ((jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use') or 0) / 2**30
