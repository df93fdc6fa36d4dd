"""--help shows the keys of the configuration, made from the table."""

import re
import subprocess
import sys

import pytest

from densegrpo_jax.config import help
from densegrpo_jax.config.key import Key
from densegrpo_jax.config.key_help import GROUPS, WIDTH, hint, keys_text
from densegrpo_jax.config.schema import KEYS, TABLE


def test_every_key_has_its_default_its_range_and_its_help():
    text = keys_text()
    assert max(map(len, text.splitlines())) <= WIDTH
    shown = re.findall(r'^  (\w[\w.]*)=', text, re.M)
    assert shown == list(KEYS)
    plain = ' '.join(text.split())
    for name, key in KEYS.items():
        assert ' '.join(key.help.split()) in plain and key.range in plain, name
    assert 'optim.b1=0.9 (float, 0 ≤ x < 1) Decay of the first moment.' in plain
    assert "model.dtype='bfloat16' ('bfloat16', 'float32') Dtype of" in plain


@pytest.mark.parametrize('group', GROUPS)
def test_a_group_lists_its_keys_alone(group):
    names = re.findall(r'^  (\w[\w.]*)=', keys_text([group]), re.M)
    assert names == [f'{group}.{inner}' for inner in TABLE[group]]


def test_keys_may_be_named_too():
    assert keys_text(['seed', 'optim.eps']).splitlines()[0].startswith('  seed=42  (int')
    assert all(name in hint() for name, entry in TABLE.items() if not isinstance(entry, Key))


@pytest.mark.parametrize(
    'name, meant',
    [
        ('modle', "did you mean 'model'"),
        ('optim.learning', "did you mean 'optim.learning_rate'"),
        ('learning_rat', "did you mean 'optim.learning_rate'"),
        ('qqq', 'groups: log, model'),
    ],
)
def test_other_names_are_refused(name, meant):
    with pytest.raises(ValueError, match=f'--help {name}: there is no such group or key; {meant}'):
        keys_text([name])


@pytest.mark.parametrize(
    'arguments, names',
    [
        (['c', '--help'], []),
        (['c', '--help', 'model', 'optim'], ['model', 'optim']),
        (['c', '--help=model,optim'], ['model', 'optim']),
        (['c', '--config=x', '--help', 'model', '--seed=1'], ['model']),
        (['c', 'model'], []),
    ],
)
def test_the_words_after_help(arguments, names):
    assert help._after_help(arguments) == names


def test_the_command_prints_them():
    run = lambda module, *words: subprocess.run(
        [sys.executable, '-m', f'densegrpo_jax.{module}', '--help', *words],
        capture_output=True,
        text=True,
    )
    done = run('main', 'ema')
    assert done.returncode == 0 and done.stdout == keys_text(['ema']).strip('\n') + '\n'
    done = run('main')
    assert done.returncode == 0 and done.stdout.strip().endswith(keys_text().strip())
    assert done.stdout.index('--workdir:') < done.stdout.index('seed=42')
    done = run('sample', 'emma')
    assert done.returncode == 2 and done.stderr.startswith('error: --help emma: there is no such')


def test_a_closed_pipe_is_no_error():
    shell = f'{sys.executable} -m densegrpo_jax.main --help | head -3'
    done = subprocess.run(
        ['bash', '-c', f'set -o pipefail; {shell}'], capture_output=True, text=True
    )
    assert done.returncode == 0 and 'Traceback' not in done.stderr and done.stdout.count('\n') == 3
