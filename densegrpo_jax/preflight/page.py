"""The preflight's results: lines for the log, and a page."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from densegrpo_jax.preflight.findings import NO_ADVICE
from densegrpo_jax.preflight.groups import LACKS
from densegrpo_jax.preflight.record import Record
from densegrpo_jax.preflight.signal import Interval
from densegrpo_jax.runtime import html
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.trees import json_value

FILE, PAGE = 'preflight.json', 'index.html'
SQUARES = 'squared correlation of a credit and the effect of each transition'

Table = tuple[list[str], list[list[str]]]  # head and rows


def write(
    out: pathlib.Path, document: dict[str, Any], prompts: Sequence[str], record: Record
) -> list[pathlib.Path]:
    """Writes the document and the page; returns their paths."""
    replace_file(out / FILE, json.dumps(json_value(document), indent=2) + '\n')
    replace_file(out / PAGE, page(document, prompts, record))
    return [out / FILE, out / PAGE]


def lines(document: dict[str, Any]) -> list[str]:
    """What the command prints."""
    d = document
    return [
        *_of_reward(d),
        *_of_variance(d),
        *_aligned(_transitions(d)),
        *_of_columns(d),
        *_aligned(_credits(d)),
        'signal of each transition; a row adds up to the signal of the credit',
        *_aligned(_of_steps(d, 'signal_parts', intervals=False)),
        f'{SQUARES}: that, divided by its share of what the trained ones decide',
        *_aligned(_of_steps(d, 'signal_squares', intervals=False)),
        *_of_branches(d),
        *_of_run(d),
        *(f'not measured: {line}' for line in d['not_measured']),
        *(f'{"STOP: " if a["stop"] else "- "}{a["reason"]}' for a in d['findings']),
        NO_ADVICE,
    ]


def page(document: dict[str, Any], prompts: Sequence[str], record: Record) -> str:
    """The page as HTML, without any script."""
    d = document
    found = [('Stop. ' if a['stop'] else '') + a['reason'] for a in d['findings']]
    paragraphs = lambda given: [html.text('p', line[:1].upper() + line[1:]) for line in given]
    return html.page(
        f'Preflight: {d["label"]}',
        [
            *paragraphs(_of_reward(d)),
            html.text('h2', 'Findings'),
            '<ul>' + '\n'.join(html.text('li', line) for line in [*found, NO_ADVICE]) + '</ul>',
            html.text('h2', 'What decides the reward'),
            *paragraphs(_of_variance(d)),
            html.table(*_transitions(d)),
            *paragraphs(_of_columns(d)),
            html.text('h2', 'Credits'),
            html.text(
                'p',
                'Signal: the squared correlation of a credit with what its transition changes. '
                'NFE, images: network evaluations and scored images of a sample. Price: seconds of '
                'a sample by signal, in those of this recipe; a rule of thumb for the cost of a '
                'gradient of equal precision.',
            ),
            html.table(*_credits(d)),
            *paragraphs(d['not_measured']),
            html.text('p', "The signal of each transition. A row adds up to the credit's signal."),
            html.table(*_of_steps(d, 'signal_parts')),
            html.text(
                'p',
                f'{SQUARES[:1].upper() + SQUARES[1:]}: the part above, divided by the share that '
                'the transition has of what all trained ones decide; unknown where that share is '
                "not told from 0. Divided by a credit's network evaluations, or images, it is what "
                'each of these buys.',
            ),
            html.table(*_of_steps(d, 'signal_squares')),
            *paragraphs(_of_branches(d)),
            html.text('h2', 'A run of this recipe'),
            *paragraphs(_of_run(d)),
            html.text('h2', 'Pictures'),
            *_pictures(prompts, record),
        ],
    )


def _of_reward(d: dict) -> list[str]:
    reward, images = d['reward'], d['images']
    means = ', '.join(f'{name} {value:.4f}' for name, value in reward['scores'].items())
    without, size = d['without_spread'], d['trained_group']
    trained = ''
    if size != d['group']:
        of_size = 'measured' if without['size'] == size else f'at most {without["size"]} measured'
        trained = f' (groups of {size}, as training has them, {of_size}: {without["share"]})'
    return [
        f'{d["prompts"]} prompts x {d["group"]} samples: reward {reward["mean"]:.4f}, spread '
        f'within groups {reward["deviation"]}; brackets are 95 % intervals over prompts',
        f'share of groups without spread {reward["zero"]}{trained}, of pairs with equal rewards '
        f'{reward["ties"]}; the best of a group is {reward["best"]} above its mean',
        f'without a score: {1 - reward["valid"]:.1%} of the samples, {images["failed"]:.1%} of all '
        f'images with twins and completions; measured on {images["used"]:.1%} of the samples',
        f'mean scores: {means}',
    ]


def _of_variance(d: dict) -> list[str]:
    shares = d['decided']
    shared = ', with the first noise, which a group shares' if d['shared_noise'] else ''
    return [
        f'share of the total variance between prompts{shared}: {shares["prompt"]}. Advantages '
        'leave it out',
        f'of the variance within groups the first noise decides {shares["noise"]}, the trained '
        f'transitions {shares["trained"]}, noise of the reward {shares["reward"]}',
    ]


def _transitions(d: dict) -> Table:
    rank = d['rank_correlation']
    ranks = [f'rank, n = {n or "t"}' for n in rank]
    head = ['transition', 'noise', 'calibrated', 'decides', *ranks, 'gains up / down']
    rows = [
        [
            f'{k}' if on else f'{k}, not trained',
            f'{d["noise_levels"][k]:.3g}',
            f'{d["calibrated_once"][k]:.3g}',
            str(d['decided']['steps'][k]),
            *(str(rank[n][k]) for n in rank),
            f'{d["gains"]["positive"][k]} / {d["gains"]["negative"][k]}',
        ]
        for k, on in enumerate(d['trained'])
    ]
    return head, rows


def _of_columns(d: dict) -> list[str]:
    """What the columns of the transitions hold."""
    below = ', '.join(f'{n}: {lack}' for n, lack in d['rank_below_full'].items())
    kept = d['cheapest_completion']
    told = (
        f'the smallest n whose interval ends at most {LACKS:g} below is {kept}'
        if kept
        else f'of none of these does the interval end at most {LACKS:g} below'
    )
    found = [
        'calibrated: the noise after one step of calibration by this recipe, z = '
        f'{d["calibration_z"]:g}, from these gains of completions by all steps',
        'rank: correlation within a group of the rewards of completions, by n steps (t: all that '
        'are left), with those of the final images',
    ]
    lacking = (
        f'on average over the trained states it lies below that of n = t by, n {below}; {told}'
    )
    return [*found, lacking] if below else found


def _credits(d: dict) -> Table:
    head = ['credit', 'signal', 'NFE', 'images', 'signal / NFE', 'signal / image']
    rows = []
    for row in d['credits']:
        signal, cost = d['signal'][row['credit']], row['cost']
        own = ' (this recipe)' if row['credit'] == d['own'] else ''
        rows.append(
            [
                row['credit'] + own,
                str(signal),
                f'{cost["nfe"]:g}',
                f'{cost["images"]:.4g}',
                _number(signal.value / cost['nfe']),
                _number(signal.value / cost['images']),
                str(Interval(row['price'], row['low'], row['high'])),
            ]
        )
    return [*head, 'price'], rows


def _of_steps(d: dict, what: str, intervals: bool = True) -> Table:
    on = [k for k, trained in enumerate(d['trained']) if trained]
    told = str if intervals else lambda part: _number(part.value)
    rows = [[name, *(told(parts[k]) for k in on)] for name, parts in d[what].items()]
    return ['credit', *map(str, on)], rows


def _of_branches(d: dict) -> list[str]:
    cost = d['branches']
    if cost is None:
        return []
    return [
        f'branches from every trained step (plan.kind=branch): {cost["nfe"]:.4g} NFE, '
        f'{cost["images"]:.4g} images a sample; their signal is not measured, and in theory at '
        f'least that of dense credit, {d["signal"]["dense"]}'
    ]


def _of_run(d: dict) -> list[str]:
    run, speed = d['run'], d['speed']
    phases = ', '.join(f'{name} {seconds:.3g} s' for name, seconds in run['phases'].items())
    memory = (
        'peak memory: this device keeps no count'
        if d['peak_gib'] is None
        else f'peak memory of the first device in sampling, decoding and rewards, without an '
        f'update: {d["peak_gib"]:.1f} GiB'
    )
    guard = ''
    if run['guarded']:
        each = f'at most {run["guard"]:.3g} s'  # the start may have no KL
        guard = f', and one of the guard {each}, of which it has {run["guarded"]}'
    return [
        f'measured: a network evaluation {speed["network_s"] / max(speed["nfe"], 1):.2g} s, '
        f'decoding and scoring an image {speed["image_s"] / max(speed["images"], 1):.2g} s',
        f'an iteration of {run["samples"]} samples: {phases} (the update is an estimate); an '
        f'evaluation {run["evaluation"]:.3g} s, of which a run has {run["evaluations"]}{guard}',
        f'a run of {run["iterations"]} iterations: {run["nfe"]:.3g} network evaluations, '
        f'{run["images"]:.3g} scored images, about {run["hours"]:.2g} hours, '
        f'{run["device_hours"]:.2g} device hours; not counted: {", ".join(run["uncounted"])}',
        memory,
    ]


def _pictures(prompts: Sequence[str], record: Record) -> list[str]:
    figures = []
    for i, prompt in enumerate(prompts):
        for what, shown in (
            ('group', 'the best and the worst of its group'),
            ('path', 'completions along one trajectory'),
        ):
            file = record.picture(i, what)
            if file.exists():
                figures.append(html.picture(f'images/{file.name}', *[f'{prompt}: {shown}'] * 2))
    return figures


def _number(x: float) -> str:
    return f'{x:.3g}' if math.isfinite(x) else 'unknown'


def _aligned(table: Table) -> list[str]:
    """The table as lines of text."""
    rows = [table[0], *table[1]]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  '.join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]
