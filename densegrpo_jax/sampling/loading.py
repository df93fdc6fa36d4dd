"""The policy of a training run, finished or running, from its checkpoints."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping

import jax
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.config import identity
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.flat_state import digest, flatten
from densegrpo_jax.runtime.sharding import shardings, with_shardings
from densegrpo_jax.runtime.trees import Difference
from densegrpo_jax.sampling.state import optimiser, state_shapes


def find_step(workdir: pathlib.Path, which: str) -> int:
    """The step of a run's checkpoint, see `load_policy`; reads no arrays."""
    with Checkpoints(pathlib.Path(workdir) / 'checkpoints', read_only=True) as checkpoints:
        return _step(checkpoints, which)


def load_policy(
    pipeline: Pipeline,
    config,
    mesh: Mesh,
    workdir: pathlib.Path,
    which: str = 'best',
    base: str | None = None,
) -> tuple[dict, int]:
    """The moving average of the policy from a run's checkpoints.

    Args:
      workdir: of the run.
      which: 'best' (by the score of its evaluations), 'latest', or a step number.
      base: the digest of the weights that it is used with (`session.base_digest`), if they are at
        hand: a warning says if they are not those that it was trained on.

    Returns:
      (policy, step): a LoRA collection or, if the run trains all weights, the transformer's
      parameters.

    Raises:
      FileNotFoundError: no such run or checkpoint.
      ValueError: `which` is none of these, the policy does not fit the configuration, or the
        checkpoint is damaged.
    """
    with _open(config, workdir) as checkpoints:
        step = _step(checkpoints, which)
        shapes = state_shapes(pipeline, optimiser(config, pipeline.transformer)).ema
        placed = shardings(shapes, mesh, pipeline.sharding_rules)
        abstract = {'ema': with_shardings(shapes, placed)}
        _tell_base(checkpoints.check(step, abstract, partial=True), base, workdir)
        return checkpoints.restore(step, abstract, partial=True).state['ema'], step


def check_policy(pipeline: Pipeline, config, workdir: pathlib.Path, which: str = 'best') -> None:
    """Raises the errors of `load_policy` that show without reading an array."""
    with _open(config, workdir) as checkpoints:
        shapes = {'ema': state_shapes(pipeline, optimiser(config, pipeline.transformer)).ema}
        checkpoints.check(_step(checkpoints, which), shapes, partial=True)


def _open(config, workdir: pathlib.Path) -> Checkpoints:
    """Those of a run, whose policy must mean what it means in `config`."""
    return Checkpoints(
        pathlib.Path(workdir) / 'checkpoints',
        read_only=True,
        fingerprint=identity.record('policy', config),
        differences=_differences,
    )


def _differences(old: Mapping, new: Mapping) -> list[Difference]:
    """Of the run's record, which tells more, and ours; if all weights were trained, there are no
    adapters to compare.
    """
    names = [name for name in new if name in old and not (name == 'lora' and new.get('full'))]
    told, ours = ({name: record[name] for name in names} for record in (old, new))
    return identity.differences('policy', told, ours) if told else []


def _tell_base(saved: Mapping, base: str | None, workdir: pathlib.Path) -> None:
    trained_on = saved.get(identity.BASE, base)
    if base is not None and trained_on != base:
        logging.warning(
            'the run in %s was trained on other weights (%s) than those of model.path (%s): its '
            'policy may mean something else here',
            *(workdir, trained_on, base),
        )


def weights_digest(policy: dict | None) -> str:
    """A short hash of a policy's weights; 'base' without a policy."""
    if policy is None:
        return 'base'
    hashes = {
        name: int(value)
        for name, value in jax.device_get(
            {k: digest(leaf) for k, leaf in flatten(policy).items()}
        ).items()
    }
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:12]


def _step(checkpoints: Checkpoints, which: str) -> int:
    named = {'best': checkpoints.best_step, 'latest': checkpoints.latest_step}
    if which not in named and not which.isdigit():
        raise ValueError(
            f"checkpoint {which!r} is unknown: expected 'best', 'latest' or one of the steps "
            f'{checkpoints.steps()}'
        )
    if not checkpoints.steps():
        raise FileNotFoundError(
            f'{checkpoints.directory} holds no checkpoint yet: the run saves its first after '
            'checkpoint.every updates, or when it is stopped after one'
        )
    step = named[which]() if which in named else int(which)
    if step is None or step not in checkpoints.steps():
        raise FileNotFoundError(
            f'no checkpoint {which!r} in {checkpoints.directory}; there are the steps '
            f'{checkpoints.steps()}'
            + (
                ', and none of them has an evaluation (eval.every) that may be the best: name one, '
                "or 'latest'"
                if which == 'best'
                else '. A run that goes on removes earlier ones, except those of checkpoint.pin'
            )
        )
    return step
