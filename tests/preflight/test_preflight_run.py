"""The preflight of a small random model, from the command's work to its page."""

import json

import jax
import pytest

from densegrpo_jax.preflight import record, signal
from densegrpo_jax.preflight import run as run_module
from densegrpo_jax.preflight.run import run
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from tests import miniature
from tests.training.small_run import Brightness, make_config, one_device

SIZE = dict(prompts=4, group=4)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return miniature.random_flux(tmp_path_factory.mktemp('flux'))


@pytest.fixture
def config(folder, monkeypatch):
    monkeypatch.setitem(REWARDS, 'brightness', Brightness)
    monkeypatch.setattr(signal, 'RESAMPLES', 50)
    found = make_config(folder, reward_workers=1)
    found.reward = {'brightness': {'weight': 1.0}}
    return found


def preflight(config, out, mesh=None, **size):
    return run(config, out, mesh or one_device(), StopRequest(), **{**SIZE, **size})


def test_a_preflight_from_model_to_page(config, tmp_path):
    found = preflight(config, tmp_path / 'a')
    assert found['own'] == 'dense' and {c['credit'] for c in found['credits']} == {
        'sparse', 'dense', 'dense 1', 'gae', 'coca',
    }  # fmt: skip
    cost = {c['credit']: c['cost'] for c in found['credits']}
    # T = 3: completions of states 0, 1, 2 take 2, 1, 0 more than the state's own velocity
    assert (cost['sparse']['nfe'], cost['dense']['nfe'], cost['dense 1']['nfe']) == (3, 6, 3)
    assert (cost['sparse']['images'], cost['dense']['images']) == (1, 3)
    assert found['run']['samples'] == 16 and found['run']['nfe'] == 16 * 6 * 3
    assert found['reward']['scores'].keys() == {'total', 'brightness'}
    document = json.loads((tmp_path / 'a' / 'preflight.json').read_text())
    assert len(document['decided']['steps']) == 3 and document['prompts'] == 4
    page = (tmp_path / 'a' / 'index.html').read_text()
    assert '<script' not in page and 'images/path_000.png' in page
    assert (tmp_path / 'a' / 'images' / 'group_003.png').exists()

    # a stopped preflight continues, and gives the same
    kept = (tmp_path / 'a' / record.FILE).read_text().splitlines(keepends=True)
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / record.FILE).write_text(''.join(kept[:3]) + kept[3][:20])
    again = preflight(config, tmp_path / 'b')
    for name in ('decided', 'signal', 'reward', 'rank_correlation', 'gains'):
        assert repr(again[name]) == repr(found[name])

    config.rollout.level = 0.3
    with pytest.raises(ValueError, match='rollout.level.*give another --workdir'):
        preflight(config, tmp_path / 'b')


def test_two_devices_measure_as_one_does(config, tmp_path):
    mesh = make_mesh({'data': 2, 'fsdp': 1, 'tensor': 1}, jax.devices()[:2])
    config.rollout.steps = 2
    one, two = preflight(config, tmp_path / 'one'), preflight(config, tmp_path / 'two', mesh)
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
    assert not list(tmp_path.iterdir())
