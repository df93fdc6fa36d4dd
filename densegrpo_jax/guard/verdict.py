"""The guard's verdict as a page: which unseen scores have fallen, and pictures of the same prompts
and noise before and now.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from densegrpo_jax.evaluation.evaluator import Evaluation
from densegrpo_jax.guard.falls import Change
from densegrpo_jax.runtime import html
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.images import save_grid


def write_verdict(
    folder: pathlib.Path,
    step: int,
    config,
    trained: Mapping[str, Change],
    unseen: Mapping[str, Change],
    down: Sequence[str],
    action: str,
    start: Evaluation,
    now: Evaluation,
    comparisons: int,
) -> pathlib.Path:
    """Writes FOLDER/verdict_000020.html and its pictures; returns the page's path.

    Args:
      trained, unseen: score -> its change; of those in `down` the unseen ones have fallen.
      action: what the guard does, or ''.
      comparisons: by which guard.level is divided.
    """
    g, stem = config.guard, f'verdict_{step:06d}'
    picture = folder / f'{stem}.png'
    _pictures(picture, start, now, down, g.pairs)
    rows = [_row(name, c, 'fallen' if name in down else '') for name, c in unseen.items()]
    rows += [_row(name, c, 'trained') for name, c in trained.items()]
    bound = g.level / comparisons
    shown = min(len(start.images), len(now.images))
    each = "Each prompt's picture" if now.group == 1 else f'All {now.group} pictures of each prompt'
    parts = [
        html.text('p', config.label),
        html.text('p', f'{", ".join(down)} fell below the start. {action}'.strip()),
        html.table(('score', 'at the start', 'now', 'change', 'p', 'prompts', ''), rows),
        html.text(
            'p',
            'p: of a paired one-sided test over the prompts that have the score at the start and '
            "now, the larger p of Student's t and of Hall's for skew. Fallen: p below "
            f'{bound:.2g}, which is guard.level={g.level:g} divided by the comparisons of the '
            'whole run.',
        ),
        html.text('h2', f'Of {shown} prompts, those whose unseen scores lost most'),
        html.text('p', f'{each}, left at the start, right now, from the same noise.'),
        html.picture(picture.name, f'Pictures before and after {step} updates'),
    ]
    page = folder / f'{stem}.html'
    replace_file(page, html.page(f'Unseen scores after {step} updates', parts))
    return page


def _row(name: str, c: Change, note: str) -> tuple[str, ...]:
    p = '' if math.isnan(c.p) else f'{c.p:.2g}'
    change = f'{c.change:+.4f} ± {c.error:.4f}'
    return name, f'{c.mean - c.change:.4f}', f'{c.mean:.4f}', change, p, str(c.prompts), note


def _pictures(
    path: pathlib.Path, start: Evaluation, now: Evaluation, down: Sequence[str], pairs: int
) -> None:
    """Pairs of the shown prompts that lost most, in units of each fallen score's spread."""
    shown = min(len(start.images), len(now.images))
    lost = np.zeros(shown)
    for name in down:
        d = (now.scores[name] - start.scores[name])[:shown]
        lost += np.nan_to_num(d / (np.nanstd(start.scores[name]) or 1))
    worst = np.argsort(lost, kind='stable')[: min(pairs, shown)]
    images, captions = [], []
    for i in worst:
        for when, of in (('start', start), ('now', now)):
            images.append(of.images[i])
            scores = ' '.join(f'{name} {of.scores[name][i]:.2f}' for name in down)
            captions.append(f'{when}: {scores} {now.prompts[i]}')
    width = images[0].shape[1]
    columns, wide = (4, 288) if now.group == 1 and width < 300 else (2, 576)
    save_grid(
        path, np.stack(images), columns=columns, scale=max(1, wide // width), captions=captions
    )
