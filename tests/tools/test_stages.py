"""Pretraining: exact folding of the latent scale, labels read off prompts, losses with known
values, and a stage that resumes exactly.
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.pipelines.packing import pack_latents
from densegrpo_jax.pipelines.tokenizers import build, load_tokenizers
from densegrpo_jax.runtime.checkpoint_errors import CheckpointMismatch
from densegrpo_jax.runtime.mesh import make_mesh
from tools.make_miniature import datasets, flow_stage, stage, text_stage, vae_stage


@pytest.fixture(scope='module')
def flux(folder):
    return load_pipeline(folder, text_length=16)


@pytest.mark.slow
def test_folded_channel_scale_changes_latents_and_nothing_else(flux):
    pipeline, params = flux
    vae, images = pipeline.vae, jax.random.uniform(jax.random.key(0), (2, 16, 32, 3), minval=-1)
    scale = np.linspace(0.3, 3.0, 16).astype(np.float32)
    folded = vae_stage.fold_channel_scale(params['vae'], scale)
    encode = jax.jit(lambda p: vae.apply({'params': p}, images, method='encode'))
    (mean, logvar), (new_mean, new_logvar) = encode(params['vae']), encode(folded)
    np.testing.assert_allclose(new_mean, mean / scale, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jnp.exp(0.5 * new_logvar), jnp.exp(0.5 * logvar) / scale, rtol=1e-5)
    decode = jax.jit(lambda p, z: vae.apply({'params': p}, z, method='decode'))
    np.testing.assert_allclose(
        decode(folded, new_mean), decode(params['vae'], mean), rtol=1e-4, atol=1e-5
    )


def test_text_labels_are_read_off_the_prompt(flux):
    pipeline, _ = flux
    batch = text_stage.batch_fn(0, 8, pipeline, text_stage.quote_ids(pipeline))(3)
    assert batch['t5_ids'].shape == (8, 16) and batch['clip_ids'].shape == (8, 24)
    for place, length in zip(batch['place'], batch['length']):
        inside = place[place > 0]
        # one token per letter, counted from 1
        np.testing.assert_array_equal(inside, np.arange(1, length + 1))
    again = text_stage.batch_fn(0, 8, pipeline, text_stage.quote_ids(pipeline))(3)
    jax.tree.map(np.testing.assert_array_equal, batch, again)


def test_flow_loss_of_a_zero_velocity_is_the_second_moment_of_its_target(flux):
    pipeline, params = flux
    blank = {**params, 'transformer': jax.tree.map(jnp.zeros_like, params['transformer'])}
    latents = 0.5 * jax.random.normal(jax.random.key(1), (64, 4, 12, 16))
    clip_ids, t5_ids = pipeline.tokenize(['A neon sign that says "HELLO"'] * 64)
    batch = {'latents': latents, 'clip_ids': clip_ids, 't5_ids': t5_ids}
    loss_fn = jax.jit(flow_stage.flow_loss(pipeline, 32, 96, 0.5))
    loss = loss_fn(blank, batch, jax.random.key(2))[0]
    assert abs(float(loss) - 1.25) < 0.02  # Var(eps - x_0) = 1 + 0.25


@pytest.mark.slow
def test_distillation_is_solved_by_the_teacher_where_guidance_is_one(flux):
    """With w = 1 the target is the conditional velocity, and the teacher at guidance 1 is it."""
    pipeline, params = flux
    clip_ids, t5_ids = pipeline.tokenize(
        ['A neon sign that says "HELLO"', 'A chalkboard that reads "JAX"']
    )
    empty = dict(zip(('clip_ids', 't5_ids'), (ids[0] for ids in pipeline.tokenize(['']))))
    batch = {
        'latents': jax.random.normal(jax.random.key(1), (2, 4, 12, 16)),
        'clip_ids': clip_ids,
        't5_ids': t5_ids,
    }

    @jax.jit
    def at(most):
        loss_fn = flow_stage.distil_loss(pipeline, params, empty, 32, 96, 0.5, most)
        return loss_fn(params['transformer'], batch, jax.random.key(0))[0]

    assert float(at(1.0)) < 1e-9 < 1e-4 < float(at(5.0))


@pytest.mark.parametrize(
    'name, height, width, t5_length', [('words', 32, 96, 16), ('shapes', 48, 48, 12)]
)
def test_data_sets_give_pictures_prompts_and_tokens_for_every_word(
    name, height, width, t5_length, tmp_path
):
    config = ml_collections.ConfigDict(dict(height=height, width=width, flow_fonts=('DejaVuSans',)))
    data = datasets.DATASETS[name](config)
    images, prompts = data.flow_batch(0, 1, 8)
    assert images.shape == (8, height, width, 3) and images.dtype == np.uint8 and len(prompts) == 8
    np.testing.assert_array_equal(data.flow_batch(0, 1, 8)[0], images)
    assert vae_stage.batch_fn(data.batch, 0, 4)(1)['images'].max() <= 1.0
    build(tmp_path, data.vocabulary, clip_length=24, t5_length=t5_length)
    clip, t5 = load_tokenizers(tmp_path)
    for prompt in (*prompts, *(p.text for p in data.eval_prompts)):
        words = prompt.split('"')[0].split()
        assert clip.tokenize(prompt.lower())[: len(words)] == [
            f'{word.lower()}</w>' for word in words
        ]
        ids = t5(prompt).input_ids
        assert len(ids) <= t5_length and t5.unk_token_id not in ids


def test_noised_is_the_straight_path():
    latents = jax.random.normal(jax.random.key(0), (3, 4, 4, 16))
    x, s, target = flow_stage.noised(latents, jax.random.key(1), 0.0)
    x0 = pack_latents(latents)
    np.testing.assert_allclose(x, x0 + s[:, None, None] * target, rtol=1e-5, atol=1e-5)
    assert ((0 < s) & (s < 1)).all()


def test_stage_resumes_exactly(tmp_path):
    config = ml_collections.ConfigDict(dict(steps=6, lr=0.1, warmup=1, ema=0.9))
    mesh = make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
    options = dict(mesh=mesh, seed=0, log_every=100, save_seconds=0.0, keep=2)

    def loss_fn(params, batch, key):
        noise = jax.random.normal(key, ())
        return jnp.mean((params['w'] - batch['x'] + 0.1 * noise) ** 2), {'noise': noise}

    batches = lambda step: {'x': np.random.default_rng(step).standard_normal(8).astype(np.float32)}
    params = {'w': jnp.zeros(())}
    whole = stage.run_stage('s', config, params, loss_fn, batches, tmp_path / 'whole', **options)

    def until_four(step):
        if step >= 4:
            raise InterruptedError  # steps 0 to 3 are done by then
        return batches(step)

    with pytest.raises(InterruptedError):
        rarely = options | {'save_seconds': 1e9}
        stage.run_stage('s', config, params, loss_fn, until_four, tmp_path / 'parts', **rarely)
    saved = sorted(path.name for path in (tmp_path / 'parts/checkpoints/s').glob('[0-9]*'))
    assert saved == ['4']  # the last completed step
    resumed = stage.run_stage('s', config, params, loss_fn, batches, tmp_path / 'parts', **options)
    np.testing.assert_array_equal(resumed['w'], whole['w'])
    assert float(whole['w']) != 0.0

    # Those checkpoints do not say what they were made from, as those of an earlier version.
    config.steps = 7
    stage.run_stage(
        's',
        config,
        params,
        loss_fn,
        batches,
        tmp_path / 'parts',
        **options,
        made_from={'stages': {'s': {'lr': 0.1}}},
    )
    with pytest.raises(CheckpointMismatch, match=r'stages.s.lr: 0.1 there, 0.2 here'):
        stage.run_stage(
            's',
            config,
            params,
            loss_fn,
            batches,
            tmp_path / 'parts',
            **options,
            made_from={'stages': {'s': {'lr': 0.2}}},
        )
