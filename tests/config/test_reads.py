"""What each command reads of a configuration, against the table of keys and what decides."""

import pytest

from densegrpo_jax.config import identity
from densegrpo_jax.config.guard_keys import GUARD
from densegrpo_jax.config.reads import READS, check_reads
from densegrpo_jax.config.schema import KEYS, TABLE

# what is compared, and how the commands that share it are called
SCOPES = {'evaluation': 'evaluate', 'search': 'search', 'calibration': 'calibrate'}


@pytest.mark.parametrize('command', READS)
def test_every_pattern_is_of_a_key(command):
    names = [*KEYS, *TABLE, *(f'{name}.ocr' for name in ('reward', 'eval.panel'))]
    for pattern in (*READS[command].keys, *READS[command].but):
        assert any(name in READS[command]._replace(keys=(pattern,), but=()) for name in names)


@pytest.mark.parametrize('scope', SCOPES)
def test_what_decides_is_read(scope):
    deciding = {key for key in KEYS if identity.decides(scope, key)}
    assert not {key for key in deciding if key not in READS[SCOPES[scope]]}


def test_options_of_rewards_are_read_with_them():
    for command in ('main', 'evaluate', 'search', 'calibrate', 'reward_server'):
        check_reads(command, READS[command], ['reward', 'reward.ocr.mode'])
    check_reads('evaluate', READS['evaluate'], ['eval.panel.jpeg.quality'])


def test_single_keys_of_what_is_not_read():
    check_reads('calibrate', READS['calibrate'], ['plan.active'])  # decides what is trained
    check_reads('process_reward', READS['process_reward'], ['guide.ridge', 'plan.active'])
    assert 'guide.scale' not in READS['process_reward'] and 'd2.steps' not in READS['main']
    assert 'plan.kind' not in READS['calibrate']


def test_a_preflight_takes_the_keys_of_the_guard_that_it_prices():
    check_reads('preflight', READS['preflight'], [f'guard.{name}' for name in GUARD])


def test_a_command_s_own_key_of_the_name_is_told():
    with pytest.raises(ValueError, match=r'unread=warn\. Its own is calibration\.prompts$'):
        check_reads('calibrate', READS['calibrate'], ['rollout.prompts'])
    with pytest.raises(ValueError, match='unread=warn$'):
        check_reads('sample', READS['sample'], ['search.nfe'])


def test_rewards_are_of_no_use_to_some():
    for command, key in (('reward_server', 'seed'), ('sample', 'reward.ocr.mode')):
        with pytest.raises(ValueError, match=f'{key} is given, and densegrpo_jax.{command} does'):
            check_reads(command, READS[command], [key])
