"""The guard in runs of seconds: a reward that is trained on, and one that pays for the opposite."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from densegrpo_jax.config.reads import WARN
from densegrpo_jax.core.losses import LOSSES
from densegrpo_jax.guard.guard import Guard
from densegrpo_jax.guard.history import OTHER_CODE
from densegrpo_jax.rewards.remote.service import RewardService
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.sampling.session import Checked
from densegrpo_jax.training import run as run_module
from densegrpo_jax.training.run import run
from tests.guard.guarded import Same, trained
from tests.programs import shared_programs  # noqa: F401
from tests.rewards.loopback import serving
from tests.training.one_update import START, one_iteration
from tests.training.small_run import equal, final_state, one_device, rows

pytestmark = pytest.mark.usefixtures('exact_runs', 'shared_programs')


def test_a_fallen_score_keeps_a_checkpoint_from_being_the_best(config, tmp_path, caplog):
    """Warns, and leaves the training as it is without a guard."""
    config.guard.update(kl_prompts=2, kl_jump=1.0)
    summary = trained(config, tmp_path / 'run')
    of = summary['guard']['evaluations']
    assert [row['step'] for row in of] == [0, 1, 2, 3, 4, 5]
    assert of[0]['fallen'] == [] and of[-1]['fallen'] == ['darkness'] and of[-1]['kl'] > 0
    assert summary['after']['mean'] > summary['before']['mean']
    down = {row['step'] for row in of if row['fallen']}
    order = [step for step, *_ in sorted(summary['evaluations'], key=lambda e: e[1])]
    best = [step for step in order if step not in down][-1]
    assert order[-1] in down and 0 < best < order[-1]  # the highest is a fallen one
    checkpoints = Checkpoints(tmp_path / 'run' / 'checkpoints', read_only=True)
    assert summary['best']['step'] == checkpoints.best_step() == best
    last = [row for row in rows(tmp_path / 'run') if row['step'] == 5][0]
    assert last['guard/fallen'] == 1 and last['guard/darkness'] == pytest.approx(
        of[-1]['scores']['darkness'][0]
    )
    assert 'the KL grew from' in caplog.text
    page = sorted((tmp_path / 'run' / 'guard').glob('verdict_*.html'))[-1]
    assert 'darkness fell below the start' in page.read_text() and page.with_suffix('.png').exists()
    # four of eight prompts are shown, two pictures each, at the start and now
    assert 'All 2 pictures of each prompt' in page.read_text()
    strips = [np.asarray(Image.open(p)).shape for p in (page.parent / 'images').glob('*/*.png')]
    assert strips == [(16, 32 + 1 + 32, 3)] * 4 * 6
    config.guard.on = False
    trained(config, tmp_path / 'plain')
    equal(final_state(tmp_path / 'run')[1], final_state(tmp_path / 'plain')[1])


@pytest.mark.slow
def test_nothing_falls_where_nothing_is_lost(config, tmp_path):
    config.eval.panel = {'chance': {}}
    config.guard.images, config.guard.action, config.guard.level = 1, 'stop', 0.01
    summary = trained(config, tmp_path)
    of = summary['guard']['evaluations']
    assert [row['fallen'] for row in of] == [[]] * 6
    # the test has seen scores that move, and could have found a fall
    assert all(0 < p < 1 for row in of[1:] for _, _, _, p, _ in [row['scores']['chance']])
    assert summary['best']['step'] == max(summary['evaluations'], key=lambda e: e[1])[0]
    assert not list((tmp_path / 'guard').glob('verdict_*'))


def test_stop_ends_the_run_and_warn_continues_it(config, tmp_path, caplog):
    config.guard.action = 'stop'
    summary = trained(config, tmp_path)
    stopped = summary['updates']
    assert stopped < 5 and summary['guard']['stopped']
    assert len([row for row in summary['guard']['evaluations'] if row['fallen']]) == 2
    assert trained(config, tmp_path)['updates'] == stopped
    config.guard.action = 'warn'
    assert trained(config, tmp_path)['updates'] == 5


def test_the_brake_continues_bit_for_bit(config, tmp_path):
    """From a stop between the two falls that let it act, and without what it had measured."""
    config.guard.action = 'brake'
    summary = trained(config, tmp_path / 'whole')
    of = summary['guard']['evaluations']
    first, second, *_ = [row['step'] for row in of if row['fallen']]
    assert [row['step'] for row in of if row['action'] == 'brake'] == [second]
    assert second == first + 1 < 5 and summary['guard']['brake'] == 0.5
    shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
    shutil.rmtree(tmp_path / 'cut' / 'guard')
    for step in range(second, 6):
        shutil.rmtree(tmp_path / 'cut' / 'checkpoints' / str(step))
    assert trained(config, tmp_path / 'cut')['guard'] == summary['guard']
    equal(final_state(tmp_path / 'cut')[1], final_state(tmp_path / 'whole')[1])


@pytest.mark.parametrize(('kind', 'beta'), [('rate', 0.0), ('beta', 0.5)])
def test_the_brake_in_an_update(kind, beta):
    """Half the step; twice the weight of the KL."""

    def moved_by(beta, brake=None):
        on = {'guard.on': True, 'guard.action': 'brake', 'guard.brake': kind}
        further = () if brake is None else (np.float32(brake),)
        changes = {'loss.beta': beta, **(on if further else {})}
        *_, state, _ = one_iteration(further=further, **changes)
        return np.asarray(state.policy['a']) - START

    moved = {'plain': moved_by(beta), 'one': moved_by(beta, 1.0), 'half': moved_by(beta, 0.5)}
    doubled = moved_by(2 * beta)
    np.testing.assert_allclose(moved['one'], moved['plain'], rtol=1e-6)
    if kind == 'rate':
        np.testing.assert_allclose(moved['half'], 0.5 * moved['plain'], rtol=1e-6)
    else:
        assert np.abs(moved['half'] - moved['plain']).max() > 1e-6
        np.testing.assert_allclose(moved['half'], doubled, rtol=1e-6)


OF_LOSS = {
    'list': {'loss.list_temperature': 0.01, 'credit.rule': 'sparse'},
    'pair': {'rollout.shared_noise': True},
    **dict.fromkeys(['nft', 'winners'], {'credit.rule': 'sparse'}),
}


@pytest.mark.parametrize('kind', LOSSES)
def test_the_brake_halves_the_step_of_every_loss(kind):
    microbatch = {'optim.microbatch': 24} if LOSSES[kind].trajectories else {}
    changes = {'loss.kind': kind, **OF_LOSS.get(kind.partition('_')[0], {}), **microbatch}
    on = {'guard.on': True, 'guard.action': 'brake', 'guard.brake': 'rate'}

    def moved_by(brake):
        *_, state, _ = one_iteration(further=(np.float32(brake),), **changes, **on)
        return np.asarray(state.policy['a']) - START

    whole = moved_by(1.0)
    assert np.abs(whole).max() > 0
    np.testing.assert_allclose(moved_by(0.5), 0.5 * whole, rtol=1e-5, atol=3e-9)  # of START


def test_a_stop_while_the_guard_measures_is_made_up_for(config, tmp_path, monkeypatch):
    config.guard.kl_prompts, config.iterations = 2, 2
    stop, measured = StopRequest(), Guard._kl

    def stopped(self, policy, key):
        stop.signal_name = 'SIGTERM'
        stop.check()

    monkeypatch.setattr(Guard, '_kl', stopped)
    with pytest.raises(Preempted):
        run(config, tmp_path, one_device(), stop)
    monkeypatch.setattr(Guard, '_kl', measured)
    summary = trained(config, tmp_path)
    assert [row['step'] for row in summary['guard']['evaluations']] == [0, 1, 2]
    assert [step for step, *_ in summary['evaluations']] == [0, 1, 2]


@pytest.mark.slow
def test_a_policy_that_was_trained_anew_is_measured_anew(config, tmp_path):
    config.iterations = 1
    first = trained(config, tmp_path)['guard']['evaluations'][-1]['scores']
    shutil.rmtree(tmp_path / 'checkpoints')
    config.optim.learning_rate = 0.3
    again = trained(config, tmp_path)['guard']['evaluations'][-1]['scores']
    assert again['darkness'][0] != first['darkness'][0]


def test_the_start_is_measured_anew_if_the_base_is_another(config, tmp_path, monkeypatch):
    """With a record of an earlier version, which does not tell the weights of the base."""
    config.iterations = 1
    trained(config, tmp_path)
    shutil.rmtree(tmp_path / 'checkpoints')
    scores = tmp_path / 'guard' / 'scores.jsonl'
    first, _, rest = scores.read_text().partition('\n')
    settings = json.loads(first)['settings']
    del settings['weights of the base']
    scores.write_text(json.dumps({'settings': settings}) + '\n' + rest)
    monkeypatch.setattr(Checked, 'base_digest', 'other')
    trained(config, tmp_path)
    lines = scores.read_text().splitlines()
    policies = {json.loads(line).get('policy', '') for line in lines}
    assert len([name for name in policies if name.startswith('start ')]) == 2


def test_what_no_guard_has_seen_competes_no_more(config, tmp_path):
    """Each update is worse than the one before; the guard begins with the second, and what it
    measures comes from a server.
    """
    config.reward = {'brightness': {'weight': 1.0}, 'darkness': {'weight': 1e-9}}
    config.eval.best, config.eval.panel = 'darkness', {}
    config.iterations, config.guard.on, config.guard.images = 1, False, 1
    trained(config, tmp_path)
    kept = lambda: Checkpoints(tmp_path / 'checkpoints', read_only=True)
    assert kept().best_step() == 1
    config.guard.on = True
    with serving(RewardService(Same(), 'f00', '0').app) as urls:
        remote = {'urls': urls, 'names': ('same',), 'range': (0.0, 1.0)}
        config.eval.panel = {'remote': remote}
        trained(config, tmp_path)  # nothing is left to measure, and nothing is withdrawn
        assert kept().best_step() == 1
        config.iterations = 2
        summary = trained(config, tmp_path)
    scores = [score for _, score, _ in summary['evaluations']]
    assert scores[0] > scores[1] > scores[2]
    (row,) = summary['guard']['evaluations']
    assert row['step'] == 2 and row['scores']['same'][:2] == [1.0, 0.0]
    assert summary['best']['step'] == kept().best_step() == 2
    assert kept().meta(1)['evaluations'] == summary['evaluations'][:2]  # amended, not lost
    config.iterations = 3  # the server's code is another: as if no guard had seen update 2
    with serving(RewardService(Same(), 'f01', '0').app) as urls:
        config.eval.panel.remote.urls = urls
        summary = run(config, tmp_path, one_device(), StopRequest(), own_code=WARN)
    rows = summary['guard']['evaluations']
    assert [row.get(OTHER_CODE) for row in rows] == [True, None]
    assert [row['code']['servers of rewards']['same'] for row in rows] == ['f00', 'f01']
    assert summary['best']['step'] == kept().best_step() == 3 and 'other_code' not in summary


def test_a_record_that_cannot_be_used_is_refused_before_anything_is_loaded(
    config, tmp_path, monkeypatch
):
    def load(*given):
        raise NotImplementedError('loaded')

    monkeypatch.setattr(run_module, 'load', load)
    with pytest.raises(NotImplementedError, match='loaded'):
        trained(config, tmp_path)
    config.eval.panel = {'same': {}}
    with pytest.raises(ValueError, match='darkness.* go back to those, or remove .*guard'):
        trained(config, tmp_path)
    (tmp_path / 'guard' / 'scores.jsonl').write_text('{}\n')
    with pytest.raises(ValueError, match=r'scores.jsonl:1 is damaged .*; remove .*guard: then'):
        trained(config, tmp_path)
