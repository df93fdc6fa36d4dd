"""The programs that a plan writes down are those of the configuration's loss."""

import functools

import jax
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.config.moving_keys import budget_sizes
from densegrpo_jax.core.losses import CLEAN, LOSSES, Loss, loss_sums
from densegrpo_jax.core.roles import REF
from densegrpo_jax.planning.lowering import phases
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import open_base
from tests.meshes import data_mesh, one_device


@functools.cache
def planned(mesh, **changes):
    """Phases and schedule; tests share them."""
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict(
        {'model.height': 16, 'model.width': 32, 'model.scan': True, 'optim.microbatch': 48}
        | changes
    )
    config.reward = {'pixels': {}}
    _, pipeline = open_base(config, mesh)
    schedule = make_schedule(pipeline, config)
    return phases(config, pipeline, schedule, mesh), schedule


def update_of(mesh, **changes):
    found, schedule = planned(mesh, **changes)
    return found['update'], schedule


def test_an_update_is_that_of_its_batch_and_roles(monkeypatch):
    regression = lambda outputs, batch: loss_sums(batch.s, batch.mask)
    monkeypatch.setitem(LOSSES, 'regression', Loss(regression, CLEAN, needs=(REF,)))
    mesh = one_device()
    of_steps, schedule = update_of(mesh)
    of_samples, _ = update_of(
        mesh, **{'loss.kind': 'regression', 'credit.rule': 'sparse', 'loss.noise_power': 0.0}
    )
    steps = int(np.sum(schedule.masks.trained))
    # a forward and a backward pass a step; and one more forward pass, of the reference, a sample
    np.testing.assert_allclose(of_steps.flops / of_samples.flops, steps * 2 / 3, rtol=1e-6)


def test_a_process_reward_is_part_of_the_rollout():
    """Its gradients count as much as their forward passes: of the base network for a probe, of
    network and decoder for the reward of predicted images.
    """
    mesh = one_device()
    sparse = {'credit.rule': 'sparse'}
    plain = planned(mesh, **sparse)[0]['rollout']
    guided = {**sparse, 'guide.steps': (3, 4), 'credit.process': 'after'}
    probe = planned(mesh, **guided, **{'guide.source': 'probe', 'guide.file': 'x'})[0]['rollout']
    value = planned(mesh, **guided, **{'guide.source': 'value'})[0]['rollout']
    spsa = planned(mesh, **guided, **{'guide.source': 'spsa'})[0]['rollout']
    # 6 evaluations and an image; with a probe 3 of the base and 2 gradients; 3 images and 2
    # gradients; 2 times 2 images and 2 more that are scored
    network = (probe.flops - plain.flops) / 5
    decoding = (spsa.flops - plain.flops) / 6
    np.testing.assert_allclose(6 * network + decoding, plain.flops, rtol=1e-6)
    expected = plain.flops + 3 * decoding + 2 * (network + decoding)
    np.testing.assert_allclose(value.flops, expected, rtol=1e-6)
    assert value.lowered is not None  # with its drift it is one program


def test_an_evaluation_is_that_of_the_batches_it_takes():
    """Of all its prompts if they are fewer than eval.batch, and of the guard's images, if they are
    more: with 2 prompts on 4 devices each draws one. Operations are those of the evaluation.
    """
    mesh = data_mesh(4)
    sparse = {'credit.rule': 'sparse', 'eval.batch': 16}
    few = {'data.eval_prompts': 2}
    guard = {'guard.on': True, 'guard.prompts': 3, 'guard.images': 4}
    changes = {'all': {}, 'few': few, 'guarded': few | guard}
    found = {name: planned(mesh, **sparse, **more)[0] for name, more in changes.items()}
    found = {name: phases['evaluation'] for name, phases in found.items()}
    drawn = {name: phase.lowered.out_info[0].shape[0] for name, phase in found.items()}
    assert drawn == {'all': 16, 'few': 2, 'guarded': 12}
    of_all = found['all'].flops / 4
    assert [found[name].flops for name in ('few', 'guarded')] == pytest.approx([of_all] * 2)
    assert found['few'].runs == 1 / tiny_ocr.get_config().eval.every


def test_the_attention_probe_is_a_program_of_its_own():
    """T evaluations of the policy and T of the base, a row for each prompt. With one prompt a batch
    the rollout that is lowered is that of the larger group.
    """
    mesh = one_device()
    sparse, config = {'credit.rule': 'sparse'}, tiny_ocr.get_config()
    r, e = config.rollout, config.eval
    steps = {'moving.steps': 'entropy', 'moving.width': 2, 'budget.by': 'entropy'}
    one = {'rollout.prompts_per_batch': 1}
    plain, probed = planned(mesh, **sparse)[0], planned(mesh, **sparse, **steps, **one)[0]
    assert 'probe' not in plain and next(iter(probed)) == 'probe'
    network = probed['probe'].flops / (2 * r.steps)
    decoding = plain['evaluation'].flops / e.batch - e.steps * network
    expected = r.prompts_per_batch * r.group * (r.steps * network + decoding)
    np.testing.assert_allclose(plain['rollout'].flops, expected, rtol=0.01)  # adapters are few
    each = probed['rollout'].flops * r.prompts_per_batch
    np.testing.assert_allclose(each, plain['rollout'].flops, rtol=1e-6)
    assert probed['probe'].runs == probed['rollout'].runs == r.prompts
    assert probed['probe'].lowered is not None
    _, images, _ = probed['rollout'].lowered.out_info
    assert images.shape[1] == budget_sizes(r.group, config.budget.ratio)[1] > r.group


def test_windows_with_plans_of_their_own_are_counted_as_they_run():
    """A window of three of five: the mean of its places, and the largest program, which completes
    three states.
    """
    mesh = one_device()
    every, sparse = planned(mesh)[0], planned(mesh, **{'credit.rule': 'sparse'})[0]
    found, _ = planned(mesh, **{'moving.steps': 'window', 'moving.width': 3})
    # sparse: 6 evaluations and an image; dense: 15 evaluations and 5 images more
    network = (6 * sparse['rollout'].flops - every['rollout'].flops) / 15
    decoding = sparse['rollout'].flops - 6 * network
    # from place 0: 5 + 4 + 3 more; from 1: 4 + 3 + 2; from 2: 3 + 2 + 1
    expected = (6 + 9) * network + 4 * decoding
    np.testing.assert_allclose(found['rollout'].flops, expected, rtol=1e-6)
    np.testing.assert_allclose(found['update'].flops, every['update'].flops * 3 / 5, rtol=1e-6)
    _, images, _ = found['rollout'].lowered.out_info
    assert len(images.shape) == 5 and images.shape[0] == 4
    drifting, _ = planned(
        mesh,
        **{'moving.steps': 'window', 'moving.width': 3, 'credit.process': 'gain'},
        **{'guide.steps': (3, 4), 'guide.source': 'value'},
    )
    # 0, 1 and 2 gradients; 0, 2 and 3 images
    expected += network + decoding + 5 / 3 * decoding
    np.testing.assert_allclose(drifting['rollout'].flops, expected, rtol=1e-6)


def test_the_brake_of_a_guard_is_an_argument_of_the_update():
    mesh = one_device()
    plain = planned(mesh)[0]['update']
    braked = planned(mesh, **{'guard.on': True, 'guard.action': 'brake'})[0]['update']
    assert len(jax.tree.leaves(braked.lowered.args_info)) == 1 + len(
        jax.tree.leaves(plain.lowered.args_info)
    )
