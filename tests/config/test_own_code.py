"""A user's own code that changes: what was made with the code before is told from what is made now,
and goes on only where that is accepted.
"""

import json
import sys

import pytest

from densegrpo_jax.config import identity
from densegrpo_jax.config.reads import REFUSE, WARN
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.evaluation.record import Record
from densegrpo_jax.rewards.build import own_kinds
from densegrpo_jax.runtime.named import code_digest
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.session import Checked

REWARD = 'from densegrpo_jax.rewards.local.jpeg import JpegReward as Mine\n'
PANEL = 'from densegrpo_jax.rewards.local.pixels import PixelsReward as Other\n'
RULE = """from densegrpo_jax.core.credit_rules import CreditRule
rule = CreditRule(lambda rewards: rewards[1:])
"""
FILES = {'own_mine': REWARD, 'own_other': PANEL, 'own_rule': RULE}
OF_SCORES = {'reward.mine', 'eval.panel.other'}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The folder of a user's modules, on the import path."""
    for name, text in FILES.items():
        (tmp_path / f'{name}.py').write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)  # of another test's folder
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def opened(own_code=REFUSE):
    config = default_config()
    config.reward = {'mine': {'kind': 'own_mine:Mine'}}
    config.eval.panel = {'other': {'kind': 'own_other:Other'}}
    config.credit.rule = 'own_rule:rule'
    checked = Checked(config, None, StopRequest(), None, None, own_code=own_code)
    # its files are not read
    vars(checked).update(base_digest='of the base', files_digest='of its small files')
    return checked


def edit(folder):
    for name, text in FILES.items():
        (folder / f'{name}.py').write_text(text + '# edited\n')


def test_code_of_a_package_is_that_of_all_its_modules(tmp_path, monkeypatch):
    package = tmp_path / 'own_package'
    for folder in (package / 'inner', package / '.venv'):
        folder.mkdir(parents=True)
    for name in ('__init__', 'rewards', 'model', 'inner/loss', 'notes-1', '.venv/lib'):
        (package / f'{name}.py').write_text('')
    (tmp_path / 'own_module.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    digest = lambda: code_digest('own_package.rewards:Mine')
    seen = [digest()]
    for name in ('notes-1', '.venv/lib', '../own_module'):  # which it cannot import as its own
        (package / f'{name}.py').write_text('x = 1')
        assert digest() == seen[0]
    for name in ('__init__', 'rewards', 'model', 'inner/loss'):
        (package / f'{name}.py').write_text('x = 1')
        seen.append(digest())
    assert len({*seen, code_digest('own_module:x')}) == 6 and all(map(len, seen))
    assert code_digest('own_absent.rewards:Mine') == code_digest('sys:path') == ''


@pytest.mark.parametrize(
    'scope, keys',
    [
        ('training', {'reward.mine', 'credit.rule'}),
        ('calibration', {'reward.mine'}),
        ('evaluation', OF_SCORES),
        ('search', OF_SCORES),
        ('rewards', {'reward.mine'}),
        ('process', {'reward.mine'}),
        ('policy', set()),
    ],
)
def test_what_edited_code_has_made_is_not_mixed_with_earlier_results(files, scope, keys):
    checked = opened()
    record = lambda: identity.record(scope, checked.config, checked.facts())
    before = record()
    assert identity.differences(scope, before, record()) == []
    edit(files)
    found = identity.differences(scope, before, record())
    assert {d.key for d in found} == {f'{identity.CODE}.{key}' for key in keys}
    # records of before there was this fact, and checkpoints that told of none
    untold = {key: value for key, value in before.items() if key != identity.CODE}
    for earlier in (untold, {**untold, identity.CODE: {}}):
        assert identity.differences(scope, earlier, record()) == []


def test_changed_code_is_accepted_and_nothing_else(files, tmp_path, caplog):
    """In the checkpoints, and in the record of the guard, which then tells the new code."""
    record = lambda checked: identity.record('evaluation', checked.config, checked.facts())
    refuses, warns = opened(), opened(WARN)
    before = record(refuses)
    Record(tmp_path / 'guard', before).put('base', 'eval', 0, {'jpeg': 1.0})
    edit(files)
    with pytest.raises(ValueError, match='other settings .code of your own.eval.panel.other: '):
        Record(tmp_path / 'guard', record(refuses), differences=refuses.differences)
    for checked in (warns, warns, refuses):
        kept = Record(tmp_path / 'guard', record(checked), differences=checked.differences)
        assert kept.get('base', 'eval', 0) == {}  # a score of the old code is none of the new
    assert caplog.text.count('goes on with other code') == 1
    lines = (tmp_path / 'guard' / 'scores.jsonl').read_text().splitlines()
    assert json.loads(lines[-1]) == {'settings': record(refuses)} and len(lines) == 3

    served = {'servers of rewards': {'total': 'edited'}, identity.BASE: 'another'}
    found = warns.differences('evaluation', {**before, 'servers of rewards': {}}, before | served)
    assert [d.key for d in found] == [identity.BASE]


def test_rewards_of_ones_own_are_known_by_their_kind():
    spec = {'ocr': {}, 'mine': {'kind': 'my_rewards:Mine'}, 'wrong': 3, 'worse': {'kind': 4}}
    assert own_kinds(spec) == {'mine': 'my_rewards:Mine'}
