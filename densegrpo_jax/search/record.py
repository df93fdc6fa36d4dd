"""The results of a search: one line per prompt in OUT/search.jsonl, images, and a table."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from densegrpo_jax.config import identity
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.images import save, save_grid
from densegrpo_jax.runtime.journal import Journal
from densegrpo_jax.runtime.markdown import table
from densegrpo_jax.runtime.trees import json_value
from densegrpo_jax.search.loop import Event

FILE, SUMMARY = 'search.jsonl', 'summary.md'
FILES, FOLDERS = (FILE, SUMMARY), ('images', 'text')  # what a search writes
IMAGES = 'images'
COLUMNS = ('base', 'first', 'drawn', 'final', 'best')
_NUMBERS = ('nfe', 'gradients', 'images', 'seconds')
ROW = {  # of a finished prompt
    'prompt': int,
    **dict.fromkeys(COLUMNS, {...: float | None}),
    **dict.fromkeys(_NUMBERS, float),
    'diversity': float | None,
}
FORMS = ({'settings': dict}, {'spread': float}, ROW)  # of the lines


class Results:
    """OUT/search.jsonl: the settings, then one line for every finished prompt. A line that a
    stopped process left incomplete is dropped.

    Args:
      settings: JSON values that the results depend on.
      restart: forget earlier results.

    Raises:
      ValueError: the folder holds results of other settings.
    """

    def __init__(self, folder: pathlib.Path, settings: Mapping, *, restart: bool = False):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(folder / FILE, restart=restart, forms=FORMS)
        settings = json.loads(json.dumps(settings))
        self.prompts: dict[int, dict] = {}
        self.spread: float | None = None
        if not self._journal.rows:
            self._journal.append({'settings': settings})
        first, *rows = self._journal.rows
        if found := identity.differences('search', first.get('settings', {}), settings):
            raise ValueError(
                f'{folder / FILE} holds a search of other settings ({identity.told(found)}). '
                'Name another folder with --out, or forget it with --restart'
            )
        for row in rows:
            if 'spread' in row:
                self.spread = row['spread']
            else:
                self.prompts[row['prompt']] = row

    def keep_spread(self, spread: float) -> None:
        """Stores the unit of temperatures."""
        self.spread = spread
        self._journal.append({'spread': spread})

    def put(self, row: dict) -> None:
        """Stores the result for `row['prompt']`."""
        self._journal.append(row)
        self.prompts[row['prompt']] = self._journal.rows[-1]

    def write_summary(self, title: str) -> None:
        """OUT/summary.md: means over prompts with their standard errors."""
        rows = [self.prompts[i] for i in sorted(self.prompts)]
        body = []
        names = list(dict.fromkeys(name for row in rows for name in row['best']))
        for name in names:
            cells = (_mean([row[c].get(name) for row in rows]) for c in COLUMNS)
            body.append((f'`{name}`', *cells))
        other = (
            ('diversity of the final set', _mean([row['diversity'] for row in rows])),
            ('network evaluations a prompt', _mean([row['nfe'] for row in rows])),
            ('of these with gradient', _mean([row['gradients'] for row in rows])),
            ('images scored a prompt', _mean([row['images'] for row in rows])),
            ('seconds a prompt', _mean([row['seconds'] for row in rows])),
        )
        text = f'# {title}\n\n{len(rows)} prompts; means and standard errors.\n\n'
        text += table(('score', *COLUMNS), body) + '\n\n' + table(('', 'mean'), other) + '\n'
        replace_file(self.folder / SUMMARY, text)


class Tracker:
    """Follows the searches of P prompts: every candidate's score, and the best sample so far.

    Args:
      steps: T; only samples, not predictions, can be the best.
    """

    def __init__(self, prompts: int, steps: int):
        self._steps = steps
        self.candidates: list[list] = [[] for _ in range(prompts)]  # [iteration, k, slot, nfe, r]
        self.curves: list[list] = [[] for _ in range(prompts)]  # [nfe, reward, image, scores]
        self.first: list[dict | None] = [None] * prompts

    def __call__(self, event: Event) -> None:
        reward = event.scored.reward
        for p, curve in enumerate(self.curves):
            self.candidates[p] += [
                [event.iteration, event.k, int(slot), event.evaluations, json_value(r)]
                for slot, r in zip(event.slots, reward[p])
            ]
            if event.k < self._steps:
                continue
            values = {name: json_value(v[p, 0]) for name, v in event.scored.values.items()}
            self.first[p] = self.first[p] or values
            i = int(np.argmax(reward[p]))
            if np.isfinite(reward[p, i]) and (not curve or reward[p, i] > curve[-1][1]):
                values = {name: json_value(v[p, i]) for name, v in event.scored.values.items()}
                image = event.scored.images[p, i].copy()
                curve.append((event.evaluations, float(reward[p, i]), image, values))

    def best(self) -> float:
        """Mean over prompts of the best reward so far; NaN before the first."""
        found = [curve[-1][1] for curve in self.curves if curve]
        return float(np.mean(found)) if found else float('nan')


def draw(
    folder: pathlib.Path,
    index: int,
    base: tuple[np.ndarray, float | None],
    curve: Sequence,
    final: np.ndarray,
    scores: Sequence[float],
    budget: int,
) -> None:
    """OUT/images/INDEX.png: the base's image, the best so far at four points of the budget, and
    the final set; and INDEX_best.png, the best alone.
    """
    shown = lambda value: '-' if value is None else f'{value:.3f}'
    images, captions = [base[0]], [f'base {shown(base[1])}']
    for share in (1, 2, 3, 4):
        spent = budget * share // 4
        reached = [point for point in curve if point[0] <= spent]
        if reached:
            images.append(reached[-1][2])
            captions.append(f'best at {spent}: {shown(reached[-1][1])}')
    images += list(final)
    captions += [f'final {shown(json_value(s))}' for s in scores]
    width, (sheet, best) = images[0].shape[1], _images(index)
    save_grid(
        folder / IMAGES / sheet,
        np.stack(images),
        columns=max(1, min(5, 1536 // width)),
        scale=max(1, 192 // width),
        captions=captions,
    )
    save(folder / IMAGES / best, curve[-1][2])


def _images(index: int) -> tuple[str, str]:
    return f'{index:05d}.png', f'{index:05d}_best.png'


def _mean(values: Sequence) -> str:
    values = np.array([v for v in values if v is not None], float)
    if not len(values):
        return '-'
    if len(values) == 1:
        return f'{values[0]:.4g}'
    return f'{values.mean():.4g} ± {values.std(ddof=1) / np.sqrt(len(values)):.2g}'
