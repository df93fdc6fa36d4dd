"""A run that is stopped during any of its evaluations ends as if nothing had stopped it."""

import errno

import numpy as np
import pytest

from densegrpo_jax.rewards.base import RewardError, Scores
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.runtime import checkpoints as checkpoints_module
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.training import run as run_module
from densegrpo_jax.training.run import run
from tests.programs import shared_programs  # noqa: F401
from tests.training.small_run import Brightness, final_state, make_config, one_device, rows

pytestmark = pytest.mark.usefixtures('shared_programs')

# They tell an evaluation's pictures from a rollout's.
PROMPTS = [f'the evaluation {i}' for i in range(8)]


class Runs:
    """Starts of one run of three updates, each evaluated; the evaluation `wanted` scores best.

    Attributes:
      during: what happens while the pictures of evaluation `wanted` are scored, given the
        StopRequest.
      evaluated: after how many updates each evaluation was begun, in order.
    """

    def __init__(self, folder, workdir, monkeypatch, wanted):
        self.workdir, self.wanted, self.during, self.evaluated = (
            workdir,
            wanted,
            lambda stop: None,
            [],
        )
        workdir.mkdir()
        (workdir / 'prompts.txt').write_text('\n'.join(PROMPTS) + '\n')
        # A checkpoint for evaluations alone: none of an update hides what an evaluation's lacks.
        overrides = {
            'eval.every': 1,
            'checkpoint.every': 10,
            'checkpoint.keep': 1,
            'reward_workers': 1,
        }
        self.config = make_config(
            folder,
            **overrides,
            **{'data.eval': str(workdir / 'prompts.txt'), 'data.eval_prompts': 0},
        )
        self.config.reward = {'brightness': {'weight': 1.0}}
        runs = self

        class Told(Brightness):
            def __call__(self, images, prompts, metadata):
                scores = super().__call__(images, prompts, metadata).values['brightness']
                if prompts[0] in PROMPTS:
                    runs.evaluated.append(runs.updates)
                    if runs.updates == runs.wanted:
                        scores = 1 - scores / 10
                        runs.during(runs.stop)
                    else:
                        scores = scores / 10
                return Scores({'brightness': scores}, np.ones(len(images), bool))

        def shown(*args, _shown=run_module.report.shown):  # called once after every update
            self.updates += 1
            return _shown(*args)

        monkeypatch.setitem(REWARDS, 'brightness', Told)
        monkeypatch.setattr(run_module.report, 'shown', shown)

    def start(self):
        """Runs, or continues; the summary."""
        self.stop = StopRequest()
        there = self.workdir / 'run' / 'checkpoints'
        self.updates = (
            (Checkpoints(there, read_only=True).latest_step() or 0) if there.is_dir() else 0
        )
        return run(self.config, self.workdir / 'run', one_device(), self.stop)


def stopped(runs):
    """A signal while the evaluation's pictures are scored."""
    runs.during = lambda stop: setattr(stop, 'signal_name', 'SIGTERM')
    with pytest.raises(Preempted):
        runs.start()


def failed(runs):
    """An error of the reward, which ends the run too."""

    def fail(stop):
        raise ValueError('out of memory')

    runs.during = fail
    with pytest.raises(RewardError, match='out of memory'):
        runs.start()


class Killed(BaseException):
    """Stands for the end of the process: nothing of the run catches it."""


def killed_before_its_evaluation_is_saved(runs):
    """Stopped, continued, and killed when the evaluation is made and logged, but not saved."""
    stopped(runs)
    runs.during = lambda stop: None
    with pytest.MonkeyPatch.context() as patch:

        def kill(*args):
            raise Killed

        patch.setattr(checkpoints_module, 'replace_file', kill)
        with pytest.raises(Killed):
            runs.start()


# No later checkpoint would hold the last evaluation; of an earlier one the score would be lost.
@pytest.mark.parametrize(
    'wanted, ends',
    [(1, [stopped]), (3, [stopped, failed, stopped]), (3, [killed_before_its_evaluation_is_saved])],
    ids=['the first', 'the last, again and again', 'the last, killed later'],
)
def test_an_evaluation_that_was_cut_off_is_made_and_saved(
    folder, tmp_path, monkeypatch, metrics_before, wanted, ends
):
    amended = metrics_before('amend')
    runs = Runs(folder, tmp_path / 'folder', monkeypatch, wanted)
    workdir = runs.workdir / 'run'
    for end in ends:
        end(runs)
        step, _, meta = final_state(workdir)
        assert step == wanted and [at for at, *_ in meta['evaluations']] == list(range(wanted))
    runs.during = lambda stop: None
    runs.evaluated.clear()
    summary = runs.start()
    assert runs.evaluated == list(range(wanted, 4))  # none is left out, and none is made twice
    assert [at for at, *_ in summary['evaluations']] == [0, 1, 2, 3] and summary['best'][
        'step'
    ] == wanted
    step, _, meta = final_state(workdir)
    assert step == 3 and meta['evaluations'] == summary['evaluations']
    # and no checkpoint said that an evaluation was made before its metrics were on disk
    assert {step for step, _ in amended} == {wanted}
    assert all('eval/total' in last for _, last in amended)
    found = Checkpoints(workdir / 'checkpoints', read_only=True)
    assert found.best_step() == wanted and {wanted, 3} <= set(found.steps())
    assert [row['step'] for row in rows(workdir)] == [0, 1, 2, 3]
    assert all('eval/total' in row for row in rows(workdir)) and all(
        'train/reward' in row for row in rows(workdir)[1:]
    )
    # Started once more it has nothing left to do.
    runs.evaluated.clear()
    assert runs.start() == summary and runs.evaluated == []


def test_a_checkpoint_that_is_saved_at_the_second_attempt_can_be_the_best(
    folder, tmp_path, monkeypatch
):
    """Its evaluation is on record, so nobody makes it again."""
    runs, save, fails = Runs(folder, tmp_path / 'folder', monkeypatch, 2), Checkpoints.save, [True]

    def once(self, step, *args, **kwargs):
        if step == 2 and fails:
            fails.pop()
            raise OSError(errno.EIO, 'the disk does not answer')
        return save(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, 'save', once)
    with pytest.raises(OSError, match='does not answer'):
        runs.start()
    workdir = runs.workdir / 'run'
    assert Checkpoints(workdir / 'checkpoints', read_only=True).best_step() == 2
    assert runs.start()['best']['step'] == 2
    assert Checkpoints(workdir / 'checkpoints', read_only=True).best_step() == 2
