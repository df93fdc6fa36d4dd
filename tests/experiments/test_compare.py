"""The ad-hoc comparison: its runs, its tables and its page; trainings are played by the script of
conftest.py.
"""

import functools
import pathlib
import re
import shutil
import types

import pytest
from absl import app

from densegrpo_jax.config.loading import with_method
from experiments import compare
from experiments.equal_cost.sweep import entries
from experiments.reproduction.records import Records
from experiments.reproduction.sweep import _own_code

ROOT = pathlib.Path(__file__).parents[2]

CONFIG = (
    'from densegrpo_jax.config.schema import default_config\n'
    'from densegrpo_jax.config.variants import apply\n'
    '\n'
    '\n'
    'def get_config(variant=""):\n'
    '    return apply(default_config(), variant, samples=8, transitions=8, devices=None)\n'
)
CHANGED = """

def changed():
    config = default_config()
    config.optim.learning_rate *= 2
    return config
"""


@pytest.fixture
def run(tmp_path, training):
    """The command in this process, with these flags."""
    config = tmp_path / 'some.py'
    config.write_text(CONFIG)

    def run(vary, seeds=(), variant=''):
        flag = types.SimpleNamespace(
            config=f'{config}{variant}',
            vary=vary,
            seeds=seeds,
            workdir=tmp_path / 'work',
            out=tmp_path / 'out',
        )
        return compare.main(flag, [])

    return run


def test_values_are_compared_over_seeds_and_added_to(tmp_path, run):
    assert run('credit.rule=dense,sparse', '01') == 0
    page = (tmp_path / 'out' / 'README.md').read_text()
    assert (
        '| **dense** | mean |  |  |  |  | **0.8050** ± 0.0071 (standard deviation over seeds) |'
        in page
    )
    assert '| sparse | 1 | 2 | 0.000 | 4 | 0.5100 | 0.7100 ± 0.0200 |' in page
    assert (tmp_path / 'out' / 'curves.png').stat().st_size > 5000
    before = (tmp_path / 'work' / 'dense' / '0' / 'summary.json').stat().st_mtime_ns
    (tmp_path / 'out' / 'notes.md').write_text('Dense is ahead.\n')
    assert run('credit.rule=dense,sparse', '012') == 0
    assert '\n\nDense is ahead.\n\n![curves]' in (tmp_path / 'out' / 'README.md').read_text()
    assert (tmp_path / 'work' / 'dense' / '0' / 'summary.json').stat().st_mtime_ns == before
    records = Records.load(tmp_path / 'out')
    assert records.seeds('sparse') == ['0', '1', '2']


def test_a_value_that_fails_is_left_out_and_the_status_says_so(tmp_path, run):
    assert run('credit.rule=dense,gae', '0') == 1
    page = (tmp_path / 'out' / 'README.md').read_text()
    assert '| dense | 0 |' in page and '| gae |' not in page and 'mean' not in page


@pytest.mark.parametrize(
    'vary,said',
    [
        ('credit.rule=dense,fails', "credit.rule='fails': expected one of"),
        ('rollout.steps=6,-1', 'rollout.steps=-1: expected a whole number'),
        ('rollout.steps=6,six', 'rollout.steps=six: expected a whole number'),
    ],
)
def test_a_value_that_its_run_would_refuse_is_refused_first(tmp_path, run, vary, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        run(vary, '0')
    assert not (tmp_path / 'work').exists()


def test_nothing_to_vary_is_refused(run):
    with pytest.raises(app.UsageError, match='expected key=value'):
        run('credit.rule')


def test_a_key_that_is_not_there_is_refused_before_anything_runs(tmp_path, run):
    with pytest.raises(
        ValueError,
        match='--vary=credit.role=dense,sparse: '
        "config.credit has no key 'role'; did you mean 'rule'",
    ):
        run('credit.role=dense,sparse', '0')
    assert not (tmp_path / 'work').exists()


def test_methods_are_variants_of_the_recipe(tmp_path, run):
    assert run('method=dense_grpo,flow_grpo', '0') == 0
    rows = Records.load(tmp_path / 'out').runs
    assert set(rows) == {('dense_grpo', '0'), ('flow_grpo', '0')}
    assert 'some.py:method=flow_grpo' in rows['flow_grpo', '0']['command']
    assert rows['dense_grpo', '0']['base'] == rows['flow_grpo', '0']['base']
    with pytest.raises(ValueError, match='method=flow_grp is not known; did you mean'):
        run('method=dense_grpo,flow_grp', '0')


def test_methods_are_compared_on_a_recipe_with_a_variant(tmp_path, run):
    assert with_method('tiny_ocr', 'dance') == 'tiny_ocr:method=dance'
    path = tmp_path / '12:30.py'  # of a time of day
    path.write_text(CONFIG)
    assert with_method(f'{path}:devices=2', 'dance') == f'{path}:devices=2,method=dance'
    assert run('method=dense_grpo,flow_grpo', '0', variant=':devices=1') == 0
    command = Records.load(tmp_path / 'out').runs['flow_grpo', '0']['command']
    assert 'some.py:devices=1,method=flow_grpo' in command
    entry = functools.partial(entries, f'{tmp_path}/some.py:devices=1', ['flow_grpo'], 1e9)
    assert [of.config.rpartition(':')[2] for of in entry(())[0]] == ['devices=1,method=flow_grpo']


def test_several_keys_change_together(tmp_path, run):
    vary = 'credit.rule+loss.kind=dense+grpo,examples.own_method:rule+examples.own_method:loss'
    assert run(vary, '01') == 0
    own = vary.partition(',')[2]
    rows = Records.load(tmp_path / 'out').runs
    assert set(rows) == {(value, seed) for value in ('dense+grpo', own) for seed in '01'}
    for key in ('credit.rule=examples.own_method:rule', 'loss.kind=examples.own_method:loss'):
        assert f' --config.{key} ' in rows[own, '0']['command']
    names = sorted(path.name for path in (tmp_path / 'work').iterdir() if path.name != 'text')
    assert names[0] == 'dense+grpo' and ':' not in names[1]
    assert names[1].startswith('examples.own_method_rule+examples.own_method_loss-')
    page = (tmp_path / 'out' / 'README.md').read_text()
    assert page.startswith('# credit.rule + loss.kind: dense + grpo against examples.own_method:')
    assert '| dense + grpo | 0 |' in page and '| **dense + grpo** | mean |' in page


def test_runs_of_earlier_code_of_ones_own_are_made_again(tmp_path, run, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'their_rule.py').write_text((ROOT / 'examples/own_method.py').read_text())
    vary, folder = 'credit.rule=dense,their_rule:rule', tmp_path / 'work' / 'their_rule_rule-*'
    assert run(vary, '01') == 0
    ends = lambda: [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob('summary.json'))]
    before = ends()
    _own_code.cache_clear()  # as in another process
    assert run(vary, '01') == 0 and ends() == before
    rows = Records.load(tmp_path / 'out').runs
    assert rows['their_rule:rule', '0']['own_code'] and not rows['dense', '0']['own_code']
    with open(tmp_path / 'their_rule.py', 'a') as file:
        file.write('# mended\n')
    _own_code.cache_clear()
    [theirs] = (tmp_path / 'work').glob(folder.name)
    (theirs / '1' / 'checkpoints').mkdir()
    with pytest.raises(ValueError, match='other code of your own .*: move it away'):
        run(vary, '01')
    shutil.rmtree(theirs)
    script = tmp_path / 'training.py'  # fails now: no row of the earlier code is left beside
    script.write_text('import sys; sys.exit(3)')
    assert run(vary, '01') == 1
    assert {value for value, _ in Records.load(tmp_path / 'out').runs} == {'dense'}
    assert set(ends()) < set(before)  # those of dense, as they were


def test_a_folder_keeps_values_apart_and_in_the_work_directory():
    values = ['a:b', 'a_b', 'a/b', '/a', '..', 'a b', 'x' * 300, 'y' * 300]
    names = [compare.folder_name(value) for value in values]
    assert len({*names}) == len(values) and names[1] == 'a_b' and max(map(len, names)) < 120
    assert not any(set('/: ') & {*name} or name in ('', '.', '..') for name in names)


@pytest.mark.parametrize(
    'vary,said',
    [
        ('credit.rule+loss.kind=dense+grpo,sparse', "expected a value for each .* in 'sparse'"),
        ('credit.rule+loss.kind=dense+', r"in 'dense\+', joined by \+, as in VALUE1\+VALUE2"),
        ('credit.rule+credit.rule=dense+sparse', 'expected different keys'),
        ('credit.rule+loss.king=dense+grpo', "no key 'king'; did you mean 'kind'"),
        ('credit.rule+loss.kind=dense+own_lost:loss', "no module 'own_lost'"),
        ('credit.rule+credit.gae_lambda=dense+0.2,sparse+0.8', 'equal in credit.gae_lambda'),
    ],
)
def test_mistakes_in_several_keys_are_told_before_anything_runs(tmp_path, run, vary, said):
    with pytest.raises(ValueError, match=said):
        run(vary, '0')
    assert not (tmp_path / 'work').exists()


def test_a_method_may_change_together_with_keys(tmp_path, run):
    assert run('method+loss.beta=dense_grpo+0.1,flow_grpo+0.2', '0') == 0
    command = Records.load(tmp_path / 'out').runs['flow_grpo+0.2', '0']['command']
    assert command.endswith('some.py:method=flow_grpo --config.loss.beta=0.2 --config.seed=0')


def test_a_run_of_which_only_the_table_is_left_is_kept(tmp_path, run):
    assert run('credit.rule=dense', '0') == 0
    shutil.rmtree(tmp_path / 'work')
    assert run('credit.rule=dense,sparse', '0') == 0
    assert not (tmp_path / 'work' / 'dense').exists()
    assert Records.load(tmp_path / 'out').seeds('dense') == ['0']


def test_results_of_another_base_are_refused_before_anything_runs(tmp_path, run):
    assert run('credit.rule=dense', '0') == 0
    text = (tmp_path / 'some.py').read_text()
    (tmp_path / 'some.py').write_text(text.replace('default_config(),', 'changed(),') + CHANGED)
    with pytest.raises(ValueError, match='has results of the base configuration some-.*give anoth'):
        run('credit.rule=sparse', '0')
    assert not (tmp_path / 'work' / 'sparse').exists()


def test_a_key_that_no_run_reads_is_refused_before_anything_runs(tmp_path, run):
    with pytest.raises(
        ValueError,
        match="would be equal in credit.gae_lambda. credit.gae_lambda=0.2 .* choose 'gae'",
    ):
        run('credit.gae_lambda=0.2,0.8', '0')
    with pytest.raises(
        ValueError, match='--config.loss.beta=high: expected a finite number at least 0'
    ):
        run('loss.beta=high', '0')
    assert not (tmp_path / 'work').exists()
