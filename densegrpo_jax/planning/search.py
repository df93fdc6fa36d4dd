"""The needs of a search on a machine that need not be present: memory of its two programs, and
seconds per prompt.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from densegrpo_jax.config.method import search_kernel_of
from densegrpo_jax.networks.quantize import stored_shapes
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.planning.advice import GIB, amount, unit
from densegrpo_jax.planning.lowering import Phase
from densegrpo_jax.planning.topology import Topology, compiler_of
from densegrpo_jax.planning.work import Work
from densegrpo_jax.runtime.mesh import rows_over
from densegrpo_jax.runtime.sharding import bytes_per_device, shardings, with_shardings
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.session import Session
from densegrpo_jax.sampling.state import optimiser, state_shapes
from densegrpo_jax.search.methods import Sizes
from densegrpo_jax.search.model import Model
from densegrpo_jax.search.run import make_budget


class Programs(NamedTuple):
    """The programs of a search: 'step' (the velocities of all particles) and 'decoding'."""

    phases: dict[str, Phase]  # runs: per prompt, on average
    rows: int  # particles of a prompt that are evaluated together
    evaluations: int  # per prompt
    images: int  # per prompt
    resident: int  # bytes per device of weights and policy


def most_rows(sizes: Sizes) -> int:
    """The most particles of a prompt that a method evaluates together."""
    return max(sizes.particles, sizes.designs * sizes.candidates, sizes.chains)


def programs(config, pipeline: Pipeline, mesh: Mesh) -> Programs:
    """The programs of `config.search`, with a policy beside the base, from shapes alone.

    Raises:
      ValueError: options contradict each other, or steps follow a gradient, whose memory depends on
        the reward.
    """
    m, o = config.model, config.search
    if o.gradient:
        raise ValueError(
            'search.gradient=True cannot be planned: its memory depends on the reward; plan with '
            'False: a gradient is taken of a few images at a time, 512 x 512 pixels a device'
        )
    base = pipeline.abstract_params(['transformer', 'vae'])
    stored = stored_shapes(base, m.dtype, m.quantize, pipeline.transformer.BLOCKS)
    policy = state_shapes(pipeline, optimiser(config, pipeline.transformer)).ema
    split = lambda tree: shardings(tree, mesh, pipeline.sharding_rules)
    placed = lambda tree: with_shardings(tree, split(tree))
    of = lambda tree: bytes_per_device(tree, split(tree))
    negative = pipeline.conditioning_shapes(1) if pipeline.takes_negative(m.guidance) else None
    session = Session(
        config, mesh, StopRequest(), pathlib.Path(), pipeline, placed(stored), None, negative
    )
    budget = make_budget(session)
    rows, latent = most_rows(budget.sizes), pipeline.latent_shape(m.height, m.width)
    x = jax.ShapeDtypeStruct((o.prompts, rows, *latent), jnp.float32)
    text = pipeline.conditioning_shapes(o.prompts)
    model = Model(session, placed(policy), None, search_kernel_of(config))
    step, decoding = model.lowered(text, x)
    several = o.prompts * rows
    computed = rows_over(mesh, several)  # what the network does not need fills its batch

    work = Work(config, pipeline, stored, policy)
    return Programs(
        {
            'step': Phase(
                lambda: step, budget.expected.evaluations / several, work.velocity(computed)
            ),
            'decoding': Phase(
                lambda: decoding, budget.expected.images / several, work.decoding(computed)
            ),
        },
        rows,
        budget.expected.evaluations,
        budget.expected.images,
        of(stored) + of(policy),
    )


def table(result: dict) -> str:
    """The document of `plan.plan_search` as text."""
    r = result
    size, by = unit(max(row['gib'] for row in r['phases'].values()))
    lines = [
        f'{r["topology"]}: {r["devices"]} devices, search by {r["method"]}: {r["evaluations"]} '
        f'network evaluations and {r["images"]} images a prompt, {r["prompts"]} prompts x '
        f'{r["rows"]} particles together',
        f'compiled by {compiler_of(r["estimated_on_cpu"])}',
        f'always resident (weights, policy): {r["resident_gib"] * by:.2f} {size} of '
        f'{r["limit_gib"]:g} GiB',
        f'phase        {size}/device  fits  TFLOP/device  s/prompt',
    ]
    for name, row in r['phases'].items():
        fits = 'yes' if row['gib'] <= r['limit_gib'] else 'NO'
        lines.append(
            f'{name:12s} {row["gib"] * by:10.2f} {fits:>5s} {amount(row["tflop"]):>13s} '
            f'{amount(row["compute_s"]):>9s}'
        )
    way_out = 'IT DOES NOT FIT: a smaller config.eval.batch, or config.mesh.fsdp'
    return '\n'.join([*lines, 'it fits' if r['fits'] else way_out])


def document(config, topology: Topology, found: Programs, rows: dict, estimated: bool) -> dict:
    """The plan as a JSON document. rows: phase -> `plan.Row`."""
    return {
        'topology': topology.name,
        'estimated_on_cpu': estimated,
        'devices': topology.count,
        'method': config.search.method,
        'evaluations': found.evaluations,
        'images': found.images,
        'prompts': config.search.prompts,
        'rows': found.rows,
        'resident_gib': found.resident / GIB,
        'limit_gib': topology.chip.gib,
        'phases': {name: row._asdict() for name, row in rows.items()},
        'fits': max(row.gib for row in rows.values()) <= topology.chip.gib,
    }
