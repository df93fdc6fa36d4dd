"""Calibration of a random miniature: its file, stopping and continuing, and what training does with
psi and with a wrong one.
"""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from configs import tiny_ocr
from densegrpo_jax.calibration import loop as calibration
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.sampling import noise, session
from densegrpo_jax.sampling.conditioning import load_prompts
from densegrpo_jax.training import rounds
from densegrpo_jax.training.run import run as train
from tests.fake_hosts import on_hosts
from tests.meshes import data_mesh, one_device
from tests.programs import shared_programs  # noqa: F401
from tests.training.small_run import OVERRIDES

pytestmark = pytest.mark.usefixtures('shared_programs')

# The training is that of small_run.py, so that tests of both share its programs.
SMALL = {
    **OVERRIDES,
    'iterations': 1,
    'eval.every': 5,
    'calibration.prompts': 4,
    'calibration.group': 2,
    'calibration.iterations': 3,
    'calibration.min_count': 1,
    'calibration.window': 2,
}
SIGMAS = np.float32([1, 0.8, 0.5, 0])
MASKS = step_masks(SIGMAS)  # trained: the first two


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    return tmp_path_factory.mktemp('text')


def make_config(folder, texts, **overrides):
    config = tiny_ocr.get_config()
    config.model.path, config.text_cache = str(folder), str(texts)
    config.update_from_flattened_dict({**SMALL, **overrides})
    config.reward = {'brightness': {'weight': 1.0}}
    return config


def calibrated(config, workdir, stop=None):
    psi = calibration.run(
        config, workdir, workdir / 'psi.json', one_device(), stop or StopRequest()
    )
    return psi, noise.read(workdir / 'psi.json')


def test_makes_psi_and_continues_with_the_same_bits_after_a_stop(
    folder, texts, tmp_path, monkeypatch
):
    config = make_config(folder, texts)
    psi, document = calibrated(config, tmp_path / 'straight')
    history, p, q = (np.array(document[name]) for name in ('history', 'positives', 'negatives'))
    assert history.shape == p.shape == q.shape == (3, 3) and document['finished']
    # Every trained transition moved by one relative step an iteration, in the direction that its
    # counts ask for.
    before = np.concatenate([[document['start']], history[:-1]])
    up = np.abs(p - q) <= np.sqrt(p + q)
    np.testing.assert_allclose(history[:, :2], (before * np.exp(np.where(up, 0.05, -0.05)))[:, :2])
    assert (p + q)[:, :2].max() <= 8 and (p + q)[:, :2].min() > 0 and not (p + q)[:, 2].any()
    # the deterministic last step
    np.testing.assert_array_equal(history[:, 2], document['start'][2])
    np.testing.assert_allclose(psi, history[-2:].mean(0), rtol=1e-6)
    # The counts of the first iteration are those of the rewards that are kept for the figure.
    gains = np.diff(np.array(document['before'], float), axis=0)
    assert (
        ((gains > 0).sum(1)[:2] == p[0][:2]).all()
        and np.shape(document['after']) == (4, 8)
        and document['after'] != document['before']
    )
    assert np.array(Image.open(tmp_path / 'straight' / 'psi.png')).std() > 1

    # Stopped after every iteration; the same command continues.
    stop = StopRequest()
    write = noise.write

    def write_and_stop(path, document):
        write(path, document)
        stop.signal_name = 'SIGTERM'

    with monkeypatch.context() as patch:
        patch.setattr(calibration.noise, 'write', write_and_stop)
        for done in (1, 2):
            with pytest.raises(Preempted):
                stop.signal_name = None
                calibrated(config, tmp_path / 'broken', stop)
            partial = noise.read(tmp_path / 'broken' / 'psi.json')
            assert len(partial['history']) == done and not partial['finished']
    with pytest.raises(ValueError, match='after 2 iterations, not finished'):
        noise.calibrated_table(config, SIGMAS, MASKS, tmp_path / 'broken' / 'psi.json')
    found, again = calibrated(config, tmp_path / 'broken')
    assert again == document
    np.testing.assert_array_equal(found, psi)

    # Finished, it is only read; with other settings it is refused; with more iterations it goes on.
    written = (tmp_path / 'broken' / 'psi.json').stat().st_mtime_ns
    np.testing.assert_array_equal(calibrated(config, tmp_path / 'broken')[0], psi)
    assert (tmp_path / 'broken' / 'psi.json').stat().st_mtime_ns == written
    with (
        monkeypatch.context() as without,
        pytest.raises(
            ValueError,
            match=r'psi.json was calibrated with other settings .calibration.eps2: 0.05, now 0.1.',
        ),
    ):
        without.setattr(calibration, 'load', None)  # before anything is loaded
        calibrated(make_config(folder, texts, **{'calibration.eps2': 0.1}), tmp_path / 'broken')
    with pytest.raises(ValueError, match=r'for the transitions [x.]{3}, and .* trains [x.]{3} '):
        calibrated(make_config(folder, texts, **{'plan.active': 'first_half'}), tmp_path / 'broken')
    # The prompts of a file may change under its name; an earlier version did not note what they
    # were.
    with monkeypatch.context() as patch:
        fewer = lambda config, split: load_prompts(config, split)[:32]
        patch.setattr(session, 'load_prompts', fewer)
        with pytest.raises(ValueError, match=r'other settings \(prompts of data.train: '):
            calibrated(config, tmp_path / 'broken')
        del document['settings']['prompts of data.train'], document['format']
        noise.write(tmp_path / 'older' / 'psi.json', document)
        np.testing.assert_array_equal(calibrated(config, tmp_path / 'older')[0], psi)
    longer = calibrated(
        make_config(folder, texts, **{'calibration.iterations': 4}), tmp_path / 'broken'
    )[1]
    assert (
        longer['history'][:3] == document['history']
        and len(longer['history']) == 4
        and longer['finished']
    )


def test_all_processes_go_on_with_the_file_of_the_first(folder, texts, tmp_path):
    config = make_config(folder, texts)
    checked = session.check(config, one_device(), StopRequest(), needs=('train',))
    _, schedule = calibration.prepare(checked)
    fresh = calibration._opened(tmp_path / 'none', schedule, checked, None)
    for disk in range(2):  # that of the second is of another run
        noise.write(tmp_path / str(disk) / 'psi.json', {**fresh, 'psi': [float(disk)] * 3})

    def opened(hosts):
        here = dataclasses.replace(checked, stop=StopRequest(Communicator(hosts)))
        path = tmp_path / str(hosts.index) / 'psi.json'
        document = calibration._opened(path, schedule, here, None)
        return here.stop.communicator.of_primary(document)

    first, second = on_hosts(opened)
    assert first == second and first['psi'] == [0.0] * 3


def test_psi_of_changed_code_of_ones_own_goes_on_if_it_is_accepted(
    folder, texts, tmp_path, monkeypatch
):
    file, path = tmp_path / 'own_psi.py', tmp_path / 'psi.json'
    file.write_text('from tests.training.small_run import Brightness as Mine\n')
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config(folder, texts)
    config.reward = {'mine': {'kind': 'own_psi:Mine'}}
    checked = session.check(config, one_device(), StopRequest(), needs=('train',))
    _, schedule = calibration.prepare(checked)
    opened = lambda of: calibration._opened(path, schedule, of, None)
    before = opened(checked)
    noise.write(path, before)
    assert opened(checked)['settings'] == before['settings']
    file.write_text(file.read_text() + '# edited\n')
    with pytest.raises(ValueError, match='other settings .code of your own.reward.mine: '):
        opened(checked)
    accepted = opened(dataclasses.replace(checked, own_code='warn'))
    assert accepted['psi'] == before['psi'] and accepted['settings'] != before['settings']


def test_the_rule_of_the_paper_and_the_end(folder, texts, tmp_path):
    """Absolute steps of eps2, down where |p - q| reaches eps1; two windows within the share of a
    drift are the end.
    """
    paper = {'calibration.rule': 'paper', 'calibration.window': 1, 'calibration.drift': 9.0}
    for eps1 in (100, 1):
        changes = {**paper, 'calibration.eps1': eps1}
        _, document = calibrated(make_config(folder, texts, **changes), tmp_path / str(eps1))
        assert document['settled'] and len(document['history']) == 2  # of 3
        moves = np.diff([document['start'], *document['history']], axis=0)[:, :2]
        p, q = (np.array(document[name])[:, :2] for name in ('positives', 'negatives'))
        signs = np.where(np.abs(p - q) < eps1, 1, -1)
        np.testing.assert_allclose(moves, 0.05 * signs, rtol=1e-6)
        assert eps1 == 1 or (signs == 1).all()


def test_eta_of_cps_stays_at_most_one(folder, texts, tmp_path):
    cps = {
        'rollout.kernel': 'cps',
        'rollout.noise': 'constant',
        'rollout.level': 0.9,
        'calibration.eps2': 3.0,
        'calibration.z': 10.0,
    }
    psi, document = calibrated(make_config(folder, texts, **cps), tmp_path)
    # z = 10 finds everything balanced, so every step is upwards
    np.testing.assert_array_equal(np.array(document['history'])[:, :2], 1)
    np.testing.assert_array_equal(psi, np.float32([1, 1, 0.9]))


def test_steps_that_move_and_groups_of_two_sizes_are_not_calibrations(folder, texts):
    given = {'moving.steps': 'random', 'moving.width': 2, 'credit.rule': 'sparse'}
    given |= {'rollout.steps': 10, 'budget.by': 'random', 'rollout.prompts': 4}
    config = make_config(folder, texts, **given)
    checked = session.check(config, one_device(), StopRequest(), needs=('train',))
    sized, schedule = calibration.prepare(checked)
    assert (sized.moving.steps, sized.budget.by, sized.credit.rule) == ('none', 'none', 'dense')
    assert schedule.masks.trained.sum() == 9


@pytest.mark.slow
def test_psi_of_another_base_or_start_is_refused(folder, texts, tmp_path, monkeypatch):
    config = make_config(folder, texts, **{'calibration.iterations': 1})
    psi, document = calibrated(config, tmp_path)
    again, _ = calibrated(config, tmp_path)
    np.testing.assert_array_equal(again, psi)
    for of, name, other, fact in (
        (session.Checked, 'base_digest', 'other', 'weights of the base'),
        (calibration, 'weights_digest', lambda _: 'other', 'policy'),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(of, name, other)
            with pytest.raises(ValueError, match=f"other settings .{fact}: .*, now 'other'"):
                calibrated(config, tmp_path)
    # one of an earlier version does not say; it is taken
    document['settings'] = {
        key: value for key, value in document['settings'].items() if ' of the base' not in key
    }
    noise.write(tmp_path / 'psi.json', document)
    calibrated(config, tmp_path)


def test_bounds_and_sizes_that_cannot_be_are_refused_before_anything_is_loaded(
    folder, texts, tmp_path, monkeypatch
):
    monkeypatch.setattr(calibration, 'load', None)
    with pytest.raises(
        ValueError,
        match=r"rollout.noise='flow_grpo', level 0.7.*bounds 0.02 to 0.5; change calibration.low",
    ):
        calibrated(make_config(folder, texts, **{'calibration.high': 0.5}), tmp_path)
    with pytest.raises(
        ValueError, match=r'calibration.prompts \* calibration.group = 3 does not divide'
    ):
        config = make_config(folder, texts, **{'calibration.prompts': 3, 'calibration.group': 1})
        calibration.run(config, tmp_path, tmp_path / 'psi.json', data_mesh(2), StopRequest())
    with pytest.raises(ValueError, match=r'calibration.prompts=5000000'):
        calibrated(make_config(folder, texts, **{'calibration.prompts': 5000000}), tmp_path)


def test_training_calibrates_first_or_reads_psi_and_holds_to_it(
    folder, texts, tmp_path, caplog, monkeypatch
):
    caplog.set_level('INFO')
    levels, make = [], rounds.make_rollout

    def recording(*args):
        rollout = make(*args)
        return lambda *a: levels.append(a[-1]) or rollout(*a)

    monkeypatch.setattr(rounds, 'make_rollout', recording)
    config = make_config(folder, texts)
    config.noise.calibrate = True
    train(config, tmp_path / 'a', one_device(), StopRequest())
    document = noise.read(tmp_path / 'a' / 'psi.json')
    assert document['finished'] and 'noise calibrated first, from flow_grpo 0.7' in caplog.text
    # the command makes the same
    assert calibrated(make_config(folder, texts), tmp_path / 'b')[1] == document

    # Its end may be set otherwise later, and the run still continues: with the same noise.
    longer = make_config(folder, texts, **{'calibration.iterations': 4})
    with pytest.raises(ValueError, match='is the noise of the run in that folder, which has'):
        calibrated(longer, tmp_path / 'a')
    longer.noise.calibrate = True
    train(longer, tmp_path / 'a', one_device(), StopRequest())
    again = noise.read(tmp_path / 'a' / 'psi.json')
    assert (again['psi'], again['history']) == (document['psi'], document['history'])

    # The same psi from a file trains alike; with another psi, or none, the run does not continue.
    config.noise.update(calibrate=False, psi_path=str(tmp_path / 'a' / 'psi.json'))
    train(config, tmp_path / 'c', one_device(), StopRequest())
    rows = [(tmp_path / name / 'metrics.jsonl').read_text().splitlines()[-1] for name in ('a', 'c')]
    first, same = (json.loads(row) for row in rows)
    assert all(
        first[key] == same[key]
        for key in first
        if key.startswith(('gain', 'train/reward', 'train/loss', 'train/grad_norm'))
    )
    # two batches of each
    np.testing.assert_array_equal(levels, [np.float32(document['psi'])] * 4)
    assert not np.allclose(document['psi'], document['start'])
    other = {**document, 'psi': [value / 4 for value in document['psi']]}
    del other['format']
    noise.write(tmp_path / 'other.json', other)
    config.noise.psi_path, config.iterations = str(tmp_path / 'other.json'), 2
    with pytest.raises(ValueError, match=r'belongs to other settings:\n  psi: \['):
        train(config, tmp_path / 'c', one_device(), StopRequest())
    config.noise.psi_path, config.iterations = '', 2
    with pytest.raises(ValueError, match=r'psi: \[.*\] there, None here'):
        train(config, tmp_path / 'c', one_device(), StopRequest())


def write_psi(path, config, sigmas=SIGMAS, masks=MASKS, psi=(2.0, 1.0, 0.5), **changes):
    document = {
        'finished': True,
        'history': [],
        'psi': list(psi),
        'geometry': noise.geometry(config, sigmas, masks),
        **changes,
    }
    noise.write(path, document)


def test_psi_of_another_grid_is_refused_unless_interpolated(tmp_path):
    config = tiny_ocr.get_config()
    config.noise.psi_path = str(tmp_path / 'psi.json')
    with pytest.raises(FileNotFoundError, match='no psi file .*psi.json'):
        noise.noise_table(config, SIGMAS, MASKS)
    write_psi(tmp_path / 'psi.json', config)
    np.testing.assert_array_equal(noise.noise_table(config, SIGMAS, MASKS), np.float32([2, 1, 0.5]))
    finer = np.float32([1, 0.95, 0.9, 0.8, 0.5, 0.2, 0])
    with pytest.raises(
        ValueError,
        match=r'(?s)another grid:\n  there .*T = 3.*\n  here  .*T = 6.*noise.interpolate=True',
    ):
        noise.noise_table(config, finer, step_masks(finer))
    with pytest.raises(ValueError, match=r'trained xx\.\n  here .*trained xxx'):
        noise.noise_table(config, SIGMAS, step_masks(SIGMAS, train_end=True))
    config.model.width = 64
    with pytest.raises(ValueError, match='there 96 x 32 px.*\n  here  64 x 32 px'):
        noise.noise_table(config, SIGMAS, MASKS)
    config.noise.interpolate = True
    # Linear between s = 1 (psi 2) and s = 0.8 (psi 1), the two calibrated transitions; constant
    # below.
    np.testing.assert_allclose(
        noise.noise_table(config, finer, step_masks(finer)), [2, 1.75, 1.5, 1, 1, 1], rtol=1e-6
    )
    config.rollout.kernel = 'cps'
    with pytest.raises(ValueError, match=r"kernel 'sde', but rollout.kernel='cps'"):
        noise.noise_table(config, SIGMAS, MASKS)


def test_files_that_are_no_psi_are_refused(tmp_path):
    config = tiny_ocr.get_config()
    texts = {
        '[]': 'is not a psi file',
        '{"format": 1': 'is not a psi file',
        '{"format": 7}': 'has format 7',
        '{"format": 1, "psi": []}': 'lacks geometry',
    }
    for text, message in texts.items():
        (tmp_path / 'psi.json').write_text(text)
        with pytest.raises(ValueError, match=message):
            noise.calibrated_table(config, SIGMAS, MASKS, tmp_path / 'psi.json')
    write_psi(tmp_path / 'psi.json', config, psi=(2.0, -1.0, 0.5))
    with pytest.raises(ValueError, match='noise levels'):
        noise.calibrated_table(config, SIGMAS, MASKS, tmp_path / 'psi.json')
