"""Devices that need not be present: figures of each chip, and topologies for ahead-of-time
compilation.

Figures are from the vendors' data sheets; a TPU's memory is what its compiler lets a program use
(as libtpu 0.0.42 reports it).
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """One device as JAX counts them (on tpu7x a chip is two devices).

    gib: memory that a program may use. flops: dense bfloat16 operations per second. link: bytes per
    second out of a device to its neighbours, all links together. per_chip: devices of a chip.
    """

    gib: float
    flops: float
    link: float
    per_chip: int = 1


CHIPS = {
    'v5e': Chip(15.75, 197e12, 200e9),
    'v5p': Chip(95.74, 459e12, 600e9),
    'v6e': Chip(31.25, 918e12, 448e9),
    'tpu7x': Chip(94.75, 1153.5e12, 600e9, per_chip=2),
    # of 80 GB; the rest goes to the driver, libraries and fragmentation
    'h100': Chip(74.0, 989e12, 450e9),
}

# The device description that XLA's GPU compiler needs: an H100 SXM.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_EFFORT_O0 = 9  # of XLA's EffortLevel


class Topology(NamedTuple):
    """A topology to compile for.

    name: as given. kind: a key of CHIPS. shape: of the slice, in chips. compiler: the package that
    compiles for it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    compiler: str

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def count(self) -> int:
        """Devices, as JAX counts them."""
        return math.prod(self.shape) * self.chip.per_chip

    def compiler_options(self, quick: bool = False) -> dict:
        """Compiler options for programs that do not run: no tuning of Triton's matrix products,
        which needs the GPU itself.

        quick: compiles a TPU's program with the least effort for its speed; a GPU's compiles in
        seconds anyway.
        """
        if self.kind == 'h100':
            return {'xla_gpu_enable_triton_gemm': False}
        return {'optimization_level': _EFFORT_O0} if quick else {}

    @property
    def can_compile(self) -> bool:
        """Whether the compiler is installed here."""
        try:
            return importlib.util.find_spec(self.compiler) is not None
        except ModuleNotFoundError:  # the parent package is missing too
            return False


def parse(name: str) -> Topology:
    """Parses 'v5p:2x2x1', 'v5e:2x4', 'h100:8' and the like.

    Raises ValueError for anything else; the message names the known kinds.
    """
    match = re.fullmatch(r'(\w+):(\d+(?:x\d+){0,2})', name)
    if match is None or match[1] not in CHIPS:
        raise ValueError(
            f'--topology={name!r} is not known: expected KIND:SHAPE, as v5p:2x2x1 or h100:8, KIND '
            f'one of {sorted(CHIPS)}'
        )
    shape, gpu = tuple(map(int, match[2].split('x'))), match[1] == 'h100'
    if not 0 < math.prod(shape) <= 100_000:
        raise ValueError(f'--topology={name!r}: expected 1 to 100000 devices')
    if gpu != (len(shape) == 1):
        raise ValueError(
            f'--topology={name!r}: '
            f'{"GPUs are only counted: h100:8" if gpu else "a TPU slice has a shape, such as 2x4"}'
        )
    return Topology(name, match[1], shape, 'jax_plugins.xla_cuda13' if gpu else 'libtpu')


def absent_devices(topology: Topology) -> list:
    """Devices of absent hardware to compile for. Set JAX_PLATFORMS=cpu for the process: nothing
    runs on them.

    Raises ValueError if the compiler does not know such a slice.
    """
    from jax.experimental import topologies

    try:
        if topology.kind == 'h100':
            os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
            from jax._src import xla_bridge  # no public call loads a plugin only for its compiler

            xla_bridge.discover_pjrt_plugins()
            options = dict(topology=f'1x1x{topology.count}', target_config=_H100)
            return topologies.get_topology_desc(
                platform='cuda', topology_name='h100', **options
            ).devices
        # else a lock file stays behind and the next process refuses to start
        os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
        os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
        shape = 'x'.join(map(str, topology.shape))
        options = {'chips_per_host_bounds': (1, 1, 1)} if math.prod(topology.shape) == 1 else {}
        return topologies.get_topology_desc(
            platform='tpu', topology_name=f'{topology.kind}:{shape}', **options
        ).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f'{topology.compiler} does not know --topology={topology.name}: '
            f'{str(error).splitlines()[0]}'
        ) from None


def compiler_of(estimated: bool) -> str:
    """The compiler behind a plan, in words; estimated: the CPU's stood in."""
    if estimated:
        return 'the CPU compiler: its memory layout, an estimate only'
    return "the topology's own compiler"
