"""Command: does a configuration fit a machine that is not here, and what would it cost? Asked of
the compiler, before renting anything.

    python -m densegrpo_jax.plan --config=configs/flux_ocr.py:devices=8 \\
        --topology=v5e:2x4 --config.mesh.fsdp=8
    python -m densegrpo_jax.plan --config=configs/sd35_ocr.py:devices=8 \\
        --topology=h100:8 --out=plan.json
    python -m densegrpo_jax.plan --config=configs/flux_ocr.py:devices=32 \\
        --topology=v5p:2x4x4 --quick

Compiles the real rollout (with completions and decoding), update and evaluation for that topology
and prints per device: the memory of each phase against what the chip has, operations (counted from
the networks, not by the compiler), bytes received in collectives, seconds at a stated utilisation,
and for the whole run chip-hours and whether it fits; where it does not, what would make it fit.
With --quick a TPU's compiler makes less effort: an eighth of the time, and more memory in the plan
than in a run (docs/scaling.md). TPUs need `pip install libtpu` (requirements-tpu.txt), H100s
jax-cuda13-plugin, with model.attention=cudnn also the libraries of nvidia-cudnn-cu13 in
LD_LIBRARY_PATH; without them the CPU's compiler lays the memory out, and the table says so. Scoring
on hosts is not in the times. Weights are not needed for the released checkpoints.
"""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
from absl import app, flags, logging

from densegrpo_jax.config.command_line import define_config, define_folder, run_main
from densegrpo_jax.config.defaults import validate
from densegrpo_jax.planning.collectives import collective_bytes
from densegrpo_jax.planning.lowering import Phase, phases
from densegrpo_jax.planning.topology import CHIPS, Topology, absent_devices, parse
from densegrpo_jax.runtime import console
from densegrpo_jax.runtime.cores import cpu_cores
from densegrpo_jax.runtime.mesh import batch_shards, make_mesh
from densegrpo_jax.sampling.loading import open_shapes
from densegrpo_jax.sampling.sampler import make_schedule
from densegrpo_jax.sampling.state import optimiser, state_shapes
from densegrpo_jax.training import announce
from densegrpo_jax.training.learner import check_geometry

GIB = 2**30
HBM_EXCEEDED = re.compile(r'Used ([\d.]+)([GM]) of|total memory required[^(]*\(([\d.]+)([GM])\)')


class Row(NamedTuple):
    """What one phase needs; per device and per run of its program, except seconds: per
    iteration.
    """

    gib: float  # everything that is in memory then
    tflop: float
    collective_gib: float
    compute_s: float
    collective_s: float
    compile_s: float


def compiled_row(
    phase: Phase, topology: Topology, resident: float, utilisation: float, quick: bool = False
) -> Row:
    """Compiles a phase. `resident`: bytes on a device that are not arguments of it or are counted
    once for all phases.
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
    except jax.errors.JaxRuntimeError as error:
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


def advice(
    config, topology: Topology, rows: dict[str, Row], resident: float, mesh: Mapping[str, int]
) -> list[str]:
    """Which settings would make the phases fit that do not; by proportion, so plan again with them.

    `mesh`: axis -> size. Batches are made smaller only by what divides over its data and fsdp axes.
    """
    lines, limit, r, fsdp, shards = (
        [],
        topology.chip.gib,
        config.rollout,
        mesh['fsdp'],
        mesh['data'] * mesh['fsdp'],
    )
    if resident / GIB > 0.8 * limit:
        more = [
            f
            for f in range(fsdp + 1, shards + 1)
            if shards % f == 0 and resident / GIB * fsdp / f < 0.6 * limit
        ]
        way_out = (
            f'config.mesh.data={shards // more[0]} config.mesh.fsdp={more[0]}'
            if more
            else 'more devices'
        )
        if not more and config.model.quantize == 'none' and not config.full:
            way_out += ", or config.model.quantize='int8'"
        lines.append(
            f'weights, optimiser and latents alone take {resident / GIB:.1f} of {limit:g} GiB: '
            f'{way_out}'
        )
    if resident / GIB > limit:
        return lines  # no batch is small enough
    for name, row in rows.items():
        if row.gib <= limit:
            continue
        key, size, each = {
            'rollout': ('rollout.prompts_per_batch', r.prompts_per_batch, r.group),
            'update': ('optim.microbatch', config.optim.microbatch, 1),
            'evaluation': ('eval.batch', config.eval.batch, 1),
        }[name]
        room = max(limit - resident / GIB, 0.0) / max(row.gib - resident / GIB, 1e-9)
        possible = [d for d in range(1, size) if size % d == 0 and d * each % shards == 0]
        smaller = max(
            [d for d in possible if d <= 0.9 * room * size], default=min(possible, default=size)
        )
        if smaller < size:
            lines.append(f'{name}: config.{key}={smaller} instead of {size}')
        if name == 'update' and config.model.remat != 'full':
            lines.append("update: config.model.remat='full' instead of " + repr(config.model.remat))
        if config.model.attention == 'xla':
            kernel = 'cudnn' if topology.kind == 'h100' else 'splash'
            lines.append(f'config.model.attention={kernel!r} keeps no attention weights')
    return list(dict.fromkeys(lines))


def plan(config, topology: Topology, utilisation: float, quick: bool = False) -> dict:
    """The whole answer as a JSON document; see the module's docstring.

    Raises ValueError where the configuration does not fit the topology's number of devices.
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
    pipeline = open_shapes(config, mesh)
    schedule = make_schedule(pipeline, config)
    check_geometry(config, schedule, mesh)
    batch = config.rollout.prompts_per_batch * config.rollout.group
    base = pipeline.abstract_params()
    state = state_shapes(pipeline, optimiser(config))
    held = announce.memory(config, pipeline, schedule, mesh, base, state)
    resident = held['weights'] + held[announce.TRAINED] + held['latents']
    programs = phases(config, pipeline, schedule, mesh)

    def row(name: str) -> Row:
        result = compiled_row(programs[name], topology, resident, utilisation, quick)
        logging.info('%s compiled in %.0f s', name, result.compile_s)
        return result

    # one compiler keeps one core busy
    with concurrent.futures.ThreadPoolExecutor(cpu_cores()) as pool:
        rows = dict(zip(programs, pool.map(row, programs)))
    seconds = sum(row.compute_s for row in rows.values())
    moving = sum(row.collective_s for row in rows.values())
    chips = topology.count / topology.chip.per_chip
    hours = lambda each: each * config.iterations * chips / 3600
    return {
        'topology': topology.name,
        'estimated_on_cpu': estimated,
        'quick': quick,
        'devices': topology.count,
        'mesh': dict(mesh.shape),
        'attention': config.model.attention,
        'samples_per_device': batch // batch_shards(mesh),
        'resident_gib': resident / GIB,
        'limit_gib': topology.chip.gib,
        'phases': {name: row._asdict() for name, row in rows.items()},
        'fits': all(row.gib <= topology.chip.gib for row in rows.values()),
        'utilisation': utilisation,
        'seconds_per_iteration': seconds,
        'collective_seconds': moving,
        'iterations': config.iterations,
        'chip_hours': [hours(max(seconds, moving)), hours(seconds + moving)],
        'advice': advice(config, topology, rows, resident, mesh.shape),
    }


def table(result: dict) -> str:
    """The document as text."""
    r = result
    source = (
        'the CPU compiler: memory as it lays it out, an estimate only'
        if r['estimated_on_cpu']
        else "the topology's own compiler"
    )
    source += ', with little effort: a run may need less memory' if r['quick'] else ''
    axes = ' x '.join(f'{name} {size}' for name, size in r['mesh'].items())
    lines = [
        f'{r["topology"]}: {r["devices"]} devices ({axes}), {r["samples_per_device"]} samples '
        f'each, attention {r["attention"]}',
        f'compiled by {source}',
        f'always resident (weights, optimiser, latents): {r["resident_gib"]:.2f} GiB of '
        f'{r["limit_gib"]:g} GiB',
        'phase        GiB/device  fits  TFLOP/device  received GiB  s/iteration  collectives s',
    ]
    for name, row in r['phases'].items():
        fits = 'yes' if row['gib'] <= r['limit_gib'] else 'NO'
        lines.append(
            f'{name:12s} {row["gib"]:10.2f} {fits:>5s} {row["tflop"]:13.1f} '
            f'{row["collective_gib"]:13.2f} {row["compute_s"]:12.1f} {row["collective_s"]:14.1f}'
        )
    low, high = r['chip_hours']
    lines += [
        f'an iteration: {r["seconds_per_iteration"]:.0f} s of arithmetic at '
        f'{100 * r["utilisation"]:.0f} % of the peak, {r["collective_seconds"]:.0f} s of '
        'collectives if nothing hides them',
        f'{r["iterations"]} iterations: {low:.0f} to {high:.0f} chip-hours',
        'it fits' if r['fits'] else 'IT DOES NOT FIT; try:',
        *(f'  {line}' for line in r['advice']),
    ]
    return '\n'.join(lines)


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(
            f'unexpected arguments {argv[1:]}; settings are given as --config.key=value'
        )
    console.start()
    jax.config.update('jax_platforms', 'cpu')  # nothing runs on the devices that are planned for
    flag = flags.FLAGS
    try:
        topology = parse(flag.topology)
        if not topology.can_compile:
            logging.warning(
                '%s is not installed: estimating with the CPU compiler', topology.compiler
            )
            jax.config.update('jax_num_cpu_devices', topology.count)
        result = plan(flag.config, topology, flag.utilisation, flag.quick)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        logging.error('%s', error)
        return 2
    print(table(result))
    if flag.out:
        pathlib.Path(flag.out).write_text(json.dumps(result, indent=2) + '\n')
    return 0 if result['fits'] else 1


def define_flags() -> None:
    """Only the command itself has flags: importing this module defines none."""
    define_config('Configuration of the run.')
    flags.DEFINE_string(
        'topology', None, f'KIND:SHAPE, KIND one of {sorted(CHIPS)}: v5p:2x2x1, h100:8.'
    )
    flags.DEFINE_float(
        'utilisation', 0.4, 'Share of the peak rate that the arithmetic is assumed to reach.'
    )
    flags.DEFINE_bool(
        'quick',
        False,
        'Compile for TPUs with the least effort: faster, and more memory in the plan than in a '
        'run.',
    )
    define_folder('out', '', 'JSON file for the result.')


if __name__ == '__main__':
    define_flags()
    flags.mark_flags_as_required(['config', 'topology'])
    run_main(main)
