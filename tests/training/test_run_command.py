"""The command that trains: it resumes bit for bit after kill -9, tells a supervisor whether to try
again, and imports a module of one's own when the devices are set up.
"""

import signal
import sys

import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax import main
from densegrpo_jax.rewards.base import RewardError, RewardsGone
from densegrpo_jax.runtime import files
from densegrpo_jax.runtime.files import only_writer
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.stop import Preempted
from densegrpo_jax.sampling import execution
from tests.compiler import QUICK
from tests.process_flags import process_flags
from tests.training.small_run import ROOT, command, final_state, finished, rows

PLAIN = dict(unread='warn', own_code='refuse', profile=None)  # flags of the command

# tiny_ocr, in a process that sends itself a signal when it has begun to save a checkpoint.
INTERRUPTED = """
import os
from densegrpo_jax.runtime.checkpoints import Checkpoints
from tests.training.tiny_jpeg import get_config

original = Checkpoints.save

def interrupting(self, step, *args, **kwargs):
    original(self, step, *args, **kwargs)
    if step == {step}:
        os.kill(os.getpid(), {number})

Checkpoints.save = interrupting
"""


@pytest.mark.parametrize(
    'signals',
    [
        pytest.param({2: signal.SIGKILL}, id='killed'),
        pytest.param(
            {2: signal.SIGKILL, 3: signal.SIGTERM}, id='then stopped', marks=pytest.mark.slow
        ),
    ],
)
def test_resume_after_signals_is_exact(folder, tmp_path, signals):
    """Killed with -9, and stopped with SIGTERM, the run ends with the very bits of an uninterrupted
    one. test_kill_storm.py kills at random moments.
    """
    straight, broken = tmp_path / 'straight', tmp_path / 'broken [0-9] *?'
    options = '--config.iterations=4', '--config.optim.decay=linear'
    start = lambda workdir, **how: command(folder, workdir, *options, flags=QUICK, **how)

    def ends(number, step):
        config = tmp_path / f'at_{step}.py'
        config.write_text(INTERRUPTED.format(step=step, number=int(number)))
        process = start(broken, config=config)
        _, log = process.communicate()
        assert process.returncode == (75 if number == signal.SIGTERM else -number), log

    finished(start(straight))
    for step, number in signals.items():
        ends(number, step)
    finished(start(broken))
    (step, expected, progress), (found_step, found, found_progress) = (
        final_state(straight),
        final_state(broken),
    )
    assert step == found_step == 4 and set(expected) == set(found)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert (
        progress['evaluations'] == found_progress['evaluations']
        and progress['nfe'] == found_progress['nfe']
    )
    steps = [row['step'] for row in rows(broken)]
    assert steps == [0, 1, 2, 3, 4]
    called = (broken / 'command.txt').read_text()
    assert ' -m densegrpo_jax.main --config=' in called and '--config.iterations=4' in called
    assert called.endswith(f'\n# in {ROOT}\n')
    timeless = lambda row: {k: v for k, v in row.items() if 'seconds' not in k}
    assert [timeless(r) for r in rows(broken)] == [timeless(r) for r in rows(straight)]


@pytest.mark.parametrize(
    'error, status',
    [(Preempted('SIGTERM'), 75), (RewardsGone('all gone'), 75), (RewardError('nonsense'), 1)],
)
def test_exit_status_tells_a_supervisor_whether_to_try_again(
    tmp_path, monkeypatch, caplog, error, status
):
    def run(*args, **options):
        raise error

    config = tiny_ocr.get_config()
    flag = process_flags(tmp_path, config=config, **PLAIN)
    monkeypatch.setattr('densegrpo_jax.training.run.run', run)
    for name in ('start_devices', 'keep_compiled'):
        monkeypatch.setattr(execution, name, lambda *args: None)
    assert main.main(flag) == status
    with only_writer(tmp_path, Hosts()):  # which the run has given back
        monkeypatch.setattr(files, '_PATIENCE_HERE', 0.0)
        with pytest.raises(ValueError, match=f'{tmp_path} is being written to by another run'):
            main.main(flag)
    assert isinstance(error, Preempted) or str(error) in caplog.text


def test_a_module_of_ones_own_is_imported_after_the_devices_are_set_up(tmp_path, monkeypatch):
    """It may compute when it is imported, which starts the devices as they are."""

    def start_devices(*_):
        assert 'own_early' not in sys.modules
        started.append(True)

    def run(*args, **options):
        assert 'own_early' in sys.modules  # checked before the run begins
        raise Preempted('SIGTERM')

    (tmp_path / 'own_early.py').write_text(
        'from densegrpo_jax.core.credit_rules import CreditRule\n'
        'rule = CreditRule(lambda rewards: rewards[1:])\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    started, config = [], tiny_ocr.get_config()
    config.credit.rule = 'own_early:rule'
    flag = process_flags(tmp_path / 'run', config=config, **PLAIN)
    monkeypatch.setattr('densegrpo_jax.training.run.run', run)
    monkeypatch.setattr(execution, 'start_devices', start_devices)
    monkeypatch.setattr(execution, 'keep_compiled', lambda *args: None)
    assert main.main(flag) == 75 and started
