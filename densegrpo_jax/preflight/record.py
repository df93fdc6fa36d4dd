"""The measured prompts on disk: one line each in OUT/rewards.jsonl, and pictures of the first."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from densegrpo_jax.config import identity
from densegrpo_jax.preflight.measure import Batch, Spent
from densegrpo_jax.preflight.signal import Rewards
from densegrpo_jax.runtime.images import save_grid
from densegrpo_jax.runtime.journal import Journal
from densegrpo_jax.runtime.trees import json_value

FILE = 'rewards.jsonl'
_SCORES = [float | None]  # of a group
FORMS = (  # of the lines
    {'settings': dict},
    {
        'prompt': int,
        **dict.fromkeys(('terminal', 'again'), _SCORES),
        **dict.fromkeys(('twins', 'similarity'), [_SCORES]),
        'completions': {...: [_SCORES]},
        'scores': {...: _SCORES},
        'cost': [float],
        'warm': bool,
    },
)


class Record:
    """The lines of earlier calls, and those that are added.

    Attributes:
      prompts: number of a prompt -> its line, see `row`.

    Args:
      settings: JSON values that the rewards depend on.
      shown: prompts that have pictures, the first ones.

    Raises:
      ValueError: the folder holds a preflight of other settings, or one that is damaged.
    """

    def __init__(self, folder: pathlib.Path, settings: Mapping, shown: int):
        self._folder, self.shown = folder, shown
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(folder / FILE, forms=FORMS, remedy='give another --workdir')
        settings = json.loads(json.dumps(settings))
        if not self._journal.rows:
            self._journal.append({'settings': settings})
        first, *rows = self._journal.rows
        if found := identity.differences('rewards', first.get('settings', {}), settings):
            raise ValueError(
                f'{folder / FILE} holds a preflight of other settings ({identity.told(found)}): '
                'give another --workdir'
            )
        self.prompts: dict[int, dict] = {found['prompt']: found for found in rows}
        try:
            if self.prompts:
                joined(self.prompts)
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f'{folder / FILE} is damaged (its lines have arrays of different sizes): give '
                'another --workdir'
            ) from None

    def put(self, prompt: int, line: Mapping, batch: Batch, place: int) -> None:
        """Stores a prompt's line, and pictures of its group if it is among those shown."""
        if prompt < self.shown and batch.samples is not None and batch.path is not None:
            group_sheet(self.picture(prompt, 'group'), batch, place)
            path_sheet(self.picture(prompt, 'path'), batch, place)
        self._journal.append({'prompt': prompt, **line})
        self.prompts[prompt] = self._journal.rows[-1]

    def picture(self, prompt: int, what: str) -> pathlib.Path:
        """The place of a prompt's picture: 'group' or 'path'."""
        return self._folder / 'images' / f'{what}_{prompt:03d}.png'


def row(batch: Batch, place: int, warm: bool) -> dict[str, Any]:
    """A prompt's rewards as JSON, null where there is none, and its share of the batch's cost.

    warm: nothing was compiled during the batch.
    """
    rewards, count = batch.rewards, batch.rewards.terminal.shape[0]
    return {
        'terminal': _digits(rewards.terminal[place]),
        'again': _digits(rewards.again[place]),
        'twins': _digits(rewards.twins[:, place]),
        'similarity': _digits(rewards.similarity[:, place]),
        'completions': {str(n): _digits(a[:, place]) for n, a in rewards.completions.items()},
        'scores': {name: _digits(v[place]) for name, v in batch.scores.items()},
        'cost': [float(x) / count for x in batch.spent],
        'warm': warm,
    }


def _digits(values: np.ndarray) -> list:
    """As JSON, with the digits that tell every float32 apart."""
    return json_value(np.vectorize(lambda v: float(f'{v:.9g}'), otypes=[float])(values))


def joined(rows: Mapping[int, Mapping]) -> tuple[Rewards, dict[str, np.ndarray], Spent]:
    """(rewards of all prompts in their order, scores [P, G], speed: what the prompts cost, without
    the batch that compiled if there was another).
    """
    lines = [rows[i] for i in sorted(rows)]
    array = lambda values: np.array(_numbers(values), np.float64)
    rewards = Rewards(
        np.stack([array(line['terminal']) for line in lines]),
        np.stack([array(line['again']) for line in lines]),
        np.stack([array(line['twins']) for line in lines], axis=1),
        {
            int(n): np.stack([array(line['completions'][n]) for line in lines], axis=1)
            for n in lines[0]['completions']
        },
        np.stack([array(line['similarity']) for line in lines], axis=1),
    )
    scores = {
        name: np.stack([array(line['scores'][name]) for line in lines])
        for name in lines[0]['scores']
    }
    timed = [line['cost'] for line in lines if line['warm']] or [line['cost'] for line in lines]
    return rewards, scores, Spent(*np.sum(timed, axis=0))


def _numbers(values: list) -> list:
    return [_numbers(v) if isinstance(v, list) else math.nan if v is None else v for v in values]


def group_sheet(path: pathlib.Path, batch: Batch, place: int) -> None:
    """The four best and the four worst of a group."""
    scored = batch.rewards.terminal[place]
    order = [int(i) for i in np.argsort(-scored) if np.isfinite(scored[i])]
    each = min(4, len(order) // 2)
    if not each:
        return
    picked = [*order[:each], *order[-each:]]
    captions = [f'{"best" if j < each else "worst"} {scored[i]:.3f}' for j, i in enumerate(picked)]
    images = batch.samples[place][picked]
    save_grid(path, images, columns=each, scale=_scale(images), captions=captions)


def path_sheet(path: pathlib.Path, batch: Batch, place: int) -> None:
    """Completions along the trajectory of the first sample, and the sample."""
    rewards = batch.rewards
    values = [*rewards.completions[0][:, place, 0], rewards.terminal[place, 0]]
    captions = [f'state {k}: {v:.3f}' for k, v in enumerate(values)]
    images = batch.path[place]
    save_grid(path, images, columns=min(len(images), 7), scale=_scale(images), captions=captions)


def _scale(images: np.ndarray) -> int:
    return max(1, 192 // images.shape[2])
