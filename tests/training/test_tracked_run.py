"""A run that reports to a tracker, and continues there."""

import sys

import pytest

from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests.programs import shared_programs  # noqa: F401
from tests.tracker_stand_in import stand_in
from tests.training.small_run import make_config, one_device, rows

pytestmark = pytest.mark.usefixtures('shared_programs')


def test_a_run_reports_what_its_own_files_hold(folder, tmp_path, monkeypatch):
    module = stand_in('trackio')
    module.__spec__ = type(sys)('spec')  # what tells that it is installed
    monkeypatch.setitem(sys.modules, 'trackio', module)
    for iterations in (1, 2):
        options = {'iterations': iterations, 'log.report_to': 'trackio', 'log.project': 'words'}
        run(make_config(folder, **options), tmp_path, one_device(), StopRequest())
    first, second = module.runs
    assert first.options['name'] == second.options['name'] and first.finished and second.finished
    assert first.options['config']['log']['project'] == 'words'
    numbers, pictures = {}, []
    for step, values in module.told:
        for name, value in values.items():
            if isinstance(value, float):
                numbers.setdefault(step, {})[name] = value
            else:
                pictures.append((step, name))
    wanted = {row.pop('step'): row for row in rows(tmp_path)}
    assert numbers.keys() == wanted.keys()
    for step, row in wanted.items():
        assert numbers[step].keys() == row.keys()
        assert numbers[step]['eval/total'] == row['eval/total']
    sheets = [(0, 'eval/images'), (1, 'eval/images'), (2, 'eval/images')]
    assert [p for p in pictures if p[1] == 'eval/images'] == sheets
    assert (2, 'before_after') in pictures and (2, 'reward_curve') in pictures


def test_an_absent_tracker_is_said_before_anything_is_opened(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    config = make_config('nowhere', **{'log.report_to': 'wandb'})
    with pytest.raises((ModuleNotFoundError, ValueError), match='wandb'):
        run(config, tmp_path, one_device(), StopRequest())
    assert not (tmp_path / 'config.json').exists()
