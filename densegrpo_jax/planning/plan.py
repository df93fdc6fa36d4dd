"""The needs of an iteration on a machine that need not be present: memory, operations, bytes and
seconds of every phase, from programs compiled for it.
"""

from __future__ import annotations

import concurrent.futures
import re
import time
from typing import NamedTuple

import jax
from absl import logging
from jax.sharding import AbstractMesh, Mesh

from densegrpo_jax.config.validation import validate
from densegrpo_jax.evaluation.evaluator import check_group
from densegrpo_jax.guard.check import images_together
from densegrpo_jax.planning import search
from densegrpo_jax.planning.advice import GIB, advice, amount, unit
from densegrpo_jax.planning.collectives import collective_bytes
from densegrpo_jax.planning.lowering import ASSUMED_PROMPTS, Phase, phases, reward_inside
from densegrpo_jax.planning.topology import Topology, absent_devices, compiler_of
from densegrpo_jax.runtime.cores import cpu_cores
from densegrpo_jax.runtime.mesh import AXES, batch_shards, make_mesh, mesh_shape
from densegrpo_jax.sampling.conditioning import evaluated_prompts
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import open_shapes
from densegrpo_jax.sampling.state import follow_rules, optimiser, state_shapes
from densegrpo_jax.training import announce
from densegrpo_jax.training.geometry import (
    check_drawn,
    check_geometry,
    rows_together,
    samples_at_once,
)
from densegrpo_jax.training.rounds import check_rounds
from densegrpo_jax.training.trial import try_parts

LASTING = ('weights', announce.TRAINED, 'latents', announce.PROCESS)  # from phase to phase
HBM_EXCEEDED = re.compile(r'Used ([\d.]+)([GM]) of|total memory required[^(]*\(([\d.]+)([GM])\)')


class Row(NamedTuple):
    """The needs of one phase: per device and run of its program; seconds are per iteration."""

    gib: float  # everything in memory during the phase
    tflop: float
    collective_gib: float
    compute_s: float
    collective_s: float
    compile_s: float


def compiled_row(
    phase: Phase, topology: Topology, resident: float, utilisation: float, quick: bool = False
) -> Row:
    """Compiles a phase. `resident`: bytes on a device that are not among its arguments, or that are
    counted once for all phases. Raises ValueError if its attention needs a library that is absent.
    """
    began = time.monotonic()
    chip, count = topology.chip, topology.count
    try:
        program = phase.lowered.compile(compiler_options=topology.compiler_options(quick))
        memory = program.memory_analysis()
        working = memory.temp_size_in_bytes + max(
            0, memory.output_size_in_bytes - memory.alias_size_in_bytes
        )
        received = sum(collective_bytes(program.as_text()).values())
    except RuntimeError as error:
        if 'cuDNN not found' in str(error):  # JAX asks for its version
            raise ValueError(
                "model.attention='cudnn': cuDNN was not found; pip install -r "
                "requirements-cuda.txt brings it, or plan with 'xla'"
            ) from None
        match = HBM_EXCEEDED.search(str(error))
        if 'RESOURCE_EXHAUSTED' not in str(error) or match is None:
            raise
        size, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
        working, received = float(size) * (GIB if unit == 'G' else 2**20), float('nan')
    seconds = lambda work, rate: phase.runs * work / rate
    executed = (phase.flops + phase.repeated) / count
    return Row(
        (resident + working) / GIB,
        phase.flops / count / 1e12,
        received / GIB,
        seconds(executed, chip.flops * utilisation),
        seconds(received, chip.link),
        time.monotonic() - began,
    )


def stand_in(config, topology: Topology) -> tuple[Mesh, bool]:
    """A mesh of the topology's devices, or of CPU devices in their place, and whether it is the
    latter: then the plan is an estimate.

    Raises ValueError if the configuration is invalid, or does not fit this topology.
    """
    validate(config)
    estimated = not topology.can_compile
    devices = jax.devices('cpu')[: topology.count] if estimated else absent_devices(topology)
    if len(devices) < topology.count:
        raise ValueError(
            f'{topology.name} needs {topology.count} stand-in CPU devices, and there are '
            f'{len(devices)}'
        )
    mesh = make_mesh(config.mesh, devices)
    if estimated and config.model.attention != 'xla':
        raise ValueError(
            f'model.attention={config.model.attention!r} needs {topology.compiler}, which is not '
            "installed; or use 'xla'"
        )
    return mesh, estimated


def check_rollout(config, count: int) -> None:
    """Raises ValueError if so many devices, none of which need exist, cannot share a rollout."""
    check_drawn(config, AbstractMesh(mesh_shape(config.mesh, count), AXES))


def plan(config, topology: Topology, utilisation: float, quick: bool = False) -> dict:
    """The plan as a JSON document; see the module's docstring.

    Raises ValueError if the configuration does not fit the topology's number of devices.
    """
    mesh, estimated = stand_in(config, topology)
    check_group(images_together(config), config, 'guard.images')
    pipeline = open_shapes(config, mesh)
    schedule = make_schedule(pipeline, config)
    check_geometry(config, schedule, mesh)
    try_parts(config, schedule)
    check_rounds(config, pipeline, schedule, mesh)
    base = pipeline.abstract_params()
    state = state_shapes(pipeline, optimiser(config, pipeline.transformer), follow_rules(config))
    reward = reward_inside(config, schedule)
    held = announce.memory(config, pipeline, schedule, mesh, base, state, reward)
    resident = sum(held[name] for name in LASTING if name in held)
    during = {'update': held[announce.RECORD]}  # an update's own arguments
    programs = phases(config, pipeline, schedule, mesh, reward)

    def row(name: str) -> Row:
        lasting = resident + during.get(name, 0.0)
        result = compiled_row(programs[name], topology, lasting, utilisation, quick)
        logging.info('%s compiled in %.0f s', name, result.compile_s)
        return result

    # one compiler keeps one core busy
    with concurrent.futures.ThreadPoolExecutor(cpu_cores()) as pool:
        rows = dict(zip(programs, pool.map(row, programs)))
    seconds = sum(row.compute_s for row in rows.values())
    moving = sum(row.collective_s for row in rows.values())
    chips = topology.count / topology.chip.per_chip
    gib = {name: row.gib for name, row in rows.items()}
    hours = lambda each: each * config.iterations * chips / 3600
    assumed = (
        f'evaluation counts {ASSUMED_PROMPTS:,} prompts, as data.eval_prompts=0 takes all of '
        f'{config.data.eval!r}, which is not read; --config.data.eval_prompts=N counts N'
    )
    return {
        'topology': topology.name,
        'estimated_on_cpu': estimated,
        'quick': quick,
        'devices': topology.count,
        'mesh': dict(mesh.shape),
        'attention': config.model.attention,
        'samples_per_device': samples_at_once(config) // batch_shards(mesh),
        'resident_gib': resident / GIB,
        'limit_gib': topology.chip.gib,
        'phases': {name: row._asdict() for name, row in rows.items()},
        'fits': max(gib.values()) <= topology.chip.gib,
        'utilisation': utilisation,
        'seconds_per_iteration': seconds,
        'collective_seconds': moving,
        'iterations': config.iterations,
        'chip_hours': [hours(max(seconds, moving)), hours(seconds + moving)],
        'advice': advice(
            config, topology, gib, resident, mesh.shape, rows_together(config, schedule)
        ),
        'warnings': [
            *filter(None, [announce.crowded(config, batch_shards(mesh))]),
            *([] if evaluated_prompts(config) else [assumed]),
        ],
    }


def plan_search(config, topology: Topology, utilisation: float, quick: bool = False) -> dict:
    """The needs of `config.search`, as a JSON document.

    Raises ValueError if the configuration is invalid, or does not fit this topology.
    """
    mesh, estimated = stand_in(config, topology)
    found = search.programs(config, open_shapes(config, mesh), mesh)
    rows = {
        name: compiled_row(phase, topology, found.resident, utilisation, quick)
        for name, phase in found.phases.items()
    }
    return search.document(config, topology, found, rows, estimated)


def table(result: dict) -> str:
    """The document as text."""
    r = result
    source = compiler_of(r['estimated_on_cpu'])
    source += ', with little effort: a run may need less memory' if r['quick'] else ''
    axes = ' x '.join(f'{name} {size}' for name, size in r['mesh'].items())
    size, by = unit(max(row['gib'] for row in r['phases'].values()))
    lines = [
        f'{r["topology"]}: {r["devices"]} devices ({axes}), {r["samples_per_device"]} samples '
        f'each, attention {r["attention"]}',
        f'compiled by {source}',
        'always resident (weights, also of a process reward, optimiser, latents): '
        f'{r["resident_gib"] * by:.2f} {size} of {r["limit_gib"]:g} GiB',
        f'phase        {size}/device  fits  TFLOP/device  received {size}  s/iteration  '
        'collectives s',
    ]
    for name, row in r['phases'].items():
        fits = 'yes' if row['gib'] <= r['limit_gib'] else 'NO'
        lines.append(
            f'{name:12s} {row["gib"] * by:10.2f} {fits:>5s} {amount(row["tflop"]):>13s} '
            f'{row["collective_gib"] * by:13.2f} {amount(row["compute_s"]):>12s} '
            f'{amount(row["collective_s"]):>14s}'
        )
    low, high = r['chip_hours']
    lines += [
        f'an iteration: {amount(r["seconds_per_iteration"])} s of arithmetic at '
        f'{100 * r["utilisation"]:.0f} % of the peak, {amount(r["collective_seconds"])} s of '
        'collectives if nothing hides them',
        f'{r["iterations"]} iterations: {amount(low)} to {amount(high)} chip-hours',
        'it fits' if r['fits'] else 'IT DOES NOT FIT; try:',
        *(f'  {line}' for line in r['advice']),
        *r['warnings'],
    ]
    return '\n'.join(lines)
