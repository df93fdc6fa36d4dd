"""What a run says before it loads anything: a need that the device cannot meet is a warning with
the keys that lower it.
"""

import types

import jax
import pytest

from configs import flux2_klein_ocr, flux_ocr, tiny_geneval, tiny_ocr, zimage_ocr, zimage_pickscore
from densegrpo_jax.guard.check import check_guard
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.session import check, open_shapes
from densegrpo_jax.sampling.state import optimiser, state_shapes
from densegrpo_jax.training import announce
from densegrpo_jax.training.geometry import samples_at_once

NEED = {
    'weights': 22.0 * announce.GIB,
    announce.TRAINED: 3.0 * announce.GIB,
    'latents': 0.5 * announce.GIB,
    'images': 0.5 * announce.GIB,
}


def device(stats):
    return types.SimpleNamespace(memory_stats=lambda: stats, device_kind='TPU v5 lite')


def test_more_than_the_device_has_is_said_with_what_lowers_it():
    said = announce.too_much(NEED, device({'bytes_limit': 15.75 * announce.GIB}), full=False)
    assert said.startswith(
        'this needs 26.00 GiB per device before activations, and JAX has 15.75 GiB on TPU v5 lite: '
        'it will not fit'
    )
    assert 'weights, 22.00 GiB' in said and said.endswith(
        'mesh.fsdp, mesh.tensor, model.quantize, lora.rank, rollout.prompts_per_batch, '
        'rollout.prompts, credit.completion_every'
    )
    said = announce.too_much(NEED, device({'bytes_limit': 1}), full=True)
    assert 'quantize' not in said and 'lora' not in said  # all weights are trained
    config = tiny_ocr.get_config()
    for key in (key for keys in announce.LOWERED_BY.values() for key in keys):
        group, _, name = key.partition('.')
        assert name in config[group]


def test_nothing_is_said_where_it_fits_or_nobody_knows():
    for stats in ({'bytes_limit': 26 * announce.GIB}, {'bytes_in_use': 1}, {}, None):
        assert announce.too_much(NEED, device(stats), full=False) == ''


def test_more_rows_than_a_device_is_known_to_hold_are_said():
    """FLUX with 3 rows a device: 24, a whole group, are 3 on eight devices and 6 on four."""
    of = lambda variant: flux_ocr.get_config(variant)
    assert announce.crowded(of('method=lire,devices=8'), 8) == ''
    assert of('devices=4').optim.microbatch == 12 and announce.crowded(of('devices=4'), 4) == ''
    config = of('method=lire,devices=4')
    said = announce.crowded(config, 4)
    assert said.startswith(
        'optim.microbatch=24 is 6 transitions a device, and optim.rows_per_device=3 are known to '
        "fit; loss.kind='list' compares the whole groups of rollout.group=24 samples, which no"
    )
    config.loss.kind = 'list_trajectory'
    assert '24 samples with all their transitions, which no' in announce.crowded(config, 4)
    config.loss.kind = 'nft'
    assert '6 samples a device, and ' in announce.crowded(config, 4)
    assert 'use a smaller one, or more devices' in announce.crowded(config, 4)
    config.optim.rows_per_device = 0  # nobody has said so
    assert announce.crowded(config, 4) == ''


def test_a_temperature_near_the_rounding_of_log_ratios_is_said():
    config = tiny_ocr.get_config('method=lire')
    assert announce.near_rounding(config, 768) == ''  # 2.6e-3 in float32
    config.model.dtype = 'bfloat16'
    assert announce.near_rounding(config, 768) == ''
    said = announce.near_rounding(config, 65536)
    assert 'the temperature 3.1e-05, and in bfloat16 they are rounded by up to 1e-05' in said
    assert said.endswith('loss.list_temperature=0.0001')
    config.loss.list_temperature = 1e-4
    assert announce.near_rounding(config, 65536) == ''
    config = tiny_ocr.get_config()
    config.model.dtype = 'bfloat16'
    assert announce.near_rounding(config, 65536) == ''


def test_a_clip_range_below_the_rounding_of_log_ratios_is_said():
    config = tiny_ocr.get_config('method=guard')
    assert announce.near_rounding(config, 768) == ''  # float32
    config.model.dtype = 'bfloat16'
    said = announce.near_rounding(config, 65536)
    assert said.startswith("loss.clip_range=2e-06 of loss.kind='guard' is within ten times")
    assert 'may reach 1e-05' in said
    config.loss.clip_range = 1e-4
    assert announce.near_rounding(config, 65536) == ''


@pytest.mark.parametrize(
    'recipe, model, few',
    [
        (flux2_klein_ocr, '', True),
        (flux2_klein_ocr, 'black-forest-labs/FLUX.2-klein-base-4B', False),
        (zimage_ocr, '', True),
        (zimage_pickscore, '', False),
        (flux_ocr, '', False),
        (flux_ocr, 'black-forest-labs/FLUX.1-schnell', True),
    ],
)
def test_a_distilled_model_at_all_noise_levels_is_said(recipe, model, few):
    for method, clean in (('nft', True), ('winners', True), ('flow_grpo', False)):
        config = recipe.get_config(f'devices=1,method={method}')
        config.model.path = model or config.model.path
        pipeline = open_shapes(config, make_mesh(config.mesh, jax.devices()[:1]))
        said = announce.off_the_grid(config, pipeline)
        assert ('distilled to few steps' in said) == (few and clean)


def test_a_run_says_so_when_it_begins(monkeypatch, caplog, tmp_path):
    config, seen = tiny_ocr.get_config(), []
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    checked = check(config, mesh, needs=('train', 'test', 'schedule'))
    monkeypatch.setattr(
        announce, 'too_much', lambda need, device, full: seen.append(set(need)) or 'it will not fit'
    )
    tx = optimiser(config, checked.pipeline.transformer)
    announce.announce(checked, state_shapes(checked.pipeline, tx), 5, tmp_path)
    assert seen == [set(announce.LOWERED_BY) - {announce.PROCESS}]
    assert [r.message for r in caplog.records if r.levelname == 'WARNING'] == ['it will not fit']


def test_what_the_guard_costs_and_cannot_tell():
    def told(**changes):
        config = tiny_geneval.get_config()
        config.update_from_flattened_dict({'guard.on': True, 'guard.kl_prompts': 8, **changes})
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        checked = check(config, mesh, needs=('test', 'schedule'))
        return announce.guarded_by(checked, check_guard(checked))

    said = told()
    # of 6 steps each: 32 x 4 images, 8 trajectories and twice their 5 trained transitions
    assert '7 evaluations of 32 prompts x 4 images, KL on 8: 128 more images' in said
    assert f'{128 * 6 + 8 * (6 + 2 * 5)} evaluations of the network ({128 * 6} at the' in said
    assert said.endswith('an alarm of the ratio before the first update alone: optim.updates=1')
    assert 'alarm' not in told(**{'optim.updates': 2})
    begun = {'full': False, 'lora.init_from': 'a.safetensors'}  # has a KL there
    assert 'at the start' not in told(**begun)
    assert told(**{'loss.kind': 'list'}).endswith("alone: loss.kind='list' clips none")
    without = {'rollout.kernel': 'ode', 'loss.kind': 'nft', 'credit.rule': 'sparse'}
    said = told(**without)
    assert 'KL' not in said and f'{128 * 6} evaluations of the network;' in said
    assert said.endswith("no alarm of the ratio: loss.kind='nft' has none")


def test_latents_of_an_update_are_counted():
    """Transitions have two ends; clean samples get their noise a microbatch at a time, whatever
    the number of draws.
    """
    mesh = make_mesh(tiny_ocr.get_config().mesh, jax.devices()[:1])

    def need(variant, **changes):
        config = tiny_ocr.get_config(variant)
        config.loss.update(changes)
        checked = check(config, mesh, needs=('schedule',))
        parts = checked.pipeline, checked.schedule, mesh, checked.pipeline.abstract_params()
        return announce.memory(config, *parts, {})[announce.RECORD]

    latent = 12 * 64 * 4  # 12 tokens, in float32
    assert need('') == 2 * 5 * 96 * latent  # five of six transitions are trained
    for draws in (1, 10):
        assert need('method=nft', draws=draws) == (96 + 3 * 96) * latent
    assert need('method=guard') == 3 * 5 * 96 * latent  # and the means


def test_a_larger_group_may_be_more_than_a_batch():
    """Of 16 and 32 samples where one prompt is sampled at a time: memory is reckoned for 32."""
    config = tiny_ocr.get_config('method=aegpo')
    config.rollout.update(group=24, prompts_per_batch=1)
    config.budget.ratio = 2.0
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    checked = check(config, mesh, needs=('schedule',))
    parts = checked.pipeline, checked.schedule, mesh, checked.pipeline.abstract_params()
    images = lambda: announce.memory(config, *parts, {})['images']
    assert samples_at_once(config) == 32
    larger = images()
    config.rollout.prompts_per_batch = 2
    assert samples_at_once(config) == 48
    config.budget.by = 'none'
    assert samples_at_once(config) == 48
    config.rollout.prompts_per_batch = 1
    assert larger == images() * 32 / 24
