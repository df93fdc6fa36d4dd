"""What makes two runs the same: keys of science do, in the scopes that they matter for; keys of the
machine and of the display never. Records of version 0.1 are read as they were meant.
"""

import copy
import json
import pathlib

import pytest

from configs import tiny_ocr
from densegrpo_jax.config.identity import (
    BASE,
    FILES,
    SCOPES,
    TOLD_BY,
    decides,
    differences,
    kind_of,
    record,
    told,
)
from densegrpo_jax.config.key import DISPLAY, MACHINE, SCIENCE, Selection
from densegrpo_jax.config.retired import RETIRED, renamed
from densegrpo_jax.config.schema import KEYS
from densegrpo_jax.training.progress import Progress

# The demo as commit 4206b0f recorded it, in checkpoints, scores.jsonl and psi.json.
RECORDS = json.loads((pathlib.Path(__file__).parent / 'records_0_1.json').read_text())
FACTS = {
    'training': {
        'psi': None,
        'prompts of data.train': '0f1e2d3c',
        'prompts of data.eval': '4b5a6978',
        'servers of rewards': {},
    },
    'evaluation': {'psi': None, 'prompts': {'eval': '4b5a6978'}, 'group': 1},
    'calibration': {'prompts of data.train': '0f1e2d3c', 'servers of rewards': {}},
}


def demo(**changes):
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict(changes)
    return config


def found(scope, old, **changes):
    """Key -> (there, here) of the differences to the demo with changes."""
    ours = record(scope, demo(**changes), FACTS.get(scope, {}))
    return {key: (before, now) for key, before, now in differences(scope, old, ours)}


def test_the_machine_and_the_display_never_decide():
    free = {name for name, key in KEYS.items() if key.kind in (MACHINE, DISPLAY)}
    assert {
        'rollout.prompts_per_batch',
        'optim.microbatch',
        'eval.batch',
        'model.scan',
        'model.remat',
        'model.attention',
        'mesh.data',
        'text_cache',
        'reward_workers',
        'label',
    } <= free
    for scope in SCOPES:
        # trained arrays are stacked where the blocks are scanned
        layout = {'model.scan'} if scope in ('training', 'gradients') else set()
        assert {name for name in free if decides(scope, name)} == layout
    assert all(decides('sweep', name) for name in KEYS.keys() - free)
    for scope, patterns in SCOPES.items():
        for pattern in (*patterns.keys, *patterns.but):
            assert any(name in Selection((pattern,)) for name in KEYS), (scope, pattern)


def test_what_a_key_of_the_table_is():
    assert kind_of('mesh') == MACHINE and kind_of('rollout') is None
    assert kind_of('credit.rule') == kind_of('reward.ocr.mode') == SCIENCE
    assert kind_of('reward.remote.urls') == kind_of('eval.panel.remote.token_env') == MACHINE
    assert kind_of('label') == DISPLAY and kind_of('workdir') is None
    assert kind_of('noise') == SCIENCE and not decides('sweep', 'noise')  # a group is no key


@pytest.mark.parametrize(
    'scope, decisive, free',
    [
        (
            'training',
            {'optim.learning_rate': 1.0, 'eval.steps': 3, 'eval.best': 'ocr', 'data.eval': 'x'},
            {
                'iterations': 7,
                'optim.max_bad': 1,
                'loss.measure_kl': True,
                'noise.psi_path': 'x',
                'search.nfe': 1,
                'eval.every': 3,
                'calibration.z': 2.0,
            },
        ),
        (
            'calibration',
            {'lora.init_from': 'x', 'calibration.eps2': 1.0, 'rollout.level': 0.5},
            {'lora.rank': 3, 'calibration.iterations': 1, 'rollout.group': 3, 'loss.beta': 1.0},
        ),
        (
            'evaluation',
            {'loss.cfg': False, 'eval.embedding': 'x', 'lora.rank': 3},
            {'loss.beta': 1.0, 'rollout.prompts': 4, 'search.nfe': 1, 'eval.every': 3},
        ),
        (
            'search',
            {'search.nfe': 1, 'noise.psi_path': 'x', 'eval.steps': 3, 'eval.embedding': 'x'},
            {'search.prompts': 1, 'optim.learning_rate': 1.0, 'credit.rule': 'sparse'},
        ),
    ],
)
def test_a_scope_holds_what_matters_for_it(scope, decisive, free):
    ours = record(scope, demo())
    assert differences(scope, ours, record(scope, demo(**free))) == []
    changed = record(scope, demo(**decisive))
    assert {key for key, *_ in differences(scope, ours, changed)} == set(decisive)
    assert differences(scope, ours, ours) == []


def test_rewards_are_the_same_wherever_they_are_asked():
    config = demo()
    asked = lambda **options: record('training', config_with(config, {'judge': options}))
    a = asked(urls='http://a:1', names=('q',), range=(0.0, 1.0))
    assert (
        differences('training', a, asked(urls='http://b:2', names=('q',), range=(0.0, 1.0))) == []
    )
    (only,) = differences('training', a, asked(urls='', names=('q', 'r'), range=(0.0, 1.0)))
    assert only == ('reward.judge.names', ['q'], ['q', 'r'])
    # also where an option of the machine, or none, is all that a reward has
    one, other = ({'judge': {'urls': 'http://a:1'}}, {'jpeg': {}})
    names = [key for key, *_ in differences('sweep', *(_records(config, one, other)))]
    assert names == ['reward.jpeg', 'reward.judge']


def _records(config, *rewards):
    return [record('sweep', config_with(config, reward)) for reward in rewards]


def config_with(config, reward):
    config = copy.deepcopy(config)
    config.reward = reward
    return config


@pytest.mark.parametrize('scope', RECORDS)
def test_records_of_version_0_1_continue(scope):
    assert found(scope, RECORDS[scope]) == {}
    assert found(scope, RECORDS[scope], **{'rollout.level': 0.5}) == {'rollout.level': (0.7, 0.5)}


def test_a_retired_key_must_have_the_value_that_is_left():
    old = RECORDS['training']
    for name, always in RETIRED.items():
        group, key = name.split('.')
        # records of 0.1 hold those that it had
        assert old.get(group, {}).get(key, always.value) == always.value and name not in KEYS
    other = {**old, 'credit': {**old['credit'], 'completion_solver': 'ab2'}}
    ours = record('training', demo(), FACTS['training'])
    text = told(differences('training', other, ours))
    assert text == "credit.completion_solver: 'ab2', now always 'euler'"


def test_what_a_record_lacks():
    old = copy.deepcopy(RECORDS['training'])
    # keys that are newer than the record count as their defaults
    del old['credit']['gae_lambda'], old['ema']
    assert found('training', old) == {'ema.every': (8, 1)}
    assert found('training', old, **{'credit.gae_lambda': 0.25, 'ema.every': 8}) == {
        'credit.gae_lambda': (0.5, 0.25)
    }
    # of facts, and of the evaluation in the oldest checkpoints, nothing is known
    old = copy.deepcopy(RECORDS['training'])
    del old['prompts of data.eval'], old['servers of rewards'], old['eval'], old['psi']
    assert found('training', old) == {}
    # ... but that there was no calibrated noise
    ours = record('training', demo(), {**FACTS['training'], 'psi': [0.5]})
    assert differences('training', old, ours) == [('psi', None, [0.5])]
    # of a key that decided once, whatever its value was
    old['loss']['measure_kl'] = True
    assert found('training', old) == {}
    # a key that this version does not know is of a later one
    old['credit']['newer'] = 1
    assert told(differences('training', old, ours)).startswith('credit.newer: 1, now absent')


def test_facts_decide_in_every_part():
    ours = record('evaluation', demo(), FACTS['evaluation'])
    other = copy.deepcopy(ours)
    other['prompts']['eval'], other['group'] = '0f1e2d3c', 4
    assert [key for key, *_ in differences('evaluation', other, ours)] == ['group', 'prompts.eval']
    # names and sizes of the base's files, which earlier versions held, are not compared
    assert RECORDS['evaluation']['base'] and not found('evaluation', RECORDS['evaluation'])


NAMES = {
    'model.path': '/another/place',
    'model.transformer_file': 'b.safetensors',
    'data.train': '/data/words.txt',
    'data.eval': '/data/held_out.txt',
    'data.scenes': 7,
    'data.eval_prompts': 320,
}
WEIGHTS = {BASE: '00ff', FILES: '11ee'}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('scope', ['training', 'calibration', 'evaluation', 'search', 'rewards'])
def test_a_name_does_not_decide_where_both_records_tell_what_it_names(scope, name):
    facts = {**FACTS.get(scope, {}), **WEIGHTS}
    old, new = record(scope, demo(), facts), record(scope, demo(**{name: NAMES[name]}), facts)
    keys = lambda old, new: {key for key, *_ in differences(scope, old, new)}
    assert keys(old, new) == set()
    counts, tells = decides(scope, name), TOLD_BY[name]
    for fact in tells if counts else ():
        assert keys(old, {**new, fact: 'other'}) == {fact, name}
        # of before there was this fact: as it was then
        assert keys({k: v for k, v in old.items() if k != fact}, new) == {name}
    # what is there under the name is not known yet: then it cannot be told to be another
    before = {key: value for key, value in new.items() if key not in facts}
    assert not keys(old, before) & {name}


def test_names_of_version_0_1_are_read():
    assert Progress.of({'velocity_evals': 7, 'seconds': 2.0}) == Progress(nfe=7, seconds=2.0)
    assert renamed('curve', {'nfe': '1'}) == {'nfe': '1'}
