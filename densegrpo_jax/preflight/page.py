"""The preflight's results: lines for the log, and a page."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from densegrpo_jax.preflight.findings import NO_ADVICE
from densegrpo_jax.preflight.record import Record
from densegrpo_jax.preflight.signal import Interval
from densegrpo_jax.runtime import html
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.trees import json_value

FILE, PAGE = 'preflight.json', 'index.html'


def write(
    out: pathlib.Path, document: dict[str, Any], prompts: Sequence[str], record: Record
) -> list[pathlib.Path]:
    """Writes the document and the page; returns their paths."""
    replace_file(out / FILE, json.dumps(json_value(document), indent=2) + '\n')
    replace_file(out / PAGE, page(document, prompts, record))
    return [out / FILE, out / PAGE]


def lines(document: dict[str, Any]) -> list[str]:
    """What the command prints."""
    d, reward = document, document['reward']
    shares = d['decided']
    found = [
        f'{d["prompts"]} prompts x {d["group"]} samples: reward {reward["mean"]:.4f}, spread '
        f'within groups {reward["deviation"]}',
        f'groups without spread {reward["zero"]:.0%}, pairs with equal rewards '
        f'{reward["ties"]:.0%}, samples with a score {reward["valid"]:.0%}',
        f'the reward is decided by the prompt {shares["prompt"]}, by the first noise '
        f'{shares["noise"]}, by the transitions {", ".join(map(str, shares["steps"]))}, by noise '
        f'of the reward {shares["reward"]}',
        'credit       signal                NFE  images   price (seconds by signal)',
    ]
    for row in d['credits']:
        signal, cost = d['signal'][row['credit']], row['cost']
        own = '  <- this recipe' if row['credit'] == d['own'] else ''
        price = Interval(row['price'], row['low'], row['high'])
        found.append(
            f'{row["credit"]:12s} {str(signal):20s} {cost["nfe"]:5g} {cost["images"]:7.4g}   '
            f'{price}{own}'
        )
    run = d['run']
    found.append(
        f'a run of this recipe: {run["nfe"]:.3g} network evaluations, {run["images"]:.3g} scored '
        f'images, about {run["seconds_per_iteration"]:.1f} s an iteration, {run["hours"]:.2g} '
        f'hours, {run["device_hours"]:.2g} device hours at the speed measured here'
    )
    if d['peak_gib'] is not None:
        found.append(f'peak memory of the first device: {d["peak_gib"]:.1f} GiB')
    means = ', '.join(f'{name} {value:.4f}' for name, value in reward['scores'].items())
    found.append(
        f'mean scores: {means}; the best of a group is {reward["best"]:.4f} above its mean'
    )
    found += [f'{"STOP: " if a["stop"] else "- "}{a["reason"]}' for a in d['findings']]
    return [*found, NO_ADVICE]


def page(document: dict[str, Any], prompts: Sequence[str], record: Record) -> str:
    """The page as HTML, without any script."""
    d = document
    shares = d['decided']
    steps = len(shares['steps'])
    number = lambda x: '' if x is None or not math.isfinite(x) else f'{x:.3g}'
    of_states = [
        (
            k,
            f'{d["noise_levels"][k]:.3g}',
            shares['steps'][k],
            *(number(rho[k]) for rho in d['rank_correlation'].values()),
            f'{d["gains"]["positive"][k]} / {d["gains"]["negative"][k]}',
        )
        for k in range(steps)
    ]
    names = [f'rank of completion, steps: {n or "all"}' for n in d['rank_correlation']]
    credits = [
        (
            row['credit'] + (' (this recipe)' if row['credit'] == d['own'] else ''),
            d['signal'][row['credit']],
            f'{row["cost"]["nfe"]:g}',
            f'{row["cost"]["images"]:.4g}',
            Interval(row['price'], row['low'], row['high']),
        )
        for row in d['credits']
    ]
    figures = []
    for i, prompt in enumerate(prompts):
        for what, shown in (
            ('group', 'the best and the worst of its group'),
            ('path', 'completions along one trajectory'),
        ):
            file = record.picture(i, what)
            if file.exists():
                figures.append(html.picture(f'images/{file.name}', *[f'{prompt}: {shown}'] * 2))
    found = [('Stop. ' if a['stop'] else '') + a['reason'] for a in d['findings']]
    head = lines(d)
    return html.page(
        f'Preflight: {d["label"]}',
        [
            *(html.text('p', line) for line in head[:2]),
            html.text('h2', 'Findings'),
            '<ul>' + '\n'.join(html.text('li', line) for line in found) + '</ul>',
            html.text('p', NO_ADVICE),
            html.text('h2', 'Credits'),
            html.text(
                'p',
                'Signal: the squared correlation of a credit with what its transition changes. '
                'Price: seconds of a sample by signal, in those of this recipe; a rule of thumb '
                'for the cost of a gradient of equal precision.',
            ),
            html.table(('credit', 'signal', 'NFE', 'images', 'price'), credits),
            html.text('h2', 'What decides the reward'),
            html.text(
                'p',
                f'The prompt {shares["prompt"]}, the first noise {shares["noise"]}, and the '
                'transitions:',
            ),
            html.table(
                ('transition', 'noise level', 'share', *names, 'gains up / down'), of_states
            ),
            html.text('h2', 'Pictures'),
            *figures,
        ],
    )
