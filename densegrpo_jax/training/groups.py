"""Which groups of samples go on record, and what of an iteration is written of them."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from densegrpo_jax.config.method import loss_of
from densegrpo_jax.core.losses import CLEAN
from densegrpo_jax.core.transitions import OUTCOME
from densegrpo_jax.runtime.mesh import replicated
from densegrpo_jax.sampling.session import Session
from densegrpo_jax.training.rounds import Round
from densegrpo_jax.viewing.groups import FOLDER, write_groups


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
