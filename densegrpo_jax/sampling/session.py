"""The objects that a command works with, opened once and in one order.

`check` checks names, numbers and the headers of files, in seconds; `load` then encodes the prompts
and reads the weights, which may take minutes. Between the two nothing large is in memory, and a
command can say what it is about to do. `check` has two parts, `check_parts` and `check_weights`:
between them is the download of a base that is not on this machine.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from densegrpo_jax.config import identity
from densegrpo_jax.config.method import own_code
from densegrpo_jax.config.reads import REFUSE
from densegrpo_jax.config.schema import KEYS
from densegrpo_jax.config.validation import validate
from densegrpo_jax.data.prompts import PromptSet, columns
from densegrpo_jax.networks.attention import choose
from densegrpo_jax.pipelines.base import Conditioning, Pipeline
from densegrpo_jax.pipelines.folder import (
    check_files,
    check_params,
    files_digest,
    load_params,
    open_pipeline,
    params_digest,
    resolve_folder,
)
from densegrpo_jax.pipelines.released import released, released_pipeline
from densegrpo_jax.rewards.base import Reward
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.rewards.directional import with_direction
from densegrpo_jax.rewards.facts import reward_facts
from densegrpo_jax.rewards.trial import try_own
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.paths import folder_problem
from densegrpo_jax.runtime.sharding import shardings
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.runtime.trees import Difference
from densegrpo_jax.sampling.alike import check_alike
from densegrpo_jax.sampling.conditioning import (
    check_prompts,
    content_hash,
    load_prompts,
    text_conditioning,
)
from densegrpo_jax.sampling.conditioning_cache import TextCache
from densegrpo_jax.sampling.process_reward import ProcessReward, open_process_reward
from densegrpo_jax.sampling.schedule import Schedule, drawing_grid, make_schedule
from densegrpo_jax.sampling.state import (
    check_start,
    lora_config,
    optimiser,
    start_digest,
    start_state,
)

SETS = {'train': 'train', 'test': 'eval'}  # needs of `check` -> splits, whose keys are data.SPLIT


def network_options(config, mesh: Mesh) -> dict:
    """The settings of `config` for the networks, except their shapes: options of
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
        cfg_normalization=m.cfg_normalization,
        cfg_truncation=m.cfg_truncation,
    )


def _with_guidance(config, pipeline: Pipeline) -> Pipeline:
    """The pipeline. Raises ValueError if options of classifier-free guidance are set and there is
    none, or if its scale gives the prompt less than its own weight.
    """
    if pipeline.takes_negative(guidance := config.model.guidance):
        if guidance < 1:
            raise ValueError(
                f'model.guidance={guidance:g}: below 1 the empty prompt replaces the prompt; set 1 '
                'for no guidance, which Diffusers writes as '
                f'guidance_scale={pipeline.diffusers_guidance(1):g}'
            )
        return pipeline
    for name in ('cfg_normalization', 'cfg_truncation'):
        if (value := config.model[name]) != KEYS[f'model.{name}'].default:
            raise ValueError(
                f'model.{name}={value:g} is of classifier-free guidance, and a '
                f'{pipeline.CLASS_NAME} with model.guidance={config.model.guidance:g} has none: '
                'leave it out, or set model.guidance if the model takes it'
            )
    return pipeline


def open_base(config, mesh: Mesh) -> tuple[pathlib.Path, Pipeline]:
    """The folder that `config.model` names and its pipeline, with the adapters that `config`
    trains; neither fetches nor reads weights.
    """
    options = network_options(config, mesh)
    folder = resolve_folder(config.model.path, weights=False)
    return folder, _with_guidance(config, open_pipeline(folder, **options))


def open_shapes(config, mesh: Mesh) -> Pipeline:
    """The pipeline that `config.model` names, for uses without weights: a released model's is known
    without its files.
    """
    options, name = network_options(config, mesh), config.model.path
    pipeline = (
        released_pipeline(name, **options)
        if name in released()
        else open_pipeline(resolve_folder(name, weights=False), **options)
    )
    return _with_guidance(config, pipeline)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A configuration whose parts fit each other; nothing is loaded. Parts that not every command
    needs are made on first use.
    """

    config: Any
    mesh: Mesh
    stop: StopRequest
    folder: pathlib.Path  # of the base model
    pipeline: Pipeline  # of the base model, with the adapters that `config` trains
    # WARN: the user's own code may have changed since a record was made
    own_code: str = dataclasses.field(default=REFUSE, kw_only=True)
    needs: Collection[str] = dataclasses.field(default=(), kw_only=True)  # of `check_parts`

    @property
    def hosts(self) -> Hosts:
        """The processes of the run."""
        return self.stop.communicator.hosts

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The schedule of the rollouts."""
        return make_schedule(self.pipeline, self.config)

    @functools.cached_property
    def train(self) -> PromptSet:
        """The prompts of training."""
        return load_prompts(self.config, SETS['train'])

    @functools.cached_property
    def test(self) -> PromptSet:
        """The prompts of evaluations."""
        return load_prompts(self.config, SETS['test'])

    @functools.cached_property
    def reward(self) -> CompositeReward:
        """The training reward, with the scores that are only logged."""
        spec, d = self.config.reward, self.config.d2
        if d.file:
            spec = with_direction(spec, d.file, d.omega, d.renormalise)
        return build_reward(spec)

    @functools.cached_property
    def base_digest(self) -> str:
        """A short hash of the base model's weights by their content."""
        file = self.config.model.transformer_file
        return params_digest(self.folder, self.pipeline, transformer_file=file)

    @functools.cached_property
    def files_digest(self) -> str:
        """A short hash of the base's small files; needs none of its weights."""
        return files_digest(self.folder, self.pipeline)

    def facts(self, rewards: Iterable[Reward] | None = None) -> dict:
        """What no key tells, for every record that decides whether results are comparable: the
        base's weights and small files, the rewards (None: the training reward) and the user's own
        code, which may change under one name.
        """
        return {
            identity.BASE: self.base_digest,
            identity.FILES: self.files_digest,
            identity.CODE: own_code(self.config),
            **reward_facts([self.reward] if rewards is None else rewards),
        }

    def differences(self, scope: str, old: Mapping, new: Mapping) -> list[Difference]:
        """`identity.differences` that count in this process; without those of code where they are
        accepted.
        """
        found = identity.differences(scope, old, new, primary=self.hosts.primary)
        return [d for d in found if self.own_code == REFUSE or not identity.of_code(d)]

    @functools.cached_property
    def process_reward(self) -> ProcessReward | None:
        """What rollouts of training are guided and scored by beside the reward, if anything."""
        return open_process_reward(
            self.config,
            self.folder,
            self.pipeline,
            self.schedule.sigmas,
            self.reward,
            self.mesh,
            self.differences,
        )


@dataclasses.dataclass(frozen=True)
class Session(Checked):
    """A checked configuration with everything large loaded."""

    params: dict  # the frozen base: 'transformer', 'vae'
    conditioning: TextCache  # prompts passed to `load` -> their conditioning
    negative: (
        Conditioning | None
    )  # of the empty prompt, [1, ...]; None: no classifier-free guidance


def check(
    config,
    mesh: Mesh,
    stop: StopRequest | None = None,
    *,
    needs: Collection[str] = (),
    also: Mapping[str, object] = {},
    own_code: str = REFUSE,
) -> Checked:
    """Opens a configuration without loading anything: `check_parts`, then `check_weights`."""
    checked = check_parts(config, mesh, stop, needs=needs, own_code=own_code)
    check_weights(checked, also=also)
    return checked


def check_parts(
    config,
    mesh: Mesh,
    stop: StopRequest | None = None,
    *,
    needs: Collection[str] = (),
    own_code: str = REFUSE,
) -> Checked:
    """The part of `check` without the base's weights, which may have to be fetched for an hour: of
    a base that is not on this machine only small files are. No use before `check_weights`, except
    for further checks.

    Args:
      stop: of the run; None: one that nothing sets, for this process alone.
      needs: what will be used in addition to the base model. 'train', 'test': the prompt sets, with
        the reward, which checks that it can score them. 'schedule': rollouts. 'process_reward':
        those of training. 'start': a policy that training starts from (`state.start_state`).
      own_code: of `Checked`.

    Raises:
      ValueError, FileNotFoundError: the settings, the model folder or something in `needs` cannot
        be used, or they do not fit each other.
      ValueError, RewardError: of `try_own`, with prompts in `needs`.
    """
    validate(config)
    if config.text_cache and (found := folder_problem(config.text_cache)):
        raise ValueError(f'text_cache: {found}')
    # what costs least comes first: a reward may fetch its own weights
    sets = {name: load_prompts(config, split) for name, split in SETS.items() if name in needs}
    folder, pipeline = open_base(config, mesh)
    if (lora := pipeline.transformer.lora) is not None:
        lora.select(pipeline.adapter_names())
    if file := config.model.transformer_file:
        check_params(folder, pipeline, ['transformer'], transformer_file=file)
    if 'start' in needs:
        check_start(config, pipeline)
    stop = stop or StopRequest()
    checked = Checked(config, mesh, stop, folder, pipeline, own_code=own_code, needs=needs)
    vars(checked).update(sets)
    for name in needs:
        if name not in ('start', 'process_reward'):
            getattr(checked, name)
    if 'test' in needs and config.eval.best not in checked.reward.names:
        raise ValueError(
            f'eval.best={config.eval.best!r} is not a score of this reward; choose one of '
            f'{", ".join(checked.reward.names)}'
        )
    for name, prompts in sets.items():
        checked.reward.check(*columns(prompts))
        check_prompts(pipeline, prompts, f'data.{SETS[name]}')
    drawing_grid(pipeline, config, config.eval.steps)
    if sets:
        prompts = next(iter(sets.values()))
        try_own(checked.reward, *columns(prompts), (config.model.height, config.model.width))
    return checked


def check_weights(checked: Checked, *, also: Mapping[str, object] = {}) -> None:
    """The rest of `check`: fetches the base's weights unless they are there, and checks them by the
    files' headers.

    Args:
      also: what else must be alike in all processes of the run, as JSON values: a command's own
        flags, and the checkpoint that each of them has found.

    Raises:
      ValueError, FileNotFoundError: the weights or the process reward cannot be used, or the
        processes of the run were not started alike.
    """
    config, folder, pipeline = checked.config, checked.folder, checked.pipeline
    if (fetched := resolve_folder(config.model.path)) != folder:
        raise ValueError(
            f'model.path={config.model.path!r} was changed on Hugging Face meanwhile: {folder} was '
            f'opened, and the weights are in {fetched}; start again'
        )
    file = config.model.transformer_file
    check_files(folder, pipeline, transformer_file=file)
    if 'process_reward' in checked.needs:
        checked.process_reward  # noqa: B018 (a probe's base is compared by its weights)
    others = [name for name in pipeline.modules if name != 'transformer' or not file]
    check_params(folder, pipeline, others)
    if checked.hosts.count > 1:
        alike = {**_opened(checked), '--own_code': checked.own_code, **also}
        check_alike(checked.hosts, config, alike)


def _opened(checked: Checked) -> dict:
    """What files hold that no key tells, as digests or numbers."""
    config, needs, facts = checked.config, checked.needs, checked.facts()
    for name, split in SETS.items():
        if name in needs:
            facts[f'prompts of data.{split}'] = content_hash(getattr(checked, name))
    if 'schedule' in needs and config.noise.psi_path:
        facts['psi'] = [float(level) for level in checked.schedule.noise_levels]
    if 'process_reward' in needs and checked.process_reward:
        facts |= checked.process_reward.facts()
    if 'start' in needs and config.lora.init_from:
        facts['adapters of the start'] = start_digest(config, checked.pipeline)
    return facts


def load(checked: Checked, texts: Iterable[str], workdir: pathlib.Path | None = None) -> Session:
    """Loads everything large: first the prompts' conditioning, after which the encoders are freed,
    then the weights.

    Args:
      texts: the prompts that will be sampled.
      workdir: holds the conditioning unless `config.text_cache` names a folder; None: in memory.

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
    session = Session(
        **{field.name: getattr(checked, field.name) for field in dataclasses.fields(checked)},
        params=load_weights(checked, ('transformer', 'vae')),
        conditioning=conditioning,
        negative=conditioning(['']) if pipeline.takes_negative(config.model.guidance) else None,
    )
    vars(session).update(vars(checked))  # reuse prompts, reward and schedule if made already
    return session


def load_weights(checked: Checked, components: Sequence[str] | None = None) -> dict:
    """Weights of the named components (None: all) of the base, placed on the mesh."""
    m = checked.config.model
    return load_params(
        checked.folder,
        checked.pipeline,
        components,
        dtype=jnp.dtype(m.dtype),
        shardings=lambda tree: shardings(tree, checked.mesh, checked.pipeline.sharding_rules),
        transformer_file=m.transformer_file,
        quantize=m.quantize,
    )


def start_policy(session: Session) -> dict | None:
    """The policy before any training: that of `lora.init_from`, else the base (None)."""
    config = session.config
    if not config.lora.init_from:
        return None
    pipeline, base = session.pipeline, session.params['transformer']
    tx = optimiser(config, pipeline.transformer)
    return start_state(config, pipeline, tx, session.mesh, base).policy
