"""The whole pretraining on sizes of a toy: every stage, stopped in between and continued, and the
folder that comes out.
"""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import tiny_pretrain, tiny_shapes_pretrain
from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.runtime.mesh import make_mesh
from tests.meshes import one_device
from tools.make_miniature import miniature, stage

ROOT = pathlib.Path(__file__).parents[2]


def toy():
    config = tiny_pretrain.get_config()
    config.save_seconds = 1e9  # at the end of a stage only
    config.transformer.update(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    config.vae.update(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, mid_block_add_attention=False
    )
    config.text_encoder.update(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=16,
    )
    config.text_encoder_2.update(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    for s in config.stages.values():
        s.update(steps=2, batch=8, warmup=1)
    config.stages.flow.update(pool=1024, grid_steps=2, eval_every=2, eval_prompts=8)
    config.stages.distil.update(grid_steps=2, eval_every=2, eval_prompts=8)
    return config


@pytest.fixture
def drawn(monkeypatch):
    """The (stage, step) whose batches were drawn, in order; drawing those that are in `drawn.stops`
    ends the process.
    """

    class Drawn(list):
        stops = set()

    drawn, run_stage = Drawn(), stage.run_stage

    def watched(name, s, start, loss_fn, batch_fn, *rest, **options):
        def draw(step):
            if (name, step) in drawn.stops:
                raise InterruptedError
            drawn.append((name, step))
            return batch_fn(step)

        return run_stage(name, s, start, loss_fn, draw, *rest, **options)

    monkeypatch.setattr(stage, 'run_stage', watched)
    return drawn


@pytest.mark.slow
def test_every_stage_once_then_a_pipeline_that_draws(tmp_path, drawn, monkeypatch):
    config, mesh = toy(), one_device()
    # AdamW is a third of what a step takes to compile, and test_stages has it.
    monkeypatch.setattr(stage, 'optimiser', lambda s: optax.sgd(0.1))
    drawn.stops = {('distil', 0)}
    with pytest.raises(InterruptedError):
        miniature.pretrain(config, tmp_path, mesh)
    assert drawn == [(name, step) for name in ('vae', 'text', 'flow') for step in (0, 1)]
    assert not (tmp_path / 'flux').exists()
    written = (tmp_path / 'pool.npz').stat().st_mtime_ns

    # What is finished is read, not made again: from here on fresh weights are blank and no picture
    # is encoded.
    blank = lambda pipeline, key: jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), pipeline.abstract_params()
    )
    monkeypatch.setattr(Pipeline, 'init_params', blank)
    drawn.clear()
    drawn.stops = set()
    folder = miniature.pretrain(config, tmp_path, mesh)
    assert drawn == [('distil', 0), ('distil', 1)] and folder == tmp_path / 'flux'
    assert (tmp_path / 'pool.npz').stat().st_mtime_ns == written
    assert sorted(p.name for p in (tmp_path / 'samples').iterdir()) == [
        'distil_000002.png',
        'flow_000002.png',
        'vae.png',
    ]

    pipeline, params = load_pipeline(folder, text_length=config.t5_length)
    assert np.any(params['transformer']['proj_out']['kernel'])  # blank before the flow

    @jax.jit
    def draw(params, noise):
        conditioning = pipeline.encode(
            params, *pipeline.tokenize(['A neon sign that says "HELLO"'] * 2)
        )
        velocity = pipeline.velocity_fn(
            params['transformer'], None, conditioning, 2.0, config.height, config.width
        )
        latents = ode_rollout(velocity, noise, pipeline.sigmas(2, config.height, config.width))
        return pipeline.decode(params, latents, config.height, config.width)

    images, finite = draw(
        params,
        jax.random.normal(
            jax.random.key(0), (2, *pipeline.latent_shape(config.height, config.width))
        ),
    )
    assert images.shape == (2, 32, 96, 3) and finite.all() and images.std() > 0


@pytest.mark.parametrize(
    'key, value, stages',
    [
        ('seed', 1, {'vae', 'text', 'flow', 'distil'}),
        ('vae.latent_channels', 8, {'vae', 'flow', 'distil'}),
        ('t5_length', 24, {'text', 'flow', 'distil'}),
        ('flow_fonts', ('DejaVuSans',), {'flow', 'distil'}),
        ('stages.vae.lr', 1e-3, {'vae', 'flow', 'distil'}),
        ('stages.text.steps', 9, {'flow', 'distil'}),  # its own checkpoints can go on
        ('stages.flow.eval_every', 1, {'distil'}),
        ('stages.distil.lr', 1e-3, {'distil'}),
        ('log_every', 1, set()),
    ],
)
def test_which_stages_a_setting_makes_anew(key, value, stages):
    config, changed = tiny_pretrain.get_config(), tiny_pretrain.get_config()
    changed.update_from_flattened_dict({key: value})
    assert {
        name
        for name in config.stages
        if miniature.made_from(config, name) != miniature.made_from(changed, name)
    } == stages


@pytest.mark.parametrize(
    'key, value, message',
    [
        (
            'stages.flow.pool',
            1500,
            r'stages\.flow\.pool=1500 images: expected a positive multiple of 1024, such as 1024',
        ),
        (
            'stages.flow.pool',
            512,
            'stages.flow.pool=512 images: expected a positive multiple of 1024, such as 1024',
        ),
        ('dataset', 'faces', r"dataset='faces' is not known; choose one of \['shapes', 'words'\]"),
        ('width', 90, 'width=90 is not a positive multiple of 16; nearest: 96'),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    key, value, message, tmp_path
):
    config = toy()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        miniature.pretrain(
            config, tmp_path / 'run', make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
        )
    assert not (tmp_path / 'run').exists()


def test_the_command_says_in_one_line_what_it_cannot_do(tmp_path):
    command = [
        sys.executable,
        '-m',
        'tools.pretrain',
        f'--config={ROOT}/configs/tiny_pretrain.py',
        f'--workdir={tmp_path}/run',
    ]
    ended = subprocess.run(
        [*command, '--config.stages.flow.pool=1500'],
        cwd=ROOT,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert 'error: stages.flow.pool=1500' in ended.stderr and 'Traceback' not in ended.stderr


@pytest.mark.parametrize('config, rows', [(tiny_pretrain, 16), (tiny_shapes_pretrain, 16)])
def test_shipped_configurations_can_be_trained_on_several_devices(config, rows):
    miniature.validate(config.get_config())
    assert miniature.rows(config.get_config()) == rows
