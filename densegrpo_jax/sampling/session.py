"""What a command works with, opened once and in one order.

`check` finds out all that names, numbers and the headers of files tell, in seconds; `load` then
encodes the prompts and reads the weights, which may take minutes. Between the two nothing is in
memory that is large, and a command can say what it is about to do.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from densegrpo_jax.config.defaults import validate
from densegrpo_jax.data.prompts import PromptSet, columns
from densegrpo_jax.pipelines.base import Conditioning, Pipeline
from densegrpo_jax.pipelines.folder import check_params, load_params
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.sharding import shardings
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.conditioning import load_prompts, text_conditioning
from densegrpo_jax.sampling.conditioning_cache import TextCache
from densegrpo_jax.sampling.loading import open_base
from densegrpo_jax.sampling.sampler import Schedule, make_schedule
from densegrpo_jax.sampling.state import check_start


@dataclasses.dataclass(frozen=True)
class Checked:
    """A configuration whose parts fit each other; nothing is loaded."""

    config: Any
    mesh: Mesh
    stop: StopRequest
    folder: pathlib.Path  # of the base model
    pipeline: Pipeline  # of it, with room for what `config` trains
    schedule: Schedule | None  # of the rollouts; None where a command makes none
    train: PromptSet | None  # None where a command does not read them, as the two below
    test: PromptSet | None
    reward: CompositeReward | None

    @property
    def hosts(self) -> Hosts:
        """The processes of the run."""
        return self.stop.communicator.hosts


@dataclasses.dataclass(frozen=True)
class Session(Checked):
    """The same with everything that is large."""

    params: dict  # the frozen base: 'transformer', 'vae'
    conditioning: TextCache  # prompts -> their conditioning, of those that were named to `load`
    negative: (
        Conditioning | None
    )  # of the empty prompt, [1, ...]; None: no classifier-free guidance


def check(
    config,
    mesh: Mesh,
    stop: StopRequest | None = None,
    *,
    splits: Sequence[str] = (),
    rollouts: bool = False,
    starts: bool = False,
) -> Checked:
    """Opens a configuration without loading anything.

    Args:
      stop: of the run; None: one that nothing sets, and this process alone.
      splits: prompt sets that are read, of 'train' and 'eval'; with any, the reward is made too and
        asked whether it can score them.
      rollouts: whether there will be some: their schedule is made.
      starts: whether a policy is started (`state.start_state`): the adapter file that it starts
        from is looked at.

    Raises:
      ValueError, FileNotFoundError: settings, a model folder (its weights by the headers of their
        files), the adapter that training starts from, prompts or a reward that cannot be used, or
        not with each other.
    """
    validate(config)
    folder, pipeline = open_base(config, mesh)
    schedule = make_schedule(pipeline, config) if rollouts else None
    prompts = {split: load_prompts(config, split) for split in splits}
    reward = build_reward(config.reward) if prompts else None
    for chosen in prompts.values():
        reward.check(*columns(chosen))
    if 'eval' in prompts and config.eval.best not in reward.names:
        raise ValueError(
            f'eval.best={config.eval.best!r} is no score of this reward; choose one of '
            f'{", ".join(reward.names)}'
        )
    check_params(folder, pipeline, transformer_file=config.model.transformer_file)
    if starts:
        check_start(config, pipeline)
    return Checked(
        config=config,
        mesh=mesh,
        stop=stop or StopRequest(),
        folder=folder,
        pipeline=pipeline,
        schedule=schedule,
        train=prompts.get('train'),
        test=prompts.get('eval'),
        reward=reward,
    )


def load(checked: Checked, texts: Iterable[str], workdir: pathlib.Path | None = None) -> Session:
    """Loads what is large: the prompts' conditioning, whose encoders leave again, and then the
    weights.

    Args:
      texts: the prompts that will be sampled.
      workdir: where conditioning is kept unless `config.text_cache` says; None: in memory.

    Raises:
      Preempted: a stop was requested.
    """
    config, pipeline = checked.config, checked.pipeline
    conditioning = text_conditioning(
        config,
        checked.folder,
        pipeline,
        ['', *texts],
        checked.mesh,
        checked.stop,
        workdir and workdir / 'text',
    )
    return Session(
        **{field.name: getattr(checked, field.name) for field in dataclasses.fields(checked)},
        params=load_weights(checked, ('transformer', 'vae')),
        conditioning=conditioning,
        negative=conditioning(['']) if pipeline.takes_negative(config.model.guidance) else None,
    )


def load_weights(checked: Checked, components: Sequence[str] | None = None) -> dict:
    """Weights of the named components (None: all) of the base, placed on the mesh."""
    m = checked.config.model
    return load_params(
        checked.folder,
        checked.pipeline,
        components,
        dtype=jnp.dtype(m.dtype),
        shardings=lambda tree: shardings(tree, checked.mesh),
        transformer_file=m.transformer_file,
        quantize=m.quantize,
    )
