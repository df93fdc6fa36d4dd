"""Every command on the pages: its flags, its recipe, its keys and its files are there, and it runs
here or is marked by the table of what was not at hand.
"""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from densegrpo_jax.__main__ import COMMANDS
from tests.docs.commands import ROOT, STARTERS, all_commands, commands_of
from tools.verification import HARDWARE, RECIPES, RESULT, STEPS, hardware_of

# a file of the reader's own -> one that is there
PLACEHOLDERS = {'my/recipe.py': 'configs/tiny_ocr.py'}
FLAGS = re.compile(r'--[a-z]')
TRAINING = 'densegrpo_jax.main'


def python_part(text):
    """(module, arguments) of the Python command in a command; None if there is none."""
    for own, there in PLACEHOLDERS.items():
        text = text.replace(own, there)
    words = shlex.split(re.sub(r'\s>.*$', '', text))
    while words and re.fullmatch(r'\w+=.*', words[0]):
        words = words[1:]  # settings of the environment
    start = words[0].split('/')[-1]
    if start == 'densegrpo':
        return (f'densegrpo_jax.{COMMANDS[words[1]][0]}', words[2:]) if words[1:] else None
    if start in ('python', 'python3') and words[1] == '-m':
        known = ('densegrpo_jax', 'experiments', 'tools', 'benchmarks')
        module = words[2]
        return (module, words[3:]) if module.split('.')[0] in known else None
    if start == 'docker' and words[1] == 'run':
        image = next(i for i, word in enumerate(words) if word.startswith('densegrpo:'))
        return f'densegrpo_jax.{COMMANDS[words[image + 1]][0]}', words[image + 2 :]
    if start == 'bash':
        arguments = words[2:]
        if '--' in arguments:
            return TRAINING, arguments[arguments.index('--') + 1 :]
        if words[1] == 'launch/local.sh':
            return TRAINING, arguments
    return None


ALL = all_commands()
PYTHON = {f'{command.page}: {command.text}': python_part(command.text) for command in ALL}


def reads_flags(module, arguments):
    """Whether a module reads its arguments as flags of absl; the face passes them on."""
    path = ROOT / module.replace('.', '/')
    path = path / '__main__.py' if path.is_dir() else path.with_suffix('.py')
    assert path.is_file(), f'there is no module {module}'
    text = path.read_text(encoding='utf-8')
    return 'run_main(main' in text or 'app.run(main' in text


# command -> a word of its error
WRONG = {
    'python -m densegrpo_jax.main --config=tiny_ocr --workdir=w --config.nothing=1': "'nothing'",
    'densegrpo train --config=no_such_recipe --workdir=w': 'no_such_recipe',
    'densegrpo train --config=tiny_ocr --workdir=w --config.optim.microbatch=0': 'microbatch',
    'densegrpo plan --config=tiny_ocr --topology=h100:1 --no_such_flag': 'no_such_flag',
    'densegrpo sample --config=tiny_ocr nonsense': 'nonsense',
    'bash launch/slurm.sh --name=a -- --config=tiny_ocr --workdir=w --config.groop=1': 'groop',
}


@pytest.fixture(scope='module')
def errors():
    """Name -> error of every Python command on the pages, and of the wrong ones."""
    cases = [[name, *part] for name, part in PYTHON.items() if part and reads_flags(*part)]
    cases += [[text, *python_part(text)] for text in WRONG]
    done = subprocess.run(
        [sys.executable, 'tests/docs/read_arguments.py', *sorted({case[1] for case in cases})],
        cwd=ROOT,
        input=json.dumps(cases),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        check=True,
    )
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('['))
    assert set(found) == {case[0] for case in cases}
    return found


def test_commands_are_collected():
    """Indented and fenced, continued lines, comments, settings before a command; no formulas."""
    text = """
Words.

    pip install .    # a comment
    A=1 python -m densegrpo_jax.main --config=x \\
        --workdir=y
    e = mc² + python

```bash
$ densegrpo watch
```
```python
python -m nothing
```
"""
    assert sorted(commands_of(text)) == [
        'A=1 python -m densegrpo_jax.main --config=x --workdir=y',
        'densegrpo watch',
        'pip install .',
    ]
    assert len(ALL) > 40 and {'README.md', 'docs/running.md'} <= {c.page for c in ALL}


def test_flags_recipes_and_keys_are_known(errors):
    wrong = {name: error for name, error in errors.items() if error and name not in WRONG}
    assert len(errors) > 30 and not wrong, json.dumps(wrong, indent=1)


@pytest.mark.parametrize('text', WRONG)
def test_what_is_wrong_would_be_found(text, errors):
    assert WRONG[text] in errors[text]


@pytest.mark.parametrize('command', ALL, ids=lambda c: f'{c.page}: {c.text[:60]}')
def test_files_and_scripts_of_a_command_are_there(command):
    words = shlex.split(re.sub(r'\s>.*$', '', command.text))
    if words[0] == 'bash':
        script = ROOT / words[1]
        assert script.is_file(), command
        options = [word.split('=')[0] for word in words[2:] if FLAGS.match(word)]
        rest = '--' in words or words[1] == 'launch/local.sh'
        text = script.read_text(encoding='utf-8')
        known = [o for o in options if o in text or rest or 'exec' in text and '"$@"' in text]
        assert known == options, f'{words[1]} does not know {set(options) - set(known)}'
    for before, word in zip(words, words[1:]):
        if before == '-r' and 'pip' in command.text:
            assert (ROOT / word).is_file(), command
    assert words[0].split('/')[-1] in STARTERS or '=' in words[0]


@pytest.mark.parametrize('command', ALL, ids=lambda c: f'{c.page}: {c.text[:60]}')
def test_a_command_runs_here_or_is_marked(command):
    """Recipes that did not train here need what the table names."""
    part = python_part(command.text)
    recipe = next(
        (a.split('=', 1)[1] for a in (part[1] if part else []) if a.startswith('--config=')), ''
    )
    name = pathlib.PurePath(recipe.split(':')[0]).stem
    if hardware_of(command.text) is None and name in RECIPES:
        assert RECIPES[name].level in (RESULT, STEPS), command


def test_every_mark_is_of_some_command():
    marks = {hardware_of(command.text) for command in ALL}
    assert set(HARDWARE) <= marks, [row.title for row in HARDWARE if row not in marks]
