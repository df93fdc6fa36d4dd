"""Command: trains a miniature FLUX and writes it as a Diffusers folder.

    python -m densegrpo_jax.pretrain --config=configs/tiny_pretrain.py --workdir=runs/tiny_pretrain

Every stage resumes from its own checkpoints, a finished one is only read. The folder appears at WORKDIR/flux.
"""

from __future__ import annotations

import math
import pathlib

from absl import app, flags, logging
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np

from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.core.schedules import flux_shift_mu
from densegrpo_jax.data.tokenizers import build as build_tokenizers, load_tokenizers
from densegrpo_jax.models.packing import token_grid
from densegrpo_jax.models.pipeline import Pipeline
from densegrpo_jax.models.pipeline_folder import build_pipeline, load_params, resolve_folder, save_pipeline
from densegrpo_jax.parallel.mesh import make_mesh
from densegrpo_jax.parallel.startup import start_devices
from densegrpo_jax.pretraining import flow_stage, pool as pools, stage as stages, text_stage, vae_stage
from densegrpo_jax.pretraining.datasets import DATASETS, Dataset
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.composite import TOTAL
from densegrpo_jax.training.pictures import save_grid
from densegrpo_jax.training import console

SCHEDULER = {
    '_class_name': 'FlowMatchEulerDiscreteScheduler', '_diffusers_version': '0.32.0', 'base_image_seq_len': 256, 'base_shift': 0.5,
    'max_image_seq_len': 4096, 'max_shift': 1.15, 'num_train_timesteps': 1000, 'shift': 3.0, 'use_dynamic_shifting': True,
}  # fmt: skip


def component_configs(config, tokenizer, tokenizer_2) -> dict[str, dict]:
    """The config.json of every component: the sizes of `config`, completed with what Transformers and Diffusers expect there."""
    clip = {
        '_class_name': None, 'architectures': ['CLIPTextModel'], 'model_type': 'clip_text_model', 'vocab_size': len(tokenizer),
        'max_position_embeddings': config.clip_length, 'bos_token_id': tokenizer.bos_token_id, 'eos_token_id': tokenizer.eos_token_id,
        'pad_token_id': tokenizer.pad_token_id, 'layer_norm_eps': 1e-5, **config.text_encoder.to_dict(),
    }  # fmt: skip
    clip.pop('_class_name')
    t5 = {
        'architectures': ['T5EncoderModel'], 'model_type': 't5', 'vocab_size': len(tokenizer_2), 'feed_forward_proj': 'gated-gelu',
        'is_gated_act': True, 'dense_act_fn': 'gelu_new', 'layer_norm_epsilon': 1e-6, 'pad_token_id': 0, 'eos_token_id': 1,
        'decoder_start_token_id': 0, 'tie_word_embeddings': False, 'is_encoder_decoder': True, **config.text_encoder_2.to_dict(),
    }  # fmt: skip
    vae = {
        '_class_name': 'AutoencoderKL', '_diffusers_version': '0.32.0', 'act_fn': 'silu', 'scaling_factor': 1.0, 'shift_factor': 0.0,
        'down_block_types': ['DownEncoderBlock2D'] * 4, 'up_block_types': ['UpDecoderBlock2D'] * 4, **config.vae.to_dict(),
    }  # fmt: skip
    transformer = {'_class_name': 'FluxTransformer2DModel', '_diffusers_version': '0.32.0', **config.transformer.to_dict()}
    as_lists = lambda d: {k: list(v) if isinstance(v, tuple) else v for k, v in d.items()}
    return {'transformer': as_lists(transformer), 'vae': as_lists(vae), 'text_encoder': clip, 'text_encoder_2': t5}


def evaluator(pipeline: Pipeline, config, s, data: Dataset, workdir: pathlib.Path, name: str, guidance: float, rest: dict):
    """`(step, ema) -> line`: samples held-out prompts by the plain ODE, scores them and saves a contact sheet."""
    prompts = data.eval_prompts[: s.eval_prompts]
    texts, height, width = [p.text for p in prompts], config.height, config.width
    clip_ids, t5_ids = pipeline.tokenize(texts)
    sigmas = pipeline.sigmas(s.grid_steps, height, width)
    noise = jax.random.normal(jax.random.key(config.seed + 1), (len(texts), *pipeline.latent_shape(height, width)))
    reward = build_reward(data.reward)

    @jax.jit
    def pictures(params):
        velocity = pipeline.velocity_fn(params['transformer'], None, pipeline.encode(params, clip_ids, t5_ids), guidance, height, width)
        return pipeline.decode(params, ode_rollout(velocity, noise, sigmas), height, width)[0]

    def evaluate(step: int, ema: dict) -> str:
        images = np.asarray(pictures({**rest, **ema}))
        scores = reward(images, texts, [p.metadata for p in prompts])
        save_grid(workdir / 'samples' / f'{name}_{step:06d}.png', images[:48], columns=6, scale=2)
        means = ', '.join(f'{score} {np.nanmean(values):.4f}' for score, values in scores.values.items() if score != TOTAL)
        return f'{name} {step}: held-out {means} over {len(texts)} prompts (guidance {guidance:g}, {s.grid_steps} ODE steps)'

    return evaluate


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}')
    console.start()
    start_devices(math.gcd(pools.CHUNK, *(stage.batch for stage in flags.FLAGS.config.stages.values())))
    config, workdir = flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir).absolute()
    pools.check_size(config.stages.flow.pool)
    workdir.mkdir(parents=True, exist_ok=True)
    options = dict(seed=config.seed, log_every=config.log_every, save_seconds=config.save_seconds, keep=config.keep_checkpoints)
    if config.dataset not in DATASETS:
        raise ValueError(f'dataset={config.dataset!r} is not known; choose one of {sorted(DATASETS)}')
    data = DATASETS[config.dataset](config)
    build_tokenizers(workdir / 'tokenizers', data.vocabulary, clip_length=config.clip_length, t5_length=config.t5_length)
    tokenizer, tokenizer_2 = load_tokenizers(workdir / 'tokenizers')
    configs = component_configs(config, tokenizer, tokenizer_2)
    pipeline = build_pipeline(configs, SCHEDULER, (tokenizer, tokenizer_2), t5_length=config.t5_length)
    mesh = make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
    params = pipeline.init_params(jax.random.key(config.seed))

    s = config.stages.vae
    start = load_params(resolve_folder(s.init), pipeline, ['vae'])['vae'] if s.init else params['vae']
    loss, batches = vae_stage.make_loss(pipeline.vae, s.kl_weight), vae_stage.batch_fn(data.batch, config.render_seed, s.batch)
    raw = stages.run_stage('vae', s, start, loss, batches, workdir, **options)
    probe = vae_stage.to_model_range(data.batch(config.render_seed, 10**6, 512)[0])
    mean, std = vae_stage.latent_moments(pipeline.vae, raw, probe)
    # Channels that carry nothing (posterior = prior) are not blown up to unit variance.
    params['vae'] = vae_stage.fold_channel_scale(raw, np.maximum(std, 0.25 * std.max()))
    logging.info('latent channels: mean %s, std %s', np.round(mean, 2), np.round(std, 2))
    save_grid(workdir / 'samples' / 'vae.png', vae_stage.reconstructions(pipeline.vae, params['vae'], probe[:24]), columns=6, scale=2)

    if 'text' in config.stages:
        s = config.stages.text
        heads = text_stage.init_heads(
            jax.random.key(config.seed), config.text_encoder_2.d_model, config.text_encoder.hidden_size, len(tokenizer_2)
        )
        start = {'text_encoder': params['text_encoder'], 'text_encoder_2': params['text_encoder_2'], 'heads': heads}
        batches = text_stage.batch_fn(config.render_seed, s.batch, pipeline, text_stage.quote_ids(pipeline))
        text = stages.run_stage('text', s, start, text_stage.make_loss(pipeline), batches, workdir, **options)
        params |= {name: text[name] for name in ('text_encoder', 'text_encoder_2')}

    s = config.stages.flow
    rows, cols = token_grid(config.height, config.width)
    mu = flux_shift_mu(rows * cols)
    made_from = pools.origin(config, raw)
    pool = pools.read(workdir / 'pool.npz', made_from)
    if pool is None:
        pool = pools.encode(pipeline, params['vae'], data.flow_batch, config.render_seed + 1, s.pool, mesh)
        pools.write(workdir / 'pool.npz', pool, made_from)
    empty = dict(zip(('clip_ids', 't5_ids'), (ids[0] for ids in pipeline.tokenize(['']))))
    start = {name: params[name] for name in ('transformer', 'text_encoder', 'text_encoder_2')}
    loss = flow_stage.flow_loss(pipeline, config.height, config.width, mu)
    batches = flow_stage.batch_fn(config.render_seed + 2, s.batch, pool, empty, s.text_dropout)
    judge = evaluator(pipeline, config, s, data, workdir, 'flow', 1.0, {'vae': params['vae']})
    params |= stages.run_stage('flow', s, start, loss, batches, workdir, on_eval=judge, **options)

    s = config.stages.distil
    teacher = {name: params[name] for name in start}
    loss = flow_stage.distil_loss(pipeline, teacher, empty, config.height, config.width, mu, s.guidance_max)
    batches = flow_stage.batch_fn(config.render_seed + 3, s.batch, pool, empty, 0.0)
    fixed = {name: params[name] for name in pipeline.modules if name != 'transformer'}
    judge = evaluator(pipeline, config, s, data, workdir, 'distil', s.eval_guidance, fixed)
    on_eval = lambda step, ema: judge(step, {'transformer': ema})
    params['transformer'] = stages.run_stage('distil', s, params['transformer'], loss, batches, workdir, on_eval=on_eval, **options)

    save_pipeline(workdir / 'flux', pipeline, params, dtype=jnp.bfloat16)
    size = sum(f.stat().st_size for f in (workdir / 'flux').rglob('*') if f.is_file())
    logging.info('finished: %s (%.1f MiB, bfloat16); samples in %s', workdir / 'flux', size / 2**20, workdir / 'samples')


def define_flags() -> None:
    """Only the command itself has flags: importing this module defines none."""
    config_flags.DEFINE_config_file('config', None, 'Pretraining configuration.', lock_config=True)
    flags.DEFINE_string('workdir', 'runs/tiny_pretrain', 'Where checkpoints, samples and the finished folder go.')


if __name__ == '__main__':
    define_flags()
    flags.mark_flag_as_required('config')
    app.run(main)
