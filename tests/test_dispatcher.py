"""`densegrpo COMMAND` and `python -m densegrpo_jax COMMAND`."""

import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

import densegrpo_jax
from densegrpo_jax import __main__ as dispatcher

ROOT = pathlib.Path(__file__).parents[1]


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['densegrpo', *arguments])
    dispatcher.main()


def test_every_command_is_listed(monkeypatch, capsys):
    files = (ROOT / 'densegrpo_jax').glob('[!_]*.py')
    rooms = {'search', 'preflight'}  # a room that is a command too: its __main__.py
    commands = {module for module, _ in dispatcher.COMMANDS.values()}
    assert commands == {f.stem for f in files} | rooms
    call(monkeypatch, '--help')
    shown = capsys.readouterr().out
    assert all(f'\n  {name} ' in shown for name in dispatcher.COMMANDS)


def test_the_script_is_this_function():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert project['scripts'] == {'densegrpo': 'densegrpo_jax.__main__:main'}


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'error: no command given'),
        (['trian'], "error: unknown command 'trian'; did you mean 'train'?"),
        (['--config=x'], "error: unknown command '--config=x'"),
    ],
)
def test_what_is_no_command_gets_the_list(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        call(monkeypatch, *arguments)
    shown = capsys.readouterr().err
    assert exit.value.code == 2 and shown.startswith(message) and '\n  evaluate ' in shown


def test_a_command_gets_its_arguments_and_gives_its_status():
    run = lambda *arguments: subprocess.run(
        [sys.executable, '-m', 'densegrpo_jax', *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    version = run('--version')
    assert version.stdout == f'{densegrpo_jax.__version__}\n' and version.returncode == 0
    done = run('train', '--config=nowhere.py', '--workdir=w')
    assert done.returncode == 2 and 'nowhere.py' in done.stderr
    assert 'densegrpo_jax.reward_server' in run('serve-rewards', '--help').stdout
    shown = run('sample', '--help').stdout
    assert '--compare' in shown and 'densegrpo_jax.sample' in shown


def test_the_script_finds_modules_in_the_current_folder(tmp_path):
    """As `python -m` does, and not if Python is told to leave that folder out."""
    (tmp_path / 'bin').mkdir()
    script = tmp_path / 'bin' / 'densegrpo.py'
    script.write_text('from densegrpo_jax.__main__ import main\n\nmain()\n')
    (tmp_path / 'my_rewards.py').write_text('')
    (tmp_path / 'own.py').write_text(
        'from ml_collections import ConfigDict\n\n\ndef get_config():\n'
        "    return ConfigDict({'reward': {'a': {'kind': 'my_rewards:Mine', 'weight': 1.0}}})\n"
    )

    def error(*options):
        done = subprocess.run(
            [sys.executable, *options, str(script), 'reward-server', '--config=own.py'],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )
        return done.stderr

    assert "there is no module 'my_rewards'" not in error() and 'Mine' in error()
    assert "there is no module 'my_rewards'" in error('-P')
