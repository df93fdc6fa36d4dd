"""The guard's verdict as a page: which unseen scores have fallen, and pictures of the same prompts
and noise before and now.
"""

from __future__ import annotations

import html
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from densegrpo_jax.evaluation.evaluator import Evaluation
from densegrpo_jax.evaluation.falls import Change
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.images import save_grid

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; }}
body {{ max-width: 1240px; margin: 1rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: right; padding: 0.2rem 0.8rem; border-bottom: 1px solid; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ max-width: 100%; }}
</style>
<h1>{title}</h1>
<p>{label}</p>
<p>{verdict}</p>
<table>
<tr><th>score<th>at the start<th>now<th>change<th>p<th>
{rows}
</table>
<p>p: of a paired one-sided t test over {count} prompts. Fallen: p below {bound:.2g}, which is
guard.level={level:g} divided by the comparisons of the whole run.</p>
<h2>Of {shown} prompts, those whose unseen scores lost most</h2>
<p>The first of each prompt's pictures, left at the start, right now, from the same noise.</p>
<img src="{picture}" alt="Pictures before and after {step} updates">
</html>
"""


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
    text = _PAGE.format(
        title=f'Unseen scores after {step} updates',
        label=html.escape(config.label),
        verdict=html.escape(f'{", ".join(down)} fell below the start. {action}'.strip()),
        rows='\n'.join(rows),
        count=len(next(iter(now.scores.values()))),
        bound=g.level / comparisons,
        level=g.level,
        shown=min(len(start.images), len(now.images)),
        picture=picture.name,
        step=step,
    )
    page = folder / f'{stem}.html'
    replace_file(page, text)
    return page


def _row(name: str, c: Change, note: str) -> str:
    p = '' if math.isnan(c.p) else f'{c.p:.2g}'
    return (
        f'<tr><td>{html.escape(name)}<td>{c.mean - c.change:.4f}<td>{c.mean:.4f}'
        f'<td>{c.change:+.4f} ± {c.error:.4f}<td>{p}<td>{note}'
    )


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
    columns = 4 if width < 300 else 2
    save_grid(
        path, np.stack(images), columns=columns, scale=max(1, 288 // width), captions=captions
    )
