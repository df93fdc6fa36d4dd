"""Euphonium: two advantages whose surrogates are added, the degenerate cases that are other methods
to the bit, and runs that continue with the process reward that they began with.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.core.guide import Guide, process_credit, reward_shift
from densegrpo_jax.planning.lowering import phases
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.process_reward import Probe, probe_settings, write_probe
from densegrpo_jax.sampling.session import check
from densegrpo_jax.training.run import run
from tests.training.formulas import TRAINED, Steps, follows, group_advantages
from tests.training.one_update import GROUP, PROMPTS, SIGMAS, START, one_iteration
from tests.training.small_run import (
    SMOOTH,
    Brightness,
    final_state,
    make_config,
    moved_alike,
    one_device,
    rows,
)

pytestmark = pytest.mark.usefixtures('exact_runs')

GUIDED = (2, 3)
TARGET = np.random.default_rng(5).standard_normal((3, 4)).astype(np.float32)


def reward(x, s):
    return -0.5 * ((x - TARGET) ** 2).sum((1, 2))


def with_gradient(x, s, k, v):
    return reward(x, s), TARGET - x


def guide(of):
    """Of the steps 2 and 3, which the process reward of their ends, or of both ends, credits."""
    states = {'none': (), 'after': (3, 4), 'before': (2, 3), 'gain': (2, 3, 4)}[of]
    return Guide(
        with_gradient,
        lambda g, std, *_: reward_shift(g, std, 0.5),
        GUIDED,
        states,
        score=lambda x, x0hat, s: reward(x, s),
    )


CHANGES = {'credit.rule': 'sparse', 'optim.microbatch': 24}


@pytest.mark.parametrize('of', ['after', 'before', 'gain'])
@pytest.mark.parametrize('invalid, updates', [(None, 1), (7, 2)])
def test_two_advantages_have_a_surrogate_each(of, invalid, updates):
    """Against the formula in float64, off policy in the second update: the surrogates are added,
    not the advantages, which clipping tells apart.
    """
    weights = {'credit.outcome_weight': 0.7, 'credit.process_weight': 1.6}
    changes = {**CHANGES, **weights, 'credit.process': of, 'optim.updates': updates}
    c, rollout, rewards, valid, new, metrics = one_iteration(invalid, guide=guide(of), **changes)
    steps, keep = Steps(rollout), valid.all(0)
    outcome = group_advantages(c, rewards[-1], keep)
    r = np.stack([reward(rollout.latents[k], 0) for k in range(6)])
    credit = np.asarray(process_credit(r, of))

    def loss(policy, used):
        total = 0.0
        for k in range(TRAINED):
            moved = steps.log_prob(policy, k) - steps.log_prob(np.float64(START), k)
            ratio = jnp.exp(moved)
            clipped = jnp.clip(ratio, 1 - c.loss.clip_range, 1 + c.loss.clip_range)
            process = group_advantages(c, credit[k], keep) if k in GUIDED else 0 * outcome
            for weight, advantage in ((0.7, outcome), (1.6, process)):
                worse = jnp.maximum(-ratio * advantage, -clipped * advantage)
                total += weight * jnp.where(used, worse, 0).sum()
        return total / (TRAINED * used.sum())

    follows(c, loss, keep, new, tolerance=2e-4)
    assert metrics['transitions'] == TRAINED * keep.sum()
    assert metrics['ratio_deviation_first'] <= 1e-6


def test_the_update_is_the_same_over_eight_devices():
    changes = {**CHANGES, 'credit.process': 'gain', 'optim.updates': 2}
    *_, alone, before = one_iteration(7, guide=guide('gain'), **changes)
    *_, split, metrics = one_iteration(7, sizes=(2, 2, 2), guide=guide('gain'), **changes)
    moved, found = (np.asarray(state.policy['a']) - START for state in (alone, split))
    np.testing.assert_allclose(found, moved, atol=2e-5 * np.abs(moved).max())
    for name in before:
        np.testing.assert_allclose(metrics[name], before[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_without_weight_and_drift_it_is_sparse():
    """To rounding: they are two programs."""
    still = dataclasses.replace(guide('after'), shift=lambda g, *_: 0 * g)
    changes = {'credit.process': 'after', 'credit.process_weight': 0.0}
    *_, plain, _ = one_iteration(**CHANGES)
    *_, found, _ = one_iteration(guide=still, **CHANGES, **changes)
    moved = plain.policy['a'] - START
    np.testing.assert_allclose(
        found.policy['a'] - START, moved, atol=1e-5 * np.abs(moved).max(), rtol=1e-5
    )


def test_the_first_gradient_is_that_of_noise_and_drift():
    """On policy it is the sum of A (z + shift / std) d mean / std: against the transitions as they
    were drawn, with their drift, in float64.
    """
    c, rollout, rewards, valid, new, _ = one_iteration(guide=guide('none'), **CHANGES)
    steps = Steps(rollout)
    advantage = group_advantages(c, rewards[-1], valid.all(0))

    def aligned(policy):
        total = 0.0
        for k in range(TRAINED):
            z_and_drift = (steps.x_next[k] - steps.mean(np.float64(START), k)) / steps.std[k]
            total += (
                advantage * (z_and_drift * steps.mean(policy, k) / steps.std[k]).mean((1, 2))
            ).sum()
        return total / (TRAINED * PROMPTS * GROUP)

    with jax.enable_x64(True):
        expected = np.asarray(jax.grad(aligned)(np.float64(START)))  # uphill: descent of the loss
    found = new.policy['a'] - START
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    for k in GUIDED:  # and the drift is there
        sigma = np.float32(SIGMAS[k] - SIGMAS[k + 1])
        assert sigma > 0 and (np.asarray(rollout.drift[k]) > 0.1).all()


def test_the_process_reward_must_have_been_sampled():
    with pytest.raises(ValueError, match="credit.process='after' needs rollouts with a process"):
        one_iteration(**CHANGES, **{'credit.process': 'after'})


STEPS = {'guide.steps': (1, 2)}
EUPHONIUM = {
    **METHODS['euphonium'].overrides,
    **SMOOTH,
    'rollout.steps': 4,  # three of them are trained, two of these in an iteration
    'moving.fraction': 0.7,
    **STEPS,
    'iterations': 1,
    'eval.every': 50,
}


def config_of(folder, **changes):
    config = make_config(folder, **changes)
    config.reward = {'brightness': {'weight': 1.0}}
    return config


def trained(folder, workdir, mesh=None, **changes):
    run(config_of(folder, **changes), workdir, mesh or one_device(), StopRequest())
    return final_state(workdir)[1], [row for row in rows(workdir) if 'train/reward' in row]


@pytest.fixture(scope='module')
def file(folder, tmp_path_factory):
    """A probe of this base, reward and grid, as the command writes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, 'brightness', Brightness)
        checked = check(config_of(folder, **EUPHONIUM), one_device(), needs=('schedule',))
        settings = probe_settings(
            checked.config,
            checked.folder,
            checked.pipeline,
            checked.schedule.sigmas,
            checked.reward,
        )
    hidden = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    path = tmp_path_factory.mktemp('probe') / 'process.npz'
    write_probe(path, Probe(hidden, np.float32([0, 1, 1]), settings, {}))
    return path


OFF = {**EUPHONIUM, 'guide.scale': 0.0, 'credit.process': 'none'}  # no file is read
DANCE = {
    **METHODS['dance'].overrides,
    **{k: v for k, v in EUPHONIUM.items() if k not in METHODS['euphonium'].overrides | STEPS},
    'rollout.level': 0.25,
    'moving.fraction': 0.7,
}


def test_with_lambda_0_its_program_is_that_of_dance(folder):
    """Letter by letter; so are plan and schedule, which decide credit and update."""
    found = []
    for changes in (OFF, DANCE):
        config = config_of(folder, **changes)
        checked = check(config, one_device(), needs=('schedule', 'process_reward'))
        assert checked.process_reward is None and checked.schedule.guide_steps == ()
        found.append((phases(config, checked.pipeline, checked.schedule, one_device()), checked))
    (off, a), (dance, b) = found
    for name in ('rollout', 'update'):
        assert off[name].lowered.as_text() == dance[name].lowered.as_text()
    assert a.schedule.plan == b.schedule.plan
    np.testing.assert_array_equal(a.schedule.noise_levels, b.schedule.noise_levels)


@pytest.mark.slow
def test_with_lambda_0_a_run_is_one_of_dance_to_the_bit(folder, tmp_path):
    expected, _ = trained(folder, tmp_path / 'dance', **DANCE)
    found, _ = trained(folder, tmp_path / 'off', **OFF)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.slow
def test_a_run_continues_with_the_same_bits_and_the_same_probe(folder, file, tmp_path):
    given = {**EUPHONIUM, 'guide.file': str(file)}
    whole, metrics = trained(folder, tmp_path / 'whole', **{**given, 'iterations': 3})
    trained(folder, tmp_path / 'parts', **given)
    moved = tmp_path / 'moved.npz'
    moved.write_bytes(file.read_bytes())  # another path of the same probe
    again = {**given, 'guide.file': str(moved), 'iterations': 3}
    found, _ = trained(folder, tmp_path / 'parts', **again)
    for name in whole:
        np.testing.assert_array_equal(found[name], whole[name], err_msg=name)
    # 4 evaluations of a trajectory, and the base at the states 1, 2 and 3
    assert [row['train/nfe'] for row in metrics] == [16 * 7 * i for i in (1, 2, 3)]
    for row in metrics:
        chosen = {int(k[-1]) for k in row if k.startswith('advantage_abs/')}
        assert {int(k[-1]) for k in row if k.startswith('process/')} == chosen & {1, 2}
        assert {int(k[-1]) for k in row if k.startswith('drift/')} == {1, 2}
        assert row['drift/step_1'] == pytest.approx(0.25 * np.sqrt(1 / 4), rel=1)
        assert row['train/ratio_deviation_first'] <= 1e-6
    other = np.load(moved)
    held = {name: other[name] for name in other.files}
    held['hidden'] = -held['hidden']
    np.savez(moved, **held)
    with pytest.raises(ValueError, match='process reward'):
        trained(folder, tmp_path / 'parts', **{**again, 'iterations': 4})


@pytest.mark.slow
def test_an_iteration_on_eight_devices_moves_as_on_one(folder, file, tmp_path):
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}, jax.devices())
    given = {**EUPHONIUM, 'guide.file': str(file), 'ema.every': 8}
    alone, before = trained(folder, tmp_path / 'alone', **given)
    split, metrics = trained(folder, tmp_path / 'split', mesh, **given)
    # a pixel that rounds the other way moves a reward
    moved_alike(split, alone, 2e-2)
    guided = [n for n in before[-1] if n.startswith(('drift/', 'process/'))]
    assert len(guided) > 2
    for name in guided:
        np.testing.assert_allclose(metrics[-1][name], before[-1][name], rtol=1e-3, err_msg=name)
