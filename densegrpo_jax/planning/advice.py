"""Settings that would make a configuration fit if it does not."""

from __future__ import annotations

from collections.abc import Mapping

from densegrpo_jax.guard.check import images_together
from densegrpo_jax.planning.lowering import evaluation_rows
from densegrpo_jax.planning.topology import Topology

GIB = 2**30


def unit(largest: float) -> tuple[str, float]:
    """(unit, what GiB are multiplied by) of a table whose largest size is `largest` GiB."""
    return ('GiB', 1.0) if largest >= 1 else ('MiB', 1024.0)


def amount(x: float) -> str:
    """A number with about as many digits as it deserves: 0.0012, 3.4, 730."""
    return f'{x:.2g}' if x < 1 else f'{x:.1f}' if x < 100 else f'{x:.0f}'


def advice(
    config,
    topology: Topology,
    gib: Mapping[str, float],
    resident: float,
    mesh: Mapping[str, int],
    together: int = 1,
) -> list[str]:
    """Settings that would make phases fit that do not. They are estimated by proportion, so plan
    again with them.

    Smaller batches still divide over the mesh's data and fsdp axes.

    Args:
      gib: phase -> GiB of a device while it runs. resident: bytes that are always in memory.
      mesh: axis -> size. together: rows that stay in one microbatch.
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
    for name, need in gib.items():
        if need <= limit:
            continue
        key, size, each = {
            'probe': ('rollout.prompts_per_batch', r.prompts_per_batch, 1),
            'rollout': ('rollout.prompts_per_batch', r.prompts_per_batch, r.group),
            'update': ('optim.microbatch', config.optim.microbatch, 1),
            'evaluation': ('eval.batch', evaluation_rows(config, shards)[2], 1),
        }[name]
        room = max(limit - resident / GIB, 0.0) / max(need - resident / GIB, 1e-9)
        whole = together if name == 'update' else 1
        possible = [
            d for d in range(whole, size, whole) if size % d == 0 and d * each % shards == 0
        ]
        if name == 'evaluation':
            possible = [d for d in possible if d >= images_together(config)]
        smaller = max(
            [d for d in possible if d <= 0.9 * room * size], default=min(possible, default=size)
        )
        if smaller < size:
            now = config.eval.batch if name == 'evaluation' else size
            lines.append(f'{name}: config.{key}={smaller} instead of {now}')
        elif name == 'update' and whole > 1:
            lines.append(
                f'update: config.optim.microbatch={size} holds one whole group, as loss.kind='
                f'{config.loss.kind!r} needs: more devices, or a smaller config.rollout.group'
            )
        if name == 'update' and config.model.remat != 'full':
            lines.append("update: config.model.remat='full' instead of " + repr(config.model.remat))
        if config.model.attention == 'xla':
            kernel = 'cudnn' if topology.chip.gpu else 'splash'
            lines.append(f'config.model.attention={kernel!r} keeps no attention weights')
    return list(dict.fromkeys(lines))
