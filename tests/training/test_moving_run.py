"""Runs whose trained transitions change: they equal the runs that they should, compile nothing when
they move, and continue with the same bits.
"""

import jax
import numpy as np
import pytest

from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import Rollout
from densegrpo_jax.core.rollout_plan import trajectory_plan
from densegrpo_jax.runtime.mesh import batch_sharding, make_mesh
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.training import rounds
from densegrpo_jax.training.learner import make_credit
from tests.programs import own_programs  # noqa: F401
from tests.training.small_run import SMOOTH, equal, make_config, trained

pytestmark = pytest.mark.usefixtures('exact_runs', 'own_programs')

SPARSE = {
    **SMOOTH,
    'credit.rule': 'sparse',
    'loss.noise_power': 1.0,
    'rollout.steps': 4,  # three of them are trained
    'rollout.shared_noise': True,
    'iterations': 1,
    'eval.every': 50,
}
ONE = {**SPARSE, 'iterations': 3, 'moving.steps': 'random_window', 'moving.width': 1}


def test_moving_compiles_nothing_and_continues_with_the_same_bits(folder, tmp_path, monkeypatch):
    made = []

    def kept(make):
        def making(*args):
            made.append(make(*args))
            return made[-1]

        return making

    monkeypatch.setattr(rounds, 'make_rollout', kept(rounds.make_rollout))
    monkeypatch.setattr(rounds, 'make_credit', kept(rounds.make_credit))
    (_, whole, _), metrics = trained(folder, tmp_path / 'whole', **ONE)
    places = [
        [int(k.rpartition('_')[2]) for k in row if k.startswith('advantage_abs/')]
        for row in metrics
    ]
    assert len(places) == 3 and all(len(place) == 1 for place in places)
    assert len({*map(tuple, places)}) > 1  # it moved
    assert [program._cache_size() for program in made] == [1, 1]
    calls = [row['train/nfe'] for row in metrics]
    assert calls == [4 * 16 * i for i in (1, 2, 3)]
    trained(folder, tmp_path / 'parts', **{**ONE, 'iterations': 1})
    (_, again, _), _ = trained(folder, tmp_path / 'parts', **ONE)
    equal(again, whole)


@pytest.mark.slow
def test_dense_credit_in_a_window_has_a_program_for_each_place(folder, tmp_path, monkeypatch):
    made = []
    make = rounds.make_rollout
    monkeypatch.setattr(rounds, 'make_rollout', lambda *a: made.append(a[2].plan) or make(*a))
    changes = {'credit.rule': 'dense', 'moving.steps': 'window', 'moving.stay': 1}
    _, metrics = trained(
        folder, tmp_path, **{**SPARSE, **changes, 'moving.width': 2, 'iterations': 2}
    )
    assert [plan.states for plan in made] == [(0, 1, 4), (1, 2, 4)]
    # the four samples of a prompt share the way to the window and the completion from its start
    nfe = [(1 + 3) / 4 + 3 + 2, (2 + 2) / 4 + 2 + 1]
    calls = [row['train/nfe'] for row in metrics]
    assert calls == [16 * sum(nfe[: i + 1]) for i in range(2)]


SIGMAS = np.float32([1, 0.8, 0.6, 0.3, 0])
P, G = 2, 8


def credited(sizes=(1, 1, 1), chosen=None):
    """A random rollout, its rewards, its record and metrics."""
    masks = step_masks(SIGMAS)
    plan, rng = trajectory_plan(masks), np.random.default_rng(0)
    per_step = lambda *shape: rng.random((4, P * G, *shape)).astype(np.float32)
    std = np.repeat(np.float32([[0.4], [0.1], [0.2], [0]]), P * G, 1)
    latents = rng.random((5, P * G, 3)).astype(np.float32)
    rollout = Rollout(
        latents=latents,
        s=per_step(),
        s_next=per_step(),
        log_prob=per_step(),
        std=std,
        noise_level=std,
        completions=latents[-1:],
        similarity=None,
        plan=plan,
    )
    mesh = make_mesh(dict(zip(('data', 'fsdp', 'tensor'), sizes)), jax.devices()[: np.prod(sizes)])
    placed = jax.tree.map(lambda a: jax.device_put(a, batch_sharding(mesh, 1)), rollout)
    config = make_config('unused', **SPARSE)
    config.rollout.update(prompts=P, group=G, prompts_per_batch=P)
    config.credit.std = 'pooled'
    rewards, ids = rng.random((1, P * G)).astype(np.float32), group_ids_of([G] * P)
    credit = make_credit(config, Schedule(SIGMAS, std[:, 0], masks, plan), mesh)
    valid = np.ones(rewards.shape, bool)
    return rollout, rewards, *credit([placed], rewards, valid, ids, None, chosen)


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2)])
def test_the_record_has_the_chosen_rows(sizes):
    """Steps 0 and 2 of three: their rows, weights of mean 1, advantages of these alone. The same on
    one device and on eight.
    """
    rollout, rewards, record, metrics = credited(sizes, np.int32([0, 2]))
    latents = rollout.latents
    np.testing.assert_array_equal(record.x, latents[[0, 2]].reshape(-1, 3))
    np.testing.assert_array_equal(record.x_next, latents[[1, 3]].reshape(-1, 3))
    np.testing.assert_array_equal(record.log_prob, rollout.log_prob[[0, 2]].reshape(-1))
    np.testing.assert_allclose(record.weight, np.repeat([4 / 3, 2 / 3], P * G), rtol=1e-6)
    groups = rewards.reshape(P, G)
    centred = (groups - groups.mean(1, keepdims=True)).reshape(-1)
    advantage = record.advantage['outcome'].reshape(2, -1)
    expected = centred / (np.sqrt(np.mean(centred**2)) + 1e-4)
    np.testing.assert_allclose(advantage, [expected] * 2, rtol=1e-4, atol=1e-5)
    assert np.isfinite(np.asarray(metrics['advantage_abs'])).tolist() == [True, False, True, False]


def test_all_chosen_is_what_is_trained_without_a_choice():
    whole, chosen = credited()[2:], credited(chosen=np.int32([0, 1, 2]))[2:]
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(chosen), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-7)
