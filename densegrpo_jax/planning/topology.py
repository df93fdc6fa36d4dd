"""Devices that need not be present: topologies for ahead-of-time compilation. `chips` has the
figures of each device.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax

from densegrpo_jax.planning.chips import CHIPS, Chip, description

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
        if self.chip.gpu:
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
    """Parses 'v5p:2x2x1', 'v5e:2x4', 'h100:8', 'a100-40:1' and the like.

    Raises ValueError for anything else; the message names the known kinds.
    """
    match = re.fullmatch(r'([\w-]+):(\d+(?:x\d+){0,2})', name)
    if match is None or match[1] not in CHIPS:
        raise ValueError(
            f'--topology={name!r} is not known: expected KIND:SHAPE, as v5p:2x2x1 or h100:8, KIND '
            f'one of {sorted(CHIPS)}'
        )
    shape, gpu = tuple(map(int, match[2].split('x'))), CHIPS[match[1]].gpu is not None
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
        if topology.chip.gpu:
            os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
            from jax._src import xla_bridge  # no public call loads a plugin only for its compiler

            xla_bridge.discover_pjrt_plugins()
            options = dict(
                topology=f'1x1x{topology.count}', target_config=description(topology.chip.gpu)
            )
            return topologies.get_topology_desc(
                platform='cuda', topology_name=topology.kind, **options
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
