"""Groups on record: one prompt's samples as a table of images, with what each image scored and what
advantage each transition got. The pages of `report` and `watch` show them.

WORKDIR/groups/step_000020_0.json describes group 0 of the samples that update 20 trained on, and
step_000020_0.webp is its table: a row per sample, a column per scored image.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from densegrpo_jax.core.rollout_plan import RolloutPlan
from densegrpo_jax.runtime.files import replace_file, replacing
from densegrpo_jax.runtime.trees import json_value

FOLDER = 'groups'  # in a run's folder
SIDE = 256  # pixels of the longer side of an image; larger ones are shrunk
SHEET = 16_000  # pixels of a table's longer side; WebP ends at 16,383


def write_groups(
    folder: pathlib.Path,
    step: int,
    plan: RolloutPlan,
    kept: Sequence[tuple[np.ndarray, np.ndarray]],
    prompts: Sequence[str],
    group_ids: np.ndarray,
    scores: Mapping[str, np.ndarray],
    valid: np.ndarray,
    advantages: np.ndarray,
    trained: Sequence[int],
    std: np.ndarray,
) -> list[pathlib.Path]:
    """Writes groups into `folder`.

    Args:
      kept: pairs of samples, int [n] among the B of the iteration, and images uint8
        [S, n, H, W, 3].
      prompts: of the groups, in their order.
      group_ids: int [B] group of every sample.
      scores: name -> [S, B]; valid: bool [S, B].
      advantages: [K, B] of the transitions `trained` (indices among the plan's N), or [1, B] of
        whole samples with `trained` empty.
      std: [N] of the transitions' noise.

    Returns:
      The description of each group written.
    """
    made = []
    folder.mkdir(parents=True, exist_ok=True)
    for places, images in kept:
        for group in np.unique(group_ids[places]):
            here = np.flatnonzero(group_ids[places] == group)
            name = f'step_{step:06d}_{group}'
            side = min(SIDE, SHEET // max(len(here), len(images)))
            cells = [[shrunk(image, side) for image in images[:, i]] for i in here]
            height, width = cells[0][0].shape[:2]
            table = np.concatenate([np.concatenate(row, 1) for row in cells], 0)
            of_sample = lambda b: {
                'scores': {
                    n: json_value(np.where(valid[:, b], of[:, b], np.nan), 6)
                    for n, of in scores.items()
                },
                'advantages': json_value(advantages[:, b], 6),
            }
            described = {
                'step': step,
                'group': int(group),
                'prompt': prompts[group],
                'image': f'{name}.webp',
                'cell': [width, height],
                'columns': columns(plan),
                'transitions': _transitions(plan, std, trained),
                'samples': [of_sample(b) for b in places[here]],
            }
            with replacing(folder / f'{name}.webp') as file:
                unchanged = max(images.shape[2:4]) <= side
                Image.fromarray(table).save(file, format='WEBP', lossless=unchanged, quality=85)
            path = folder / f'{name}.json'
            replace_file(path, json.dumps(described, allow_nan=False) + '\n')
            made.append(path)
    return made


def columns(plan: RolloutPlan) -> list[dict]:
    """For every scored image of a sample, the points of the rollout that have it."""
    points: list[list[dict]] = [[] for _ in plan.completions]
    for point, source in zip(plan.points, plan.sources):
        points[source].append({'kind': point.kind, 'k': point.k})
    return [{'points': of} for of in points]


def shrunk(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 [H, W, 3] with a longer side of at most `side` pixels."""
    height, width, _ = image.shape
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _transitions(plan: RolloutPlan, std: np.ndarray, trained: Sequence[int]) -> list[dict]:
    rows = plan.transitions
    together = plan.together or (1,) * plan.num_steps
    return [
        {
            'k_from': k_from,
            'k_to': k_to,
            'std': round(float(std[n]), 6),
            'row': trained.index(n) if n in trained else None,  # of a sample's advantages
            'together': together[k_from],  # adjacent samples that make it as one node of a tree
        }
        for n, (k_from, k_to) in enumerate(zip(rows.k_from, rows.k_to))
    ]
