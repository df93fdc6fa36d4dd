"""What a configuration names: the base model, and the policy of a finished or running training
run.
"""

from __future__ import annotations

import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from densegrpo_jax.networks.attention import choose
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.folder import open_pipeline, resolve_folder
from densegrpo_jax.pipelines.released import RELEASED, released_pipeline
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.flat_state import digest, flatten
from densegrpo_jax.runtime.sharding import shardings, with_shardings
from densegrpo_jax.sampling.state import lora_config, optimiser, state_shapes


def network_options(config, mesh: Mesh) -> dict:
    """What `config` says about the networks besides their shapes: options of
    `pipelines.folder.build_pipeline`.
    """
    m, dtype = config.model, jnp.dtype(config.model.dtype)
    attend = choose(m.attention, mesh, dtype)
    return dict(
        text_length=m.t5_length,
        lora=lora_config(config),
        scan=m.scan,
        remat=m.remat,
        dtype=dtype,
        attend=attend,
    )


def open_base(config, mesh: Mesh) -> tuple[pathlib.Path, Pipeline]:
    """The folder that `config.model` names and its pipeline, with room for what `config` trains; no
    weight is read.
    """
    options, folder = network_options(config, mesh), resolve_folder(config.model.path)
    return folder, open_pipeline(folder, **options)


def open_shapes(config, mesh: Mesh) -> Pipeline:
    """The pipeline that `config.model` names, for what needs no weights: a released model's is
    known without its files.
    """
    options, name = network_options(config, mesh), config.model.path
    return (
        released_pipeline(name, **options)
        if name in RELEASED
        else open_pipeline(resolve_folder(name), **options)
    )


def find_step(workdir: pathlib.Path, which: str) -> int:
    """The step of a run's checkpoint, see `load_policy`; reads none."""
    with Checkpoints(pathlib.Path(workdir) / 'checkpoints', read_only=True) as checkpoints:
        return _step(checkpoints, which)


def load_policy(
    pipeline: Pipeline, config, mesh: Mesh, workdir: pathlib.Path, which: str = 'best'
) -> tuple[dict, int]:
    """The moving average of the policy from a run's checkpoints.

    Args:
      workdir: of the run.
      which: 'best' (by the score of its evaluations), 'latest', or a step number.

    Returns:
      (policy, step): a LoRA collection or, of a run that trains all weights, the transformer's.

    Raises:
      FileNotFoundError: no such run or checkpoint.
      ValueError: `which` is none of these; the policy does not fit the configuration.
    """
    with Checkpoints(pathlib.Path(workdir) / 'checkpoints', read_only=True) as checkpoints:
        step = _step(checkpoints, which)
        shapes = state_shapes(pipeline, optimiser(config)).ema
        abstract = {'ema': with_shardings(shapes, shardings(shapes, mesh))}
        return checkpoints.restore(step, abstract, partial=True).state['ema'], step


def identity(policy: dict | None) -> str:
    """A short hash of a policy's weights; 'base' where there are none."""
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
    step = named[which]() if which in named else int(which)
    if step is None or step not in checkpoints.steps():
        raise FileNotFoundError(
            f'no checkpoint {which!r} in {checkpoints.directory}; there are the steps '
            f'{checkpoints.steps()}'
        )
    return step
