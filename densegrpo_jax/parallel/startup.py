"""How a process gets its devices: on a CPU one virtual device per core, so that the mesh, and with it every core, is used."""

from __future__ import annotations

import os

import jax


def cpu_devices(batch: int, cores: int | None = None) -> int:
    """Virtual CPU devices for a host with `cores` cores: the largest number up to it that divides `batch` rows.

    XLA runs most element-wise loops and convolutions of one CPU device on a single thread: two devices on two cores halve the time.
    """
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    return max(d for d in range(1, max(1, min(cores, batch)) + 1) if batch % d == 0)


def start_devices(batch: int, count: int = 0) -> None:
    """Sets the number of CPU devices before JAX starts; without effect where an accelerator is used.

    Args:
      batch: rows that the mesh's data axes will split.
      count: devices wanted; 0 = `cpu_devices(batch)`.
    """
    if not os.environ.get('XLA_FLAGS', '').count('host_platform_device_count'):
        jax.config.update('jax_num_cpu_devices', count or cpu_devices(batch))
