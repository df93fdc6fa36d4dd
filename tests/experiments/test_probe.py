"""The probes on a random miniature with a cheap reward: tables and figures, the same rows after a
stop, the same trajectories for all.
"""

import functools
import pathlib

import jax
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.evaluation.panel import Policy
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.sampling.session import check, load_weights
from densegrpo_jax.sampling.state import init_state, optimiser
from experiments.reproduction import probe, probe_drawing, probe_statistics
from experiments.reproduction.measuring import with_overrides
from tests.meshes import one_device
from tests.programs import sharing
from tests.training.small_run import FEW_LAYERS

OVERRIDES = {
    'rollout.prompts': 2,
    'rollout.group': 4,
    'rollout.prompts_per_batch': 1,
    'rollout.steps': 3,
    'lora.rank': 2,
    'lora.targets': FEW_LAYERS,
    'model.height': 16,
    'model.width': 32,
    'reward_workers': 1,
}
DRAW = {
    'latent_rewards': probe_drawing.draw_latent_rewards,
    'bias': probe_drawing.draw_bias,
    'cost': probe_drawing.draw_cost,
}
METHODS = {name: probe.METHODS[name] for name in ('n = 3', 'n = 2', 'n = 1', 'every 2nd state')}
OPTIONS = {
    'latent_rewards': {},
    'bias': {'samples': 4, 'continuations': 3},
    'cost': {'methods': METHODS},
}


@pytest.fixture(scope='module', autouse=True)
def few_draws_and_programs():
    with pytest.MonkeyPatch.context() as patch, sharing((probe, 'make_rollout')):
        patch.setattr(probe_statistics, 'DRAWS', 30)
        yield


@pytest.fixture(scope='module')
def config(folder):
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict({**OVERRIDES, 'model.path': str(folder)})
    config.reward = {'jpeg': {'weight': 1.0}}  # a fast reward that differs between any two pictures
    return config


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
    """(name -> rows of an uninterrupted measurement, which is made once; its folder)."""
    workdir = tmp_path_factory.mktemp('whole')
    return functools.cache(lambda name: measure(name, config, workdir)), workdir


def measure(name, config, workdir, stop=None, **options):
    mesh = one_device()
    return getattr(probe, name)(
        config, workdir, mesh, stop or StopRequest(), prompts=3, **{**OPTIONS[name], **options}
    )


def equal(rows, expected):
    assert [list(row) for row in rows] == [list(row) for row in expected]
    for row, other in zip(rows, expected):
        for key in row:
            np.testing.assert_equal(row[key], other[key], err_msg=key)


def drawn(name, rows, folder):
    """The figure is made."""
    DRAW[name](rows, folder / f'{name}.png')
    return (folder / f'{name}.png').stat().st_size > 10_000


def test_the_rewards_of_states(whole, tmp_path):
    tables, _ = whole
    latent = tables('latent_rewards')
    assert [row['state'] for row in latent] == [0, 1, 2, 3] and latent[0]['samples'] == 12
    # The last transition is deterministic: the completion of state 2 is the sample.
    assert [row['difference'] == 0 for row in latent] == [False, False, True, True]
    assert latent[2]['rank_correlation'] == pytest.approx(1)
    assert drawn('latent_rewards', latent, tmp_path)


# How a trajectory continues from a state is tested in tests/core/test_rollout.py, what is made of
# the rewards in test_probe_statistics.py.
@pytest.mark.slow
def test_the_bias_of_completions(whole, tmp_path):
    tables, _ = whole
    bias = tables('bias')
    assert [row['state'] for row in bias] == [0, 1, 'all'] and bias[0]['continuation_std'] > 0
    assert drawn('bias', bias, tmp_path)


# What completions cost is tested in tests/core/test_rollout_cost.py.
@pytest.mark.slow
def test_the_cost_of_completions(whole, tmp_path):
    tables, _ = whole
    cost = tables('cost')
    # 3 of the trajectory; to complete states 0 and 1, whose first velocities are known, all steps
    # take 2 + 1 more, two steps 1 + 1.
    assert {row['method']: row['calls'] for row in cost} == {
        'n = t': 6,
        'n = 2': 5,
        'n = 1': 3,
        'every 2nd state': 5,
    }
    assert [
        cost[0][f'{name}_correlation'] for name in ('reward', 'gain', 'group_gain')
    ] == pytest.approx([1, 1, 1])
    assert all(row['group_gain_correlation'] < 1 for row in cost[1:] if row['method'] == 'n = 1')
    assert drawn('cost', cost, tmp_path)


@pytest.mark.slow
def test_what_has_been_measured_is_not_sampled_again(whole, config):
    tables, workdir = whole
    written = lambda: {p: p.stat().st_mtime_ns for p in (workdir / 'probe').rglob('*.npz')}
    rows = {name: tables(name) for name in DRAW}
    before = written()
    for name in DRAW:
        equal(measure(name, config, workdir), rows[name])
    assert before and written() == before


@pytest.mark.parametrize(
    'name',
    [
        name if name == 'latent_rewards' else pytest.param(name, marks=pytest.mark.slow)
        for name in DRAW
    ],
)
def test_a_stopped_measurement_continues(whole, config, tmp_path, monkeypatch, name):
    tables, _ = whole
    stop, put = StopRequest(), probe.BatchStore.put

    def stopping(store, start, **arrays):
        put(store, start, **arrays)
        stop.signal_name = 'SIGTERM'

    with monkeypatch.context() as patch:
        patch.setattr(probe.BatchStore, 'put', stopping)
        with pytest.raises(Preempted):
            measure(name, config, tmp_path, stop)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / 'probe').glob('*/batch_*.npz')}
    assert len(kept) == 1
    equal(measure(name, config, tmp_path), tables(name))
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.slow
def test_other_settings_and_other_policies_do_not_meet(whole, config):
    tables, workdir = whole
    tables('latent_rewards')
    folders = lambda: {path.name for path in (workdir / 'probe').iterdir()}
    before = folders()
    measure(
        'latent_rewards',
        with_overrides(config, {'credit.std': 'group', 'optim.learning_rate': 1.0}),
        workdir,
    )
    assert folders() == before  # neither touches a reward
    measure('latent_rewards', with_overrides(config, {'rollout.level': 0.3}), workdir)
    assert len(folders()) == len(before) + 1


@pytest.mark.slow
def test_a_checkpoint_is_another_policy(whole, config, monkeypatch):
    tables, workdir = whole
    asked = []

    def load(pipeline, config, mesh, folder, which):
        asked.append((folder, which))
        base = load_weights(check(config, mesh), ['transformer'])['transformer']
        tx = optimiser(config, pipeline.transformer)
        trained = init_state(pipeline, tx, jax.random.key(0), base).ema
        return jax.tree.map(lambda leaf: leaf + 0.3, trained), int(which)

    monkeypatch.setattr(probe, 'load_policy', load)
    rows = measure(
        'latent_rewards', config, workdir, policy=Policy('step 7', pathlib.Path('elsewhere'), 7)
    )
    assert asked == [(pathlib.Path('elsewhere'), '7')]
    assert all(row['reward'] != base['reward'] for row, base in zip(rows, tables('latent_rewards')))


@pytest.mark.slow
def test_a_method_may_not_change_the_trajectories(whole, config):
    _, workdir = whole
    with pytest.raises(ValueError, match="'louder' changed the trajectories"):
        measure('cost', config, workdir, methods={'louder': {'rollout.level': 0.9}})
    with pytest.raises(ValueError, match='credit.completions'):
        measure('cost', config, workdir, methods={'misspelt': {'credit.completions': 1}})


def test_a_noise_table_that_is_still_to_be_made_is_asked_for(config, tmp_path):
    with pytest.raises(ValueError, match='give noise.psi_path'):
        measure('bias', with_overrides(config, {'noise.calibrate': True}), tmp_path)
