"""The results of an evaluation so far, on disk: a stopped evaluation continues, and results of
other settings are not mixed in.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np
from absl import logging
from PIL import Image

from densegrpo_jax.config import identity
from densegrpo_jax.runtime.files import move_images, remove_files
from densegrpo_jax.runtime.images import save
from densegrpo_jax.runtime.journal import Journal, rows_left
from densegrpo_jax.runtime.trees import Difference, json_value

FILE = 'scores.jsonl'
FOLDERS = ('images', 'text')  # of an evaluation
FORMS = (  # of the lines
    {'settings': dict},
    {'policy': str, 'set': str, 'prompt': int, 'scores': {...: float | None}},
)


class Record:
    """Scores by (policy, prompt set, prompt) in FOLDER/scores.jsonl, one line each, and the first
    images in FOLDER/images.

    The first line holds the settings; where changed code was accepted, a later line holds those
    from there on, and the scores above it count no more. A line that a stopped process left
    incomplete is dropped.

    Args:
      folder: created if absent.
      settings: JSON values, everything that the scores depend on except the policy.
      restart: forget earlier results, and remove the images that they name.
      way_out: what a message tells to do about results that cannot be used.
      differences: of two settings, as `identity.differences`. What it leaves out is accepted; the
        file then tells the new settings too, and everything is scored anew.

    Raises:
      ValueError: the folder holds scores of other settings, the message names the keys that differ;
        or they are damaged.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        settings: Mapping,
        *,
        restart: bool = False,
        way_out: str = 'name another folder with --out, or forget them with --restart',
        differences: Callable[[str, Mapping, Mapping], list[Difference]] = identity.differences,
    ):
        self._images, file = folder / 'images', folder / FILE
        self._scores: dict[tuple[str, str, int], dict[str, float]] = {}
        old = folder / 'pictures'  # of earlier versions
        folder.mkdir(parents=True, exist_ok=True)
        if restart:
            rows = rows_left(file, FORMS[1])
            names = [_name(row) for row in rows if isinstance(row['prompt'], int)]
            for images in (self._images, old):
                remove_files(images, names)
        settings = json.loads(json.dumps(settings))
        self._journal = Journal(file, restart=restart, forms=FORMS, remedy=way_out)
        if not self._journal.rows:
            self._journal.append({'settings': settings})
        told, rows = {}, []
        for row in self._journal.rows:
            if 'settings' in row:
                told, rows = row['settings'], []
            else:
                rows.append(row)
        if found := differences('evaluation', told, settings):
            raise ValueError(
                f'{file} holds scores of other settings ({identity.told(found)}): go back to '
                f'those, or {way_out}'
            )
        if found := identity.differences('evaluation', told, settings):
            logging.warning(
                '%s goes on with other code, and its scores are made anew: %s',
                file,
                identity.told(found),
            )
            self._journal.append({'settings': settings})
            rows = []
        move_images(old, self._images, map(_name, rows))
        for row in rows:
            scores = {
                name: math.nan if value is None else value for name, value in row['scores'].items()
            }
            self._scores.setdefault((row['policy'], row['set'], row['prompt']), {}).update(scores)

    def get(self, policy: str, prompt_set: str, prompt: int) -> dict[str, float]:
        """name -> score of a prompt, NaN if it could not be scored; empty if not yet tried."""
        return self._scores.get((policy, prompt_set, prompt), {})

    def put(
        self,
        policy: str,
        prompt_set: str,
        prompt: int,
        scores: Mapping[str, float],
        image: np.ndarray | None = None,
    ) -> None:
        """Stores (more) scores of a prompt, and its image."""
        if image is not None:  # first: a prompt with scores has its image
            save(self._images / _named(policy, prompt_set, prompt), image)
        self._scores.setdefault((policy, prompt_set, prompt), {}).update(scores)
        values = json_value(scores)
        self._journal.append(
            {'policy': policy, 'set': prompt_set, 'prompt': prompt, 'scores': values}
        )

    def image(self, policy: str, prompt_set: str, prompt: int) -> np.ndarray | None:
        """The stored image, uint8 [H, W, 3]; None if there is none."""
        path = self._images / _named(policy, prompt_set, prompt)
        return np.asarray(Image.open(path).convert('RGB')) if path.exists() else None


def _named(policy: str, prompt_set: str, prompt: int) -> str:
    """The image's name in the folder of images."""
    folder = re.sub(r'[^\w.-]', '_', policy)
    return f'{folder}/{prompt_set}_{prompt:05d}.png'


def _name(row: Mapping) -> str:
    policy, prompt_set, prompt = (row[key] for key in ('policy', 'set', 'prompt'))
    return _named(str(policy), str(prompt_set).replace('/', '_'), int(prompt))
