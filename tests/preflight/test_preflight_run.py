"""The preflight of a small random model, from the command's work to its page."""

import json

import numpy as np
import pytest

from densegrpo_jax.core.kernels import SIGMA
from densegrpo_jax.core.noise_tables import NOISE_TABLES, NoiseTable
from densegrpo_jax.guard.check import GuardCost
from densegrpo_jax.preflight import page, record
from densegrpo_jax.preflight import run as run_module
from densegrpo_jax.preflight.costs import Cost, cost, of_run
from densegrpo_jax.preflight.measure import Spent
from densegrpo_jax.preflight.run import run
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.rewards.remote.service import RewardService
from densegrpo_jax.runtime.files import RECORD
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.sampling.session import Checked, open_base
from tests.meshes import data_mesh
from tests.programs import shared_programs, sharing  # noqa: F401
from tests.rewards.loopback import serving
from tests.training.small_run import Brightness, make_config, one_device

pytestmark = pytest.mark.usefixtures('shared_programs')

SIZE = dict(prompts=4, group=4)


@pytest.fixture(scope='module', autouse=True)
def a_reward_of_brightness():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, 'brightness', Brightness)
        yield


@pytest.fixture
def config(folder):
    return of_brightness(folder)


@pytest.fixture(scope='module')
def two_steps(folder, tmp_path_factory):
    """The preflight of two steps on one device."""
    config = of_brightness(folder)
    config.rollout.steps = 2
    with sharing():
        return preflight(config, tmp_path_factory.mktemp('two') / 'steps')


def of_brightness(folder):
    found = make_config(folder, reward_workers=1)
    found.reward = {'brightness': {'weight': 1.0}}
    return found


def preflight(config, out, mesh=None, **size):
    return run(config, out, mesh or one_device(), StopRequest(), **{**SIZE, **size})


def test_a_preflight_from_model_to_page(config, tmp_path, monkeypatch):
    found = preflight(config, tmp_path / 'a')
    assert found['own'] == 'dense' and {c['credit'] for c in found['credits']} == {
        'sparse', 'dense', 'dense 1', 'gae 0.5', 'coca',
    }  # fmt: skip
    cost = {c['credit']: c['cost'] for c in found['credits']}
    # T = 3: completions of states 0, 1, 2 take 2, 1, 0 more than the state's own velocity
    assert (cost['sparse']['nfe'], cost['dense']['nfe'], cost['dense 1']['nfe']) == (3, 6, 3)
    assert (cost['sparse']['images'], cost['dense']['images']) == (1, 3)
    # adapters: two trained transitions, each forward and backward
    assert cost['dense']['update'] == 2 * 2
    run = found['run']
    # 3 iterations of 16 samples; evaluations of 8 prompts by 2 steps at 0, 2 and 3
    assert run['samples'] == 16 and run['evaluations'] == 3
    assert run['nfe'] == 16 * 6 * 3 + 3 * 8 * 2 and run['images'] == 16 * 3 * 3 + 3 * 8
    seconds = 3 * sum(run['phases'].values()) + 3 * run['evaluation']
    assert run['hours'] == pytest.approx(seconds / 3600)
    # G2RPO's: two states of a shared trajectory, and a branch from each with its completion
    assert (found['branches']['nfe'], found['branches']['images']) == (2 / 4 + 2 + 1, 2)
    assert found['reward']['scores'].keys() == {'total', 'brightness'}
    document = json.loads((tmp_path / 'a' / 'preflight.json').read_text())
    assert len(document['decided']['steps']) == 3 and document['prompts'] == 4
    assert document['images'] == {'failed': 0, 'used': 1, 'prompts': 4}
    levels, moved = np.array(document['noise_levels']), np.array(document['calibrated_once'])
    assert set(np.round(np.abs(np.log(moved[:2] / levels[:2])), 6)) <= {0.05, 0}
    assert levels[2] == moved[2] == 0
    shown = (tmp_path / 'a' / 'index.html').read_text()
    assert '<script' not in shown and 'images/path_000.png' in shown
    told = '\n'.join(page.lines(found))
    for words in ('signal / NFE', 'squared correlation of a credit and', 'recipe, z = 1',
                  'rank, n = t', 'peak memory', 'not counted: compilation', 'not advice'
                  ):  # fmt: skip
        assert words in told
        assert words in shown.lower() or words in shown
    assert (tmp_path / 'a' / 'images' / 'group_003.png').exists()

    # a stopped preflight continues, and gives the same
    kept = (tmp_path / 'a' / record.FILE).read_text().splitlines(keepends=True)
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / record.FILE).write_text(''.join(kept[:3]) + kept[3][:20])
    again = preflight(config, tmp_path / 'b')
    for name in ('decided', 'signal', 'reward', 'rank_correlation', 'gains'):
        assert repr(again[name]) == repr(found[name])

    with monkeypatch.context() as patch:
        patch.setattr(Checked, 'base_digest', 'other')
        with pytest.raises(ValueError, match="weights of the base: .* now 'other'"):
            preflight(config, tmp_path / 'b')
    config.rollout.level = 0.3
    with pytest.raises(ValueError, match='rollout.level.*give another --workdir'):
        preflight(config, tmp_path / 'b')


def test_an_update_counts_as_the_plan_counts_it(config):
    pipeline = open_base(config, one_device())[1]
    for changes, passes in (
        ({}, 2),
        ({'full': True}, 3),
        ({'loss.beta': 0.1}, 3),
        ({'model.remat': 'full', 'loss.measure_kl': True}, 4),
    ):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        assert cost(changed, pipeline).update == 2 * passes  # of three transitions two are trained


def test_with_guidance_a_velocity_is_two_evaluations(config, monkeypatch):
    pipeline = open_base(config, one_device())[1]
    one, speed = cost(config, pipeline), Spent(nfe=1, network_s=1)
    alone = of_run(config, pipeline, one, speed, 8, GuardCost(3, 16, 4, 60, 50))
    monkeypatch.setattr(type(pipeline), 'takes_negative', lambda self, guidance: True)
    two = cost(config, pipeline)
    assert two == Cost(2 * one.nfe, one.images, 2 * one.update)
    guided = of_run(config, pipeline, two, speed, 8, GuardCost(3, 16, 4, 60, 50))
    assert guided.nfe == 2 * alone.nfe and guided.hours == pytest.approx(2 * alone.hours)
    config.loss.cfg = False  # the update's network is not guided
    assert cost(config, pipeline) == two._replace(update=one.update)


def test_the_guard_is_counted(config):
    """At one second an evaluation of the network and ten an image."""
    pipeline, own = open_base(config, one_device())[1], Cost(nfe=6, images=3, update=4)
    speed = Spent(nfe=1, network_s=1, images=1, image_s=10)
    without = of_run(config, pipeline, own, speed, 8, None)
    assert (without.guarded, without.guard) == (0, 0) and "guard's" not in str(without.uncounted)
    guard = GuardCost(evaluations=3, images=16, kl_prompts=4, nfe=60, start_nfe=50)
    found = of_run(config, pipeline, own, speed, 8, guard)
    assert (found.guarded, found.guard) == (3, 60 + 160)
    assert (found.nfe - without.nfe, found.images - without.images) == (170, 48)
    assert found.hours - without.hours == pytest.approx((170 + 3 * 160) / 3600)
    assert "guard's panel" in str(found.uncounted)


@pytest.mark.slow
def test_a_step_that_alone_decides_the_reward_is_found(config, tmp_path, monkeypatch):
    """The noise of the others is next to nothing, so that the planted step decides every reward."""
    spike = NoiseTable(lambda sigmas, level: np.array([1e-3, level, 1e-3, 1e-3]), SIGMA)
    monkeypatch.setitem(NOISE_TABLES, 'spike', spike)
    config.update_from_flattened_dict(
        {'rollout.steps': 4, 'rollout.noise': 'spike', 'rollout.shared_noise': True}
    )
    found = preflight(config, tmp_path, prompts=6, group=8)
    assert found['trained'] == [True, True, True, False]
    shares = [part.value for part in found['decided']['steps']]
    assert shares[1] > 0.6 and max(abs(shares[k]) for k in (2, 3)) < 0.05
    parts = [part.value for part in found['signal_parts']['dense']]
    assert max(parts) == parts[1] > 10 * max(abs(parts[2]), abs(parts[3]))
    assert not any(a['stop'] for a in found['findings'])
    assert 'with the first noise, which a group shares' in '\n'.join(page.lines(found))


def test_a_remote_reward_measures_as_the_same_reward_here(config, two_steps, tmp_path):
    config.rollout.steps = 2
    options = {'urls': '', 'names': ('brightness',), 'range': (0.0, 1.0)}
    config.reward = {'remote': options}
    with serving(RewardService(Brightness(), 'f00', '0').app) as config.reward.remote.urls:
        there = preflight(config, tmp_path / 'there')
    for name in ('decided', 'signal', 'rank_correlation'):
        assert repr(there[name]) == repr(two_steps[name])


# tests/training/test_meshes.py compares rollouts, credit and updates over devices.
@pytest.mark.slow
def test_two_devices_measure_as_one_does(config, two_steps, tmp_path):
    mesh = data_mesh(2)
    config.rollout.steps = 2
    one, two = two_steps, preflight(config, tmp_path / 'two', mesh)
    assert one['reward']['mean'] == pytest.approx(two['reward']['mean'], abs=1e-5)
    of = lambda d: [part.value for part in d['decided']['steps']]
    assert of(one) == pytest.approx(of(two), abs=0.02)


def test_a_stop_keeps_what_was_measured(config, tmp_path, monkeypatch):
    stop, measured = StopRequest(), run_module.measure

    def then_stop(*arguments, **options):
        found = measured(*arguments, **options)
        stop.signal_name = 'SIGTERM'
        return found

    monkeypatch.setattr(run_module, 'measure', then_stop)
    config.rollout.steps = 2
    with pytest.raises(Preempted):
        run(config, tmp_path, one_device(), stop, **SIZE)
    assert len((tmp_path / record.FILE).read_text().splitlines()) == 3  # settings, two prompts


def test_without_noise_there_is_nothing_to_measure(config, tmp_path):
    config.rollout.kernel = 'ode'
    config.loss.kind, config.credit.rule = 'nft', 'sparse'
    config.credit.std = 'group'
    with pytest.raises(ValueError, match="rollout.kernel='ode' adds no noise"):
        preflight(config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {RECORD}  # the command removes that too
