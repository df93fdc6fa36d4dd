"""Figures of each kind of device: what plans and benchmarks divide by.

A TPU's memory is what its compiler lets a program use (as libtpu 0.0.42 reports it). A GPU's is
93 % of what its driver reports, the share that a command takes (`runtime.startup`).

Rates are dense bfloat16 with float32 sums, as the vendors state them; where a sheet only has the
rate with sparsity, half of it. Sources:

- v5e, v5p, v6e, tpu7x: cloud.google.com/tpu/docs, the page of each version.
- a100, a100-40: NVIDIA A100 Tensor Core GPU data sheet (2021), SXM.
- l40s: NVIDIA L40S data sheet (2023).
- rtx4090: NVIDIA Ada GPU Architecture whitepaper V2.02, appendix A. The rate with float32 sums is
  half of the one with float16 sums.
- rtx5090: NVIDIA RTX Blackwell GPU Architecture whitepaper V1.1, appendix A; as rtx4090.
- h100, h200: NVIDIA H100 and H200 Tensor Core GPU data sheets, SXM.
- b200: NVIDIA HGX B200 data sheet (2025), an eighth of the board.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from densegrpo_jax.runtime.backends import GPU_SHARE

GB = 1e9


class Chip(NamedTuple):
    """One device as JAX counts them (on tpu7x a chip is two devices).

    gib: memory that a program may use. flops: dense bfloat16 operations per second. link: bytes per
    second out of a device to its neighbours, all links together (PCIe where there is no other).
    bandwidth: bytes per second of its memory. names: parts of JAX's `device_kind`, in lower case.
    per_chip: devices of a chip. gpu: what XLA's compiler for GPUs needs to know; None: a TPU.
    """

    gib: float
    flops: float
    link: float
    bandwidth: float
    names: tuple[str, ...]
    per_chip: int = 1
    gpu: Gpu | None = None


class Gpu(NamedTuple):
    """The parts of XLA's device description that differ between GPUs (CUDA's device properties)."""

    title: str
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    clock_ghz: float
    l2_mib: int
    memory: int  # bytes, as the driver reports them
    fpus_per_core: int = 128
    shared_kib: int = 228  # of a core; a block may have one less
    threads_per_core: int = 2048


def _gpu(gpu: Gpu, tera: float, link: float, bandwidth: float, names, gib: float = 0.0) -> Chip:
    usable = gib or round(GPU_SHARE * gpu.memory / 2**30, 1)
    return Chip(usable, tera * 1e12, link * GB, bandwidth * GB, names, gpu=gpu)


_MIB = 2**20
CHIPS = {
    'v5e': Chip(15.75, 197e12, 200 * GB, 819 * GB, ('v5 lite', 'v5e')),
    'v5p': Chip(95.74, 459e12, 600 * GB, 2765 * GB, ('v5p', 'v5')),
    'v6e': Chip(31.25, 918e12, 448 * GB, 1640 * GB, ('v6 lite', 'v6e')),
    'tpu7x': Chip(94.75, 1153.5e12, 600 * GB, 3690 * GB, ('tpu7',), per_chip=2),
    'a100-40': _gpu(
        Gpu('NVIDIA A100-SXM4-40GB', (8, 0), 108, 1.41, 40, 40326 * _MIB, 64, 164),
        *(312, 300, 1555, ('a100-sxm4-40gb', 'a100-pcie-40gb')),
    ),
    'a100': _gpu(
        Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 1.41, 40, 81038 * _MIB, 64, 164),
        *(312, 300, 2039, ('a100',)),
    ),
    'l40s': _gpu(
        Gpu('NVIDIA L40S', (8, 9), 142, 2.52, 96, 45589 * _MIB, 128, 100, 1536),
        *(362, 32, 864, ('l40s',)),
    ),
    'rtx4090': _gpu(
        Gpu('NVIDIA GeForce RTX 4090', (8, 9), 128, 2.52, 72, 24081 * _MIB, 128, 100, 1536),
        *(165.2, 32, 1008, ('rtx 4090',)),
    ),
    'rtx5090': _gpu(
        Gpu('NVIDIA GeForce RTX 5090', (12, 0), 170, 2.41, 96, 32109 * _MIB, 128, 100, 1536),
        *(209.5, 64, 1792, ('rtx 5090',)),
    ),
    'h100': _gpu(
        Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 1.98, 50, 84942979072),
        *(989, 450, 3352, ('h100',)),
        gib=74.0,
    ),
    'h200': _gpu(
        Gpu('NVIDIA H200', (9, 0), 132, 1.98, 50, 143156 * _MIB), 989, 450, 4800, ('h200',)
    ),
    'b200': _gpu(
        Gpu('NVIDIA B200', (10, 0), 148, 1.965, 126, 182642 * _MIB), 2250, 900, 8000, ('b200',)
    ),
}
GPUS = tuple(name for name, chip in CHIPS.items() if chip.gpu)
_OTHERS = re.compile(r'h100 (pcie|nvl)|h200 nvl|laptop|max-q|[45]090 d\b|\bmig\b|grid|-\d+[qc]\b')


def chip_of(device_kind: str) -> tuple[str, Chip] | None:
    """(name, figures) of a device by its JAX `device_kind`; None for one that is not listed.

    The longest name that it contains, from the beginning of a word, decides: 'TPU v5 lite' is v5e,
    'TPU v5' is v5p. Cards of other rates that share a name are not listed.
    """
    kind = device_kind.lower()
    found = [
        (len(part), name)
        for name, chip in CHIPS.items()
        for part in chip.names
        if re.search(rf'(?<![a-z0-9]){re.escape(part)}', kind) and not _OTHERS.search(kind)
    ]
    if not found:
        return None
    name = max(found)[1]
    return name, CHIPS[name]


def description(gpu: Gpu) -> str:
    """XLA's GpuTargetConfigProto of a GPU, as text."""
    major, minor = gpu.capability
    shared = gpu.shared_kib * 1024
    bandwidth = next(chip.bandwidth for chip in CHIPS.values() if chip.gpu == gpu)
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  threads_per_core_limit: {gpu.threads_per_core} core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus_per_core}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth:.0f} l2_cache_size: {gpu.l2_mib * _MIB}
  clock_rate_ghz: {gpu.clock_ghz} device_memory_size: {gpu.memory}
  shared_memory_per_block_optin: {shared - 1024}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{gpu.title}"
"""
