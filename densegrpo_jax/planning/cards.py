"""What fits the GPUs that people own: a ladder of settings, each compiled once, against the memory
of every card.

The settings of a ladder change memory and speed, and with a quantised base the numbers' rounding;
groups, steps and prompts stay. The least change that fits is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from absl import logging
from ml_collections import ConfigDict

from densegrpo_jax.config.variants import microbatches
from densegrpo_jax.guard.check import images_together
from densegrpo_jax.planning.advice import amount
from densegrpo_jax.planning.chips import CHIPS, GPUS
from densegrpo_jax.planning.topology import Topology, compiler_of, parse
from densegrpo_jax.runtime.mesh import mesh_shape

# The ladder is compiled for one card with room for all of it: XLA recomputes where a program would
# not fit, so what the card with the most memory needs is at most more than another would.
REFERENCE = 'b200'
# From the least change of the numbers to the most.
FORMATS = ('none', 'int8', 'nf4')


def count_of(topology: str) -> int | None:
    """N of 'cards:N', the question about every GPU; None for the name of one topology.

    Raises:
      ValueError: cards without a number from 1 to 1024.
    """
    if not topology.startswith('cards'):
        return None
    match = re.fullmatch(r'cards:(\d+)', topology)
    if match is None or not 0 < int(match[1]) <= 1024:
        raise ValueError(
            f'--topology={topology!r}: expected cards:N, every GPU of the table N times, N from 1 '
            'to 1024, as cards:1'
        )
    return int(match[1])


def ladder(config: ConfigDict, count: int) -> Iterator[dict]:
    """Settings (key -> value) from none on, each needing less memory than the one before or
    changing more of the numbers.

    For every format of the base's weights: the batches as they are; half of them with full
    rematerialisation; the smallest that divide over the mesh.
    """
    data, fsdp, _ = mesh_shape(config.mesh, count)
    shards = data * fsdp
    given = config.model.quantize
    formats = FORMATS[FORMATS.index(given) :] if not config.full else (given,)
    half, least = (_batches(config, shards, share) for share in (0.5, 0.0))
    for quantize in formats:
        seen = []
        for batches in ({}, {**half, 'model.remat': 'full'}, {**least, 'model.remat': 'full'}):
            changes = {'model.quantize': quantize, **batches}
            changes = {key: value for key, value in changes.items() if value != _value(config, key)}
            if changes not in seen:
                seen.append(changes)
                yield changes


def _batches(config: ConfigDict, shards: int, share: float) -> dict:
    """The batches that divide over the shards and are at most `share` of the configuration's; the
    smallest if none is.
    """
    r, least = config.rollout, images_together(config)
    possible = {
        'rollout.prompts_per_batch': [
            p
            for p in range(1, r.prompts_per_batch + 1)
            if r.prompts % p == 0 and p * r.group % shards == 0
        ],
        'optim.microbatch': [
            m for m in microbatches(config) if m % shards == 0 and m <= config.optim.microbatch
        ],
        'eval.batch': [
            b
            for b in range(shards, config.eval.batch + 1, shards)
            if config.eval.batch % b == 0 and b >= least
        ],
    }
    return {
        key: max([n for n in sizes if n <= share * _value(config, key)], default=min(sizes))
        for key, sizes in possible.items()
        if sizes
    }


def _value(config: ConfigDict, key: str):
    group, _, name = key.rpartition('.')
    return config[group][name]


def fitting(
    config: ConfigDict,
    count: int,
    utilisation: float,
    plan: Callable[[ConfigDict, Topology, float], Mapping],
    reference: Topology | None = None,
) -> dict:
    """The first setting of the ladder that fits, for each GPU, as a JSON document.

    Args:
      count: cards of a machine. plan: `plan.plan`, which compiles. reference: the topology to
        compile for; by default `count` of REFERENCE.

    Raises:
      ValueError: the configuration does not fit `count` devices.
    """
    reference = reference or parse(f'{REFERENCE}:{count}')
    open_cards = sorted(GPUS, key=lambda name: CHIPS[name].gib)
    found: dict[str, dict] = {}
    tried, rungs = [], list(ladder(config, count))
    for number, changes in enumerate(rungs, 1):
        varied = config.copy_and_resolve_references()
        varied.unlock()
        varied.update_from_flattened_dict(changes)
        needs = plan(varied, reference, utilisation)
        gib = max(row['gib'] for row in needs['phases'].values())
        tried.append({'changes': changes, 'gib': gib, 'resident_gib': needs['resident_gib']})
        for name in [name for name in open_cards if gib <= CHIPS[name].gib]:
            found[name] = {'changes': changes, 'gib': gib, **_cost(name, needs, reference)}
            open_cards.remove(name)
        held = [name for name in found if found[name]['changes'] is changes]
        logging.info(
            'setting %d of at most %d, %s: %.1f GiB, %s',
            *(number, len(rungs), arguments(changes), gib),
            f'fits {", ".join(held)}' if held else 'fits no further card',
        )
        if not open_cards:
            break
    return {
        'cards': count,
        'estimated_on_cpu': needs['estimated_on_cpu'],
        'utilisation': utilisation,
        'iterations': config.iterations,
        'tried': tried,
        'fits': {name: found.get(name) for name in sorted(GPUS, key=lambda name: CHIPS[name].gib)},
    }


def _cost(name: str, needs: Mapping, reference: Topology) -> dict:
    """Seconds of arithmetic and card-hours, scaled from the card that was compiled for."""
    seconds = needs['seconds_per_iteration'] * reference.chip.flops / CHIPS[name].flops
    hours = seconds * needs['iterations'] * reference.count / 3600
    return {'seconds_per_iteration': seconds, 'card_hours': hours}


def table(result: Mapping) -> str:
    """The document of `fitting` as text."""
    width = max(map(len, GPUS))
    lines = [
        f'{result["cards"]} card(s) each, compiled by {compiler_of(result["estimated_on_cpu"])}; '
        f'seconds and hours at {100 * result["utilisation"]:.0f} % of the peak, without scoring',
        f'{"card":{width}s}  GiB each   peak TFLOP/s   needs  s/iteration  card-hours  with',
    ]
    for name, row in result['fits'].items():
        chip = CHIPS[name]
        start = f'{name:{width}s}  {chip.gib:8.1f} {chip.flops / 1e12:14.0f}  '
        if row is None:
            least = min(step['gib'] for step in result['tried'])
            lines.append(
                f'{start}DOES NOT FIT: {least:.1f} GiB at least; more cards with '
                'config.mesh.fsdp, a smaller config.rollout.group or a smaller model'
            )
            continue
        lines.append(
            f'{start}{amount(row["gib"]):>6s} {amount(row["seconds_per_iteration"]):>12s} '
            f'{amount(row["card_hours"]):>11s}  {arguments(row["changes"])}'
        )
    return '\n'.join(lines)


def arguments(changes: Mapping) -> str:
    """Settings as a command takes them, or words for none."""
    given = ' '.join(f'--config.{key}={value}' for key, value in changes.items())
    return given or 'the configuration as it is'
