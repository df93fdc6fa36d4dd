"""A miniature FLUX from random weights: a function per stage (autoencoder, text encoders, flow,
guidance), and the folder that they make.

Every stage resumes from its own checkpoints, WORKDIR/checkpoints/STAGE; a finished stage is only
read.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.core.schedules import flux_shift_mu
from densegrpo_jax.data.prompts import columns
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.folder import build_pipeline, load_params, resolve_folder
from densegrpo_jax.pipelines.packing import token_grid
from densegrpo_jax.pipelines.saving import save_pipeline
from densegrpo_jax.pipelines.tokenizers import build as build_tokenizers
from densegrpo_jax.pipelines.tokenizers import load_tokenizers
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.composite import TOTAL
from densegrpo_jax.runtime.images import save_grid
from densegrpo_jax.runtime.stop import StopRequest
from tools.make_miniature import flow_stage, text_stage, vae_stage
from tools.make_miniature import pool as pools
from tools.make_miniature import stage as stages
from tools.make_miniature.components import SCHEDULER, component_configs
from tools.make_miniature.datasets import DATASETS, Dataset

FOLDER = 'flux'  # in the work directory, in the Diffusers layout
POOL = 'pool.npz'
# What is written directly in the work directory.
FILES, FOLDERS = (POOL,), (FOLDER, 'checkpoints', 'samples', 'tokenizers')
TEXT_ENCODERS = ('text_encoder', 'text_encoder_2')
FLOW = ('transformer', *TEXT_ENCODERS)  # components that the flow stage trains
# settings for a stage's length and for watching it
FREE = ('steps', 'grid_steps', 'eval_every', 'eval_prompts', 'eval_guidance')
_WORDS = (*TEXT_ENCODERS, 'clip_length', 't5_length')
_FLOW = ('vae', 'transformer', 'flow_fonts', *_WORDS)
# Keys of a stage, what they may be, in words and as a function.
RANGES = (
    ('steps', 'a whole number at least 1', lambda x: x >= 1),
    ('batch', 'a whole number at least 1', lambda x: x >= 1),
    ('warmup', 'a whole number at least 0', lambda x: x >= 0),
    ('lr', 'a finite number above 0', lambda x: 0 < x < math.inf),
    ('ema', 'a number at least 0 and below 1', lambda x: 0 <= x < 1),
    ('text_dropout', 'a number from 0 to 1', lambda x: 0 <= x <= 1),
    ('grid_steps', 'a whole number at least 1', lambda x: x >= 1),
    ('eval_every', 'a whole number at least 1', lambda x: x >= 1),
    ('eval_prompts', 'a whole number at least 1', lambda x: x >= 1),
    ('kl_weight', 'a finite number at least 0', lambda x: 0 <= x < math.inf),
    ('guidance_max', 'a finite number at least 1', lambda x: 1 <= x < math.inf),
    ('eval_guidance', 'a finite number at least 0', lambda x: 0 <= x < math.inf),
)
_SEED = 'a whole number at least 0 and below 2^32', lambda x: 0 <= x < 2**32
_COUNT = 'a whole number at least 1', lambda x: x >= 1
TOP = {  # the same for keys outside the stages
    **dict.fromkeys(('seed', 'render_seed'), _SEED),
    **dict.fromkeys(('t5_length', 'clip_length', 'keep_checkpoints', 'log_every'), _COUNT),
    'save_seconds': ('a finite number at least 0', lambda x: 0 <= x < math.inf),
}
DEPENDS = {  # stage -> further settings that it depends on, earlier stages
    'vae': (('vae',), ()),
    'text': (_WORDS, ()),
    'flow': (_FLOW, ('vae', 'text')),
    'distil': (_FLOW, ('vae', 'text', 'flow')),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """The state that the stages of one pretraining share: configuration, work directory, data,
    networks and devices.
    """

    config: object
    workdir: pathlib.Path
    data: Dataset
    pipeline: Pipeline
    mesh: Mesh
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)

    def train(
        self,
        name: str,
        start: dict,
        loss_fn: Callable,
        batch_fn: Callable,
        on_eval: Callable | None = None,
    ) -> dict:
        """The averaged weights of stage `name`, see `stage.run_stage`."""
        c = self.config
        options = dict(
            seed=c.seed,
            log_every=c.log_every,
            save_seconds=c.save_seconds,
            keep=c.keep_checkpoints,
            on_eval=on_eval,
            stop=self.stop,
        )
        options['made_from'] = made_from(c, name)
        return stages.run_stage(
            name, c.stages[name], start, loss_fn, batch_fn, self.workdir, self.mesh, **options
        )

    def shift(self) -> float:
        """Logit of the shift of FLUX's grid at this size of image."""
        return flux_shift_mu(math.prod(token_grid(self.config.height, self.config.width)))

    def empty_ids(self) -> dict[str, np.ndarray]:
        """The empty prompt's clip_ids [Lc] and t5_ids [Lt], int32."""
        return dict(zip(('clip_ids', 't5_ids'), (ids[0] for ids in self.pipeline.tokenize(['']))))


def validate(config) -> None:
    """Raises ValueError, naming the key, for errors that would end a pretraining after hours."""
    if config.dataset not in DATASETS:
        raise ValueError(
            f'dataset={config.dataset!r} is not known; choose one of {sorted(DATASETS)}'
        )
    token_grid(config.height, config.width)
    for name, stage in config.stages.items():
        for key, expected, fits in RANGES:
            if key in stage and not fits(stage[key]):
                raise ValueError(f'stages.{name}.{key}={stage[key]}: expected {expected}')
    for key, (expected, fits) in TOP.items():
        if key in config and not fits(config[key]):
            raise ValueError(f'{key}={config[key]}: expected {expected}')
    pools.check_size(config.stages.flow.pool)
    if 'init' in config.stages.vae and config.stages.vae.init:
        try:
            resolve_folder(config.stages.vae.init)
        except FileNotFoundError as error:
            raise FileNotFoundError(f'stages.vae.init: {error}') from None


def rows(config) -> int:
    """Rows that a number of devices must divide to split every stage's batches and the pool's
    chunks.
    """
    return math.gcd(pools.CHUNK, *(stage.batch for stage in config.stages.values()))


def made_from(config, name: str) -> dict:
    """All settings that the checkpoints of a stage depend on, including those of earlier stages, as
    JSON values.
    """
    c, (keys, earlier) = config.to_dict(), DEPENDS[name]
    own = {key: value for key, value in c['stages'][name].items() if key not in FREE}
    before = {stage: c['stages'][stage] for stage in earlier if stage in c['stages']}
    settings = {
        key: c[key]
        for key in ('dataset', 'height', 'width', 'seed', 'render_seed', *keys)
        if key in c
    }
    return settings | {'stages': before | {name: own}}


def prepare(config, workdir: pathlib.Path, mesh: Mesh, stop: StopRequest | None = None) -> Work:
    """Opens the data set, writes WORKDIR/tokenizers and builds the networks, without weights."""
    data = DATASETS[config.dataset](config)
    build_tokenizers(
        workdir / 'tokenizers',
        data.vocabulary,
        clip_length=config.clip_length,
        t5_length=config.t5_length,
    )
    tokenizers = load_tokenizers(workdir / 'tokenizers')
    pipeline = build_pipeline(
        component_configs(config, *tokenizers), SCHEDULER, tokenizers, text_length=config.t5_length
    )
    return Work(config, workdir, data, pipeline, mesh, stop or StopRequest())


def train_autoencoder(work: Work, start: dict) -> dict:
    """The autoencoder's weights, from `start` or from those of the pipeline folder
    `stages.vae.init`.
    """
    s, seed = work.config.stages.vae, work.config.render_seed
    if s.init:
        start = load_params(resolve_folder(s.init), work.pipeline, ['vae'])['vae']
    loss = vae_stage.make_loss(work.pipeline.vae, s.kl_weight)
    return work.train('vae', start, loss, vae_stage.batch_fn(work.data.batch, seed, s.batch))


def normalise(work: Work, autoencoder: dict) -> dict:
    """The autoencoder with latents of about unit variance; draws images and their reconstructions
    into WORKDIR/samples/vae.png.
    """
    vae, probe = (
        work.pipeline.vae,
        vae_stage.to_model_range(work.data.batch(work.config.render_seed, 10**6, 512)[0]),
    )
    mean, std = vae_stage.latent_moments(vae, autoencoder, probe)
    logging.info('latent channels: mean %s, std %s', np.round(mean, 2), np.round(std, 2))
    # Channels without information (posterior = prior) are not scaled up to unit variance.
    scaled = vae_stage.fold_channel_scale(autoencoder, np.maximum(std, 0.25 * std.max()))
    save_grid(
        work.workdir / 'samples' / 'vae.png',
        vae_stage.reconstructions(vae, scaled, probe[:24]),
        columns=6,
        scale=2,
    )
    return scaled


def train_text(work: Work, params: dict) -> dict:
    """Both text encoders' weights, trained from those in `params`, without their read-out heads."""
    config, pipeline = work.config, work.pipeline
    widths = (
        config.text_encoder_2.d_model,
        config.text_encoder.hidden_size,
        len(pipeline.tokenizers[1]),
    )
    start = {name: params[name] for name in TEXT_ENCODERS} | {
        'heads': text_stage.init_heads(jax.random.key(config.seed), *widths)
    }
    batches = text_stage.batch_fn(
        config.render_seed, config.stages.text.batch, pipeline, text_stage.quote_ids(pipeline)
    )
    trained = work.train('text', start, text_stage.make_loss(pipeline), batches)
    return {name: trained[name] for name in TEXT_ENCODERS}


def make_pool(work: Work, raw: dict, autoencoder: dict) -> dict[str, np.ndarray]:
    """The training data of flow and distillation, see `pool.encode`; stored in WORKDIR/pool.npz.

    Args:
      raw: the autoencoder's weights as its stage left them, which identify the file.
      autoencoder: the same, normalised.

    Raises:
      ValueError: the file was made from other data or weights.
    """
    config, path = work.config, work.workdir / POOL
    made_from = pools.origin(config, raw)
    pool = pools.read(path, made_from)
    if pool is None:
        pool = pools.encode(
            work.pipeline,
            autoencoder,
            work.data.flow_batch,
            config.render_seed + 1,
            config.stages.flow.pool,
            work.mesh,
        )
        pools.write(path, pool, made_from)
    return pool


def train_flow(work: Work, params: dict, pool: dict[str, np.ndarray]) -> dict:
    """The weights of `FLOW`, trained together from those in `params`."""
    config, s = work.config, work.config.stages.flow
    loss = flow_stage.flow_loss(work.pipeline, config.height, config.width, work.shift())
    batches = flow_stage.batch_fn(
        config.render_seed + 2, s.batch, pool, work.empty_ids(), s.text_dropout
    )
    judge = evaluator(work, 'flow', 1.0, {'vae': params['vae']})
    return work.train('flow', {name: params[name] for name in FLOW}, loss, batches, judge)


def distil(work: Work, params: dict, pool: dict[str, np.ndarray]) -> dict:
    """The transformer's weights after distilling classifier-free guidance into its guidance
    embedding; the other components of `params` stay.
    """
    config, s, empty = work.config, work.config.stages.distil, work.empty_ids()
    teacher = {name: params[name] for name in FLOW}
    loss = flow_stage.distil_loss(
        work.pipeline, teacher, empty, config.height, config.width, work.shift(), s.guidance_max
    )
    batches = flow_stage.batch_fn(config.render_seed + 3, s.batch, pool, empty, 0.0)
    judge = evaluator(
        work,
        'distil',
        s.eval_guidance,
        {name: params[name] for name in work.pipeline.modules if name != 'transformer'},
    )
    return work.train(
        'distil',
        params['transformer'],
        loss,
        batches,
        lambda step, ema: judge(step, {'transformer': ema}),
    )


def evaluator(work: Work, name: str, guidance: float, rest: dict) -> Callable[[int, dict], str]:
    """`(step, ema) -> line`: samples held-out prompts by the plain ODE, scores them and saves
    WORKDIR/samples/NAME_STEP.png.

    Args:
      name: of the stage, whose grid_steps and eval_prompts are used.
      rest: the weights that the stage does not train.
    """
    config, pipeline, s = work.config, work.pipeline, work.config.stages[name]
    prompts = work.data.eval_prompts[: s.eval_prompts]
    (texts, metadata), height, width = columns(prompts), config.height, config.width
    clip_ids, t5_ids = pipeline.tokenize(texts)
    sigmas = pipeline.sigmas(s.grid_steps, height, width)
    noise = jax.random.normal(
        jax.random.key(config.seed + 1), (len(texts), *pipeline.latent_shape(height, width))
    )
    reward = build_reward(work.data.reward)

    @jax.jit
    def pictures(params):
        velocity = pipeline.velocity_fn(
            params['transformer'],
            None,
            pipeline.encode(params, clip_ids, t5_ids),
            guidance,
            height,
            width,
        )
        return pipeline.decode(params, ode_rollout(velocity, noise, sigmas), height, width)[0]

    def evaluate(step: int, ema: dict) -> str:
        images = np.asarray(pictures({**rest, **ema}))
        scores = reward(images, texts, metadata)
        save_grid(
            work.workdir / 'samples' / f'{name}_{step:06d}.png', images[:48], columns=6, scale=2
        )
        means = ', '.join(
            f'{score} {np.nanmean(values):.4f}'
            for score, values in scores.values.items()
            if score != TOTAL
        )
        return (
            f'{name} {step}: held-out {means} over {len(texts)} prompts (guidance {guidance:g}, '
            f'{s.grid_steps} ODE steps)'
        )

    return evaluate


def pretrain(
    config, workdir: pathlib.Path, mesh: Mesh, stop: StopRequest | None = None
) -> pathlib.Path:
    """Runs or continues the stages of `config` in `workdir` and writes the pipeline, bfloat16, to
    its folder FOLDER.

    Args:
      mesh: plain data parallelism; its axis 'data' must divide `rows(config)`.
      stop: None: one that nothing sets.

    Returns:
      That folder, which `load_pipeline` and Diffusers open.

    Raises:
      Preempted: a stop was requested; the completed steps are saved.
      ValueError: `validate` raises it, or checkpoints or a pool in `workdir` belong to another
        configuration.
      FileNotFoundError: `stages.vae.init` is not a pipeline folder.
    """
    validate(config)
    workdir.mkdir(parents=True, exist_ok=True)
    work = prepare(config, workdir, mesh, stop)
    params = work.pipeline.init_params(jax.random.key(config.seed))
    raw = train_autoencoder(work, params['vae'])
    params['vae'] = normalise(work, raw)
    if 'text' in config.stages:
        params |= train_text(work, params)
    work.stop.check()
    pool = make_pool(work, raw, params['vae'])
    params |= train_flow(work, params, pool)
    params['transformer'] = distil(work, params, pool)
    save_pipeline(workdir / FOLDER, work.pipeline, params, dtype=jnp.bfloat16)
    return workdir / FOLDER
