"""Groups on record: one prompt's samples as a table of images, with what each image scored and what
advantage each transition got. The pages of `report` and `watch` show them.

WORKDIR/groups/step_000020_0.json describes group 0 of the samples that update 20 trained on, and
step_000020_0.webp is its table: a row per sample, a column per scored image.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from densegrpo_jax.config.method import loss_of
from densegrpo_jax.core.losses import CLEAN
from densegrpo_jax.core.rollout_plan import RolloutPlan
from densegrpo_jax.core.transitions import OUTCOME
from densegrpo_jax.runtime.files import replace_file, replacing
from densegrpo_jax.runtime.mesh import replicated
from densegrpo_jax.runtime.trees import json_value
from densegrpo_jax.sampling.session import Session
from densegrpo_jax.training.rounds import Round

FOLDER = 'groups'
SIDE = 256  # pixels of the longer side of an image; larger ones are shrunk
SHEET = 16_000  # pixels of a table's longer side; WebP ends at 16,383


def group_due(config, step: int) -> bool:
    """Whether the groups of update number `step` go on record: of the first and the last one, and
    of those before an evaluation.
    """
    due = step == 1 or step == config.iterations or step % config.eval.every == 0
    return bool(config.eval.groups) and due


def record_groups(
    session: Session,
    workdir: pathlib.Path,
    step: int,
    found: Round,
    scores: Mapping[str, np.ndarray],
    valid: np.ndarray,
    record,
) -> None:
    """Writes the groups of update number `step` whose images the primary process has kept. All
    processes call it.

    Args:
      scores: name -> float32 [S, B]; valid: bool [S, B].
      record: of the credit, with advantages and mask of [K * B] transitions or [B] clean samples.
    """
    config, plan = session.config, found.rollouts[0].plan
    trained = []
    if loss_of(config).batch != CLEAN:
        of_plan = np.flatnonzero(plan.transitions.trained)
        trained = (of_plan if found.chosen is None else np.asarray(found.chosen)).tolist()
    std = found.rollouts[0].std[:, 0]
    advantage, mask, std = _everywhere(session.mesh)(record.advantage[OUTCOME], record.mask, std)
    advantages = np.where(np.asarray(mask), np.asarray(advantage), np.nan)
    if session.hosts.primary:
        write_groups(
            workdir / FOLDER,
            step,
            plan,
            [batch.kept for batch in found.pending if batch.kept is not None],
            [prompt.text for prompt in found.prompts],
            found.group_ids,
            scores,
            valid,
            advantages.reshape(-1, len(found.group_ids)),
            trained,
            np.asarray(std),
        )


@functools.cache  # else every call would compile it anew
def _everywhere(mesh: Mesh):
    """Jitted: arrays -> the same, whole in every process."""
    return jax.jit(lambda *arrays: arrays, out_shardings=replicated(mesh))


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
