"""What the device is, and how fast it multiplies: the peak that a program can reach here."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from benchmarks.accelerator.record import Record, arguments, code
from benchmarks.timing import timed
from densegrpo_jax.planning.chips import chip_of
from experiments.reproduction.facts import commit

PRODUCT = 'matrix product'


def facts(size: str) -> dict:
    """The device, its memory, its peak by the data sheet, if it is listed, and the versions."""
    device = jax.devices()[0]
    known = chip_of(device.device_kind)
    limit = (device.memory_stats() or {}).get('bytes_limit')
    return {
        'device': device.device_kind,
        'platform': device.platform,
        'count': jax.device_count(),
        'jax': jax.__version__,
        'chip': known and known[0],
        'peak': known and known[1].flops,
        'gib': limit and limit / 2**30,
        'size': size,
        'commit': commit(),
        'code': code(),
    }


def main() -> None:
    given = arguments(__doc__)
    record = Record(given.record, given.step, facts(given.size))
    if PRODUCT not in record:
        side = 8192 if given.size == 'full' else 512
        # Random: a product of equal numbers needs less power, and is faster.
        a = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
        multiply = jax.jit(lambda a: a @ a)
        seconds = timed(lambda: multiply(a), 10).seconds
        rate = 2 * side**3 / seconds
        peak = record.facts['peak']
        record.add(
            PRODUCT, side=side, seconds=seconds, tflops=rate / 1e12, mfu=peak and rate / peak
        )
    record.finish()


if __name__ == '__main__':
    main()
