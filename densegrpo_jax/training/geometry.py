"""How an update's rows are counted and divided: rows of a sample, rows that belong together,
microbatches, and whether all of it fits the mesh.
"""

from __future__ import annotations

import math

from jax.sharding import AbstractMesh, Mesh

from densegrpo_jax.config.method import loss_of, roles_read
from densegrpo_jax.config.moving_keys import budget_sizes
from densegrpo_jax.core.roles import REF
from densegrpo_jax.runtime.mesh import check_batch
from densegrpo_jax.sampling.schedule import Schedule, beside
from densegrpo_jax.training.batches import BATCHES


def rescored_together(config) -> int:
    """Number of adjacent transitions of an update whose states are evaluated as one."""
    return beside(config) if config.optim.share_states else 1


def skips_rows(config) -> bool:
    """Whether an update evaluates only rows that carry loss: their weights are known before, and no
    other role is compared with the policy in the others.
    """
    return loss_of(config).weights is not None and REF not in roles_read(config)


def samples_at_once(config) -> int:
    """Most samples of one rollout: those of a batch of prompts, or of a prompt with a larger group
    if a batch has fewer.
    """
    r, b = config.rollout, config.budget
    batch = r.prompts_per_batch * r.group
    return batch if b.by == 'none' else max(batch, budget_sizes(r.group, b.ratio)[1])


def rows_of_sample(config, schedule: Schedule) -> int:
    """Rows of a sample on which an iteration's updates train."""
    moving, kind = schedule.moving, BATCHES[loss_of(config).batch]
    return kind.rows(config, schedule.plan) if moving is None else moving.count


def microbatches_evaluated(config, schedule: Schedule) -> int:
    """Microbatches that an iteration's updates evaluate. Of a loss that chooses its samples, as few
    as may be: those with the rows of one sample of each group, which come first.
    """
    r = config.rollout
    samples = r.prompts * (1 if skips_rows(config) else r.group)
    return math.ceil(rows_of_sample(config, schedule) * samples / config.optim.microbatch)


def passes_of_row(config) -> int:
    """Forward passes that an update's arithmetic on a row counts as: the policy's own, backward
    through the activations and, if they are trained, through the weights, and one of every other
    role that is read. What rematerialisation repeats is left out.
    """
    return (3 if config.full else 2) + len(roles_read(config))


def rows_together(config, schedule: Schedule) -> int:
    """Rows that the loss needs in one microbatch: those of whole groups, or 1."""
    loss = loss_of(config)
    rows = rows_of_sample(config, schedule) if loss.trajectories else 1
    return config.rollout.group * rows if loss.groups else 1


def donates_state(config) -> bool:
    """Whether the new state reuses the old one's memory. Adapters are small: with them the old
    state stays until the update is complete.
    """
    return config.full


def check_drawn(config, mesh: Mesh | AbstractMesh) -> None:
    """Raises ValueError if the samples that are drawn together do not divide over the mesh."""
    r, name = config.rollout, 'rollout.prompts_per_batch * rollout.group'
    check_batch(mesh, r.prompts_per_batch * r.group, name, of=r.group)


def check_geometry(config, schedule: Schedule, mesh: Mesh) -> int:
    """Accumulation steps per update. Raises ValueError if a batch does not divide over the mesh, or
    an update does not divide into microbatches that the loss can use.
    """
    r, o, loss = config.rollout, config.optim, loss_of(config)
    check_drawn(config, mesh)
    check_batch(mesh, o.microbatch, 'optim.microbatch')
    kind = BATCHES[loss.batch]
    rows, whole = rows_of_sample(config, schedule), rows_together(config, schedule)
    size = rows * r.prompts * r.group // o.updates
    near = sorted(
        (d for d in range(whole, size + 1, whole) if size % d == 0),
        key=lambda d: abs(d - o.microbatch),
    )[:4]
    if size % o.microbatch:
        raise ValueError(
            f'optim.microbatch={o.microbatch} does not divide the {size} {kind.unit} of an update '
            f'({rows} a sample x {r.prompts} prompts x {r.group} samples / {o.updates} updates); '
            f'near it: {near}'
        )
    copies = rescored_together(config)
    if o.microbatch % copies:
        raise ValueError(
            f'optim.microbatch={o.microbatch} does not hold whole blocks of the {copies} samples '
            'that leave one state, which optim.share_states evaluates once; use a multiple of '
            f'{copies}, or optim.share_states=False'
        )
    check_batch(mesh, o.microbatch // copies, 'optim.microbatch / samples that leave one state')
    if o.microbatch % whole:
        steps = f' with all {rows} {kind.unit} of each' if loss.trajectories else ''
        raise ValueError(
            f'optim.microbatch={o.microbatch} does not hold whole groups of rollout.group='
            f'{r.group} samples{steps}, which loss.kind={config.loss.kind!r} compares; near it: '
            f'{near}'
        )
    return size // o.microbatch
