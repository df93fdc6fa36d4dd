"""What the device is, and how fast it multiplies: the peak that a program can reach here."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from benchmarks.accelerator.record import Record, arguments
from benchmarks.phases import timed
from densegrpo_jax.planning.chips import chip_of


def facts() -> dict:
    """The device, its memory, and its peak by the data sheet, if it is listed."""
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
    }


def main() -> None:
    given = arguments(__doc__)
    record = Record(given.record)
    record.facts = facts()
    side = 8192 if given.size == 'full' else 512
    a = jnp.ones((side, side), jnp.bfloat16)
    multiply = jax.jit(lambda a: a @ a)
    seconds, _ = timed(lambda: multiply(a), 5)
    record.add('matrix product', side=side, seconds=seconds, tflops=2 * side**3 / seconds / 1e12)
    record.finish()


if __name__ == '__main__':
    main()
