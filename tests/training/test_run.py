"""The training loop on a random miniature: it runs, stops with the last update saved, goes on, and
does not depend on the mesh.
"""

import contextlib
import json
import shutil

import numpy as np
import pytest

from densegrpo_jax.core.losses import METRICS
from densegrpo_jax.data.prompts import tiny_eval_prompts, tiny_train_prompts
from densegrpo_jax.rewards.base import RewardError, RewardsGone, Scores
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.rewards.composite import TAKEN
from densegrpo_jax.rewards.local.jpeg import JpegReward
from densegrpo_jax.rewards.remote.service import RewardService
from densegrpo_jax.runtime.checkpoint_errors import CheckpointMismatch
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.training.progress import TrainingDiverged
from densegrpo_jax.training.run import run
from tests.programs import shared_programs  # noqa: F401
from tests.rewards.loopback import serving
from tests.training.small_run import (
    SMOOTH,
    Brightness,
    final_state,
    make_config,
    moved_alike,
    one_device,
    rows,
)
from tests.viewing.pages import check_pictures, runs_of

pytestmark = pytest.mark.usefixtures('shared_programs')


def test_runs_and_reports(folder, tmp_path):
    kept = {'checkpoint.every': 10, 'checkpoint.keep': 1, 'checkpoint.pin': (1,)}
    kept['eval.report'] = True
    summary = run(make_config(folder, **kept), tmp_path, one_device(), StopRequest())
    assert summary['updates'] == 3 and len(summary['evaluations']) == 3  # at 0, 2 and 3
    # pinned, not the newest, and never evaluated
    assert 1 in Checkpoints(tmp_path / 'checkpoints', read_only=True).steps()
    table = rows(tmp_path)
    assert [row['step'] for row in table] == [0, 1, 2, 3]
    # The policy has not moved when the first update re-scores its samples: the ratio with the
    # stored log-probability is 1.
    assert 0 <= table[1]['train/ratio_deviation_first'] <= 1e-6
    assert table[1]['train/transitions'] == 2 * 16 and table[1]['train/nfe'] == 16 * (3 + 2 + 1)
    assert {
        'gain/step_0',
        'gain/step_1',
        'gain_positive/step_0',
        'zero_spread/step_1',
        'seconds/sample',
    } <= set(table[1])
    assert 'gain/step_2' not in table[1]  # the deterministic last step is not trained
    # no score and no metric of a loss of one's own can have the name of one of these
    logged = {tuple(name.split('/')) for row in table for name in row if '/' in name}
    in_group = lambda group: {name for of, name in logged if of == group}
    assert in_group('eval') - {'total', 'jpeg'} <= {*TAKEN}
    of_scores = {'reward_jpeg', 'reward_group_best'}
    step_wise = {of for of, name in logged if name.startswith('step_')}
    assert (in_group('train') | step_wise) - of_scores <= METRICS and 'group_best' in TAKEN
    step, state, _ = final_state(tmp_path)
    assert step == 3 and any(
        np.abs(v).max() > 0 for k, v in state.items() if k.startswith('policy') and k.endswith('/b')
    )
    for name in (
        'reward_curve.png',
        'before_after.png',
        'summary.json',
        'config.json',
        'samples/step_000000.png',
    ):
        assert (tmp_path / name).stat().st_size > 0

    # groups on record: of the first update, and of those before evaluations
    groups = sorted((tmp_path / 'groups').glob('*.json'))
    assert [p.name for p in groups] == [f'step_00000{k}_0.json' for k in (1, 2, 3)]
    group = json.loads(groups[0].read_text())
    assert len(group['samples']) == 4 and len(group['columns']) == 3
    assert [t['row'] for t in group['transitions']] == [0, 1, None]
    # the step-wise means over the whole batch are within what its groups have
    first = [sample['advantages'][0] for sample in group['samples']]
    assert abs(sum(first)) < 1e-3 and max(map(abs, first)) > 0
    page = tmp_path / 'report'
    assert (page / 'index.html').is_file()
    (data,) = runs_of(page)
    assert len(data['groups']) == 3
    for group in data['groups']:
        check_pictures(page / data['files'], group, JpegReward())


@pytest.mark.slow  # test_meshes.py has its parts, and test_processes.py a run over four devices
def test_first_update_matches_on_a_mesh(folder, tmp_path, monkeypatch):
    """One iteration on 8 devices, data and parameters split, equals one device within f32
    rounding; tests/training/test_meshes.py has the other ways to split them.
    """
    monkeypatch.setitem(REWARDS, 'brightness', Brightness)
    config = make_config(folder, iterations=1, **SMOOTH)
    config.reward = {'brightness': {'weight': 1.0}}
    run(config, tmp_path / 'one', one_device(), StopRequest())
    _, expected, _ = final_state(tmp_path / 'one')
    run(config, tmp_path / 'split', make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}), StopRequest())
    _, found, _ = final_state(tmp_path / 'split')
    reference, sharded = rows(tmp_path / 'one')[1], rows(tmp_path / 'split')[1]
    for key in ('train/reward', 'train/grad_norm', 'gain/step_0'):
        np.testing.assert_allclose(sharded[key], reference[key], rtol=2e-4, atol=5e-6)
    # A pixel that rounds the other way moves a reward by 2.6e-6.
    moved_alike(found, expected, 1e-2)


class At(StopRequest):
    """Acts when a run waits for the `count`-th time for the images of a rollout's batch (S states
    of each), for those of an evaluation's, or for an update; by default it asks for a stop.
    """

    WAITS = {
        'rollout': lambda value: isinstance(value, tuple) and value[0].ndim == 5,
        'evaluation': lambda value: isinstance(value, tuple) and value[0].ndim == 4,
        'update': lambda value: isinstance(value, dict),
    }

    def __init__(self, what, count, action=None):
        super().__init__()
        self._waits, self._left, self._action = self.WAITS[what], count, action

    def wait(self, value, *args):
        self._left -= bool(self._waits(value))
        if not self._left:
            self._left = -1
            if self._action is None:
                self.signal_name = 'SIGTERM'
            else:
                self._action()
        return super().wait(value, *args)


@pytest.mark.parametrize('moment', [('evaluation', 2), ('rollout', 3), ('update', 2)], ids=str)
def test_a_stop_between_checkpoints_saves_the_last_update_whole(
    folder, tmp_path, caplog, metrics_before, moment
):
    stop, saved = At(*moment), metrics_before('save')
    # In the evaluation that is due after the first update, which must not be lost, in the second
    # iteration's first rollout of two, or in its update.
    config = make_config(folder, **{'checkpoint.every': 10, 'eval.every': 1})
    with pytest.raises(Preempted):
        run(config, tmp_path, one_device(), stop)
    assert final_state(tmp_path)[0] == 1
    summary = run(config, tmp_path, one_device(), StopRequest())
    assert summary['updates'] == 3 and 'DAMAGED' not in caplog.text
    assert [row['step'] for row in rows(tmp_path)] == [0, 1, 2, 3] and all(
        'eval/total' in row for row in rows(tmp_path)
    )
    assert [step for step, *_ in summary['evaluations']] == [0, 1, 2, 3] and 'train/reward' in rows(
        tmp_path
    )[1]
    assert [step for step, _ in saved] == [1, 2, 3]


def test_stops_after_non_finite_gradients(folder, tmp_path, monkeypatch):
    config = make_config(folder, **{'optim.max_bad': 2, 'optim.learning_rate': 1e-3})
    config.credit.std_eps = float('nan')  # every advantage, and so every gradient, becomes NaN
    monkeypatch.setattr('densegrpo_jax.sampling.session.validate', lambda config: None)
    with pytest.raises(TrainingDiverged, match='optim.max_bad=2'):
        run(config, tmp_path, one_device(), StopRequest())
    step, state, _ = final_state(tmp_path)
    assert step == 2 and all(np.isfinite(v).all() for v in state.values())
    assert rows(tmp_path)[1]['train/skipped'] == 1


def test_the_score_to_choose_by_must_exist(folder, tmp_path):
    config = make_config(folder)
    config.eval.best = 'orc'
    with pytest.raises(
        ValueError, match=r"eval\.best='orc' is not a score of this reward; choose one of total, "
    ):
        run(config, tmp_path, one_device(), StopRequest())


def test_checkpoint_of_another_configuration_is_refused(folder, tmp_path, monkeypatch):
    run(make_config(folder, iterations=2), tmp_path, one_device(), StopRequest())
    # before a base is looked for, which may be fetched first
    monkeypatch.setattr('densegrpo_jax.training.run.check_parts', None)
    kept = (tmp_path / 'config.json').read_text()
    with pytest.raises(
        ValueError, match='iterations=1: the run in .* has 2 already; give at least 2'
    ):
        run(make_config(folder, iterations=1), tmp_path, one_device(), StopRequest())
    assert (tmp_path / 'config.json').read_text() == kept
    with pytest.raises(ValueError, match='learning_rate'):
        run(
            make_config(folder, iterations=3, **{'optim.learning_rate': 5e-4}),
            tmp_path,
            one_device(),
            StopRequest(),
        )


def test_a_run_goes_on_only_with_the_prompts_and_the_evaluation_it_began_with(folder, tmp_path):
    """Names are not enough: its first and its last evaluation stand side by side in
    summary.json.
    """
    texts = {
        name: [p.text for p in prompts]
        for name, prompts in (('train', tiny_train_prompts()), ('eval', tiny_eval_prompts()))
    }
    files = {f'data.{name}': str(tmp_path / f'{name}.txt') for name in texts}
    write = lambda name, lines: (tmp_path / f'{name}.txt').write_text('\n'.join(lines) + '\n')
    for name, lines in texts.items():
        write(name, lines)
    again = lambda **changes: run(
        make_config(folder, iterations=1, **files, **changes), tmp_path, one_device(), StopRequest()
    )
    before = again()
    for name, lines in texts.items():
        write(name, lines[::-1])
        with pytest.raises(
            CheckpointMismatch,
            match=f"(?s)prompts of data.{name}: '.*' there, '.*' here.*another --workdir",
        ):
            again()
        write(name, lines)
    for key, value, message in (
        ('steps', 3, '2 there, 3 here'),
        ('best', 'jpeg', "'total' there, 'jpeg' here"),
    ):
        with pytest.raises(CheckpointMismatch, match=f'eval.{key}: {message}'):
            again(**{f'eval.{key}': value})
    document = tmp_path / 'checkpoints' / '1' / 'meta' / 'metadata'
    stored = json.loads(document.read_text())
    # as before they were stored, and before documents were sealed
    del stored['seal']
    for key in ('prompts of data.train', 'prompts of data.eval', 'eval'):
        del stored['fingerprint'][key]
    document.write_text(json.dumps(stored))
    assert again()['evaluations'] == before['evaluations']


def test_rewards_that_are_gone_leave_the_last_update_saved(folder, tmp_path):
    """The reward server dies after the first update. The run saves that update, and goes on with a
    server at another address.
    """
    config = make_config(folder, **{'iterations': 2, 'checkpoint.every': 10, 'eval.every': 10})
    config.reward = {
        'remote': {'urls': '', 'names': ('brightness',), 'range': (0.0, 1.0), 'give_up_s': 0.0}
    }
    config.eval.report = True
    with contextlib.ExitStack() as server:
        config.reward.remote.urls = server.enter_context(
            serving(RewardService(Brightness(), 'f00', '0').app)
        )
        second_iteration = At('rollout', 3, server.close)
        with pytest.raises(RewardsGone, match=f'{config.reward.remote.urls} .*refused'):
            run(config, tmp_path, one_device(), second_iteration)
    assert final_state(tmp_path)[0] == 1
    assert not (tmp_path / 'report').exists()  # a supervisor starts the run again
    config.eval.report = False
    with serving(RewardService(Brightness(), 'f00', '0').app) as config.reward.remote.urls:
        summary = run(config, tmp_path, one_device(), StopRequest())
    assert (
        summary['updates'] == 2
        and [row['step'] for row in rows(tmp_path)] == [0, 1, 2]
        and final_state(tmp_path)[0] == 2
    )
    with serving(RewardService(Brightness(), 'f01', '0').app) as config.reward.remote.urls:
        with pytest.raises(ValueError, match='servers of rewards.*f00.*f01'):
            run(config, tmp_path, one_device(), StopRequest())


def test_whatever_a_reward_raises_the_last_update_is_saved(folder, tmp_path, monkeypatch):
    class Breaks(Brightness):
        def __call__(self, images, prompts, metadata):
            if (tmp_path / 'broken').exists():
                raise ValueError('out of memory')
            return super().__call__(images, prompts, metadata)

    monkeypatch.setitem(REWARDS, 'brightness', Breaks)
    config = make_config(folder, iterations=3, **{'checkpoint.every': 10, 'eval.every': 10})
    config.reward = {'brightness': {'weight': 1.0}}
    second_iteration = At('rollout', 3, (tmp_path / 'broken').touch)
    with pytest.raises(RewardError, match="'brightness' failed: ValueError: out of memory"):
        run(config, tmp_path, one_device(), second_iteration)
    assert final_state(tmp_path)[0] == 1


def test_whatever_ends_a_run_the_last_update_is_saved(folder, tmp_path, caplog):
    """Here the stored conditioning of the second iteration's prompts is damaged meanwhile. The same
    command continues once the files are gone.
    """
    config = make_config(folder, iterations=2, **{'checkpoint.every': 10, 'eval.every': 10})
    config.text_cache, config.eval.report = str(tmp_path / 'text'), True
    page = tmp_path / 'run' / 'report' / 'data.js'

    def damage():
        for file in (tmp_path / 'text').rglob('*.safetensors'):
            file.write_bytes(b'')

    with pytest.raises(ValueError, match='is damaged .*; delete it and start again'):
        run(config, tmp_path / 'run', one_device(), At('update', 1, damage))
    assert final_state(tmp_path / 'run')[0] == 1
    assert (
        'ended by an error, saved after iteration 1 of 2; once it is fixed, the same command '
        'continues there' in caplog.text
    )
    assert '"updates": 1' in page.read_text() and '"state": "stopped"' in page.read_text()
    shutil.rmtree(tmp_path / 'text')
    assert run(config, tmp_path / 'run', one_device(), StopRequest())['updates'] == 2
    assert '"state": "finished"' in page.read_text()


def test_an_evaluation_picture_without_a_score_is_left_out_and_said(
    folder, tmp_path, monkeypatch, caplog
):
    class Picky(Brightness):
        def __call__(self, images, prompts, metadata):
            scores, valid = (
                super().__call__(images, prompts, metadata).values['brightness'],
                np.array([p != 'the ninth' for p in prompts]),
            )
            return Scores({'brightness': np.where(valid, scores, np.nan)}, valid)

    monkeypatch.setitem(REWARDS, 'brightness', Picky)
    (tmp_path / 'prompts.txt').write_text(
        '\n'.join([*(f'the picture {i}' for i in range(8)), 'the ninth']) + '\n'
    )
    config = make_config(
        folder,
        iterations=1,
        **{'eval.batch': 8, 'data.eval': str(tmp_path / 'prompts.txt'), 'data.eval_prompts': 0},
    )
    config.reward = {'brightness': {'weight': 1.0}}
    run(config, tmp_path / 'run', one_device(), StopRequest())
    first = rows(tmp_path / 'run')[0]
    assert first['eval/valid_share'] == pytest.approx(8 / 9) and np.isfinite(
        first['eval/brightness']
    )
    assert '1 of 9 evaluation prompts have no score' in caplog.text
