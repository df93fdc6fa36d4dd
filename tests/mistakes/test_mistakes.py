"""Mistakes in what is typed, written or found, over all commands: a line that names the thing and
what was expected, status 2, no traceback, before any work. `forks.py` runs most of them.
"""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from mistakes import found, late, owned, shell, special, typed  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTHING = lambda folder: None
TABLES = {
    'key': [
        (NOTHING, ['main', typed.TINY, '--workdir=run', f'--config.{text}'], words)
        for text, words in typed.KEYS
    ],
    'flag': [(NOTHING, arguments, words) for arguments, words in typed.FLAGS],
    'given': [(NOTHING, arguments, words) for arguments, words in typed.GIVEN],
    'tool': [(NOTHING, arguments, words) for arguments, words in typed.TOOLS],
    'recipe': found.RECIPES,
    'folder': found.FOLDERS,
    'prompt': found.PROMPTS,
    'model': found.MODELS,
    'lora': found.LORA,
    'special': special.SPECIAL,
    'owned': owned.OWNED,
    'form': special.FORMS,
}
CASES = {f'{name}{i}': case for name, rows in TABLES.items() for i, case in enumerate(rows)}
assert len(CASES) >= 150
LATE = {f'late{i}': case for i, case in enumerate(late.LATE)}


def module(command):
    """The module of a command, as in `python -m MODULE`."""
    known = command.startswith(('experiments.', 'tools.'))
    return command if known else f'densegrpo_jax.{command}'


# name -> case of a process of its own
PROCESSES = {f'{" ".join(case[1])} {i}': case for i, case in enumerate(shell.QUICK)}
SLOW = {f'{" ".join(case[1])} {i}': case for i, case in enumerate(shell.SLOW)}
assert len(PROCESSES) + len(SLOW) >= 30


def run(cases, place):
    """Case -> (its exit status, its output, the files and folders it has made); all have run."""
    orders, found = [], {}
    listed = lambda folder: {str(path.relative_to(folder)) for path in folder.rglob('*')}
    for name, (make, (command, *arguments), _) in cases.items():
        folder = place / name
        folder.mkdir()
        make(folder)
        found[name] = listed(folder) | {'output'}
        orders.append([name, module(command), arguments, str(folder), {}])
    done = subprocess.run(
        [sys.executable, 'tests/mistakes/forks.py', *sorted({order[1] for order in orders})],
        cwd=ROOT,
        input=json.dumps(orders),
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        check=True,
    )
    return {
        name: (
            status,
            (place / name / 'output').read_text(errors='replace'),
            sorted(listed(place / name) - found[name]),
        )
        for name, status in map(json.loads, done.stdout.splitlines())
    }


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
    """What `run` gives for all cases."""
    return run(CASES, tmp_path_factory.mktemp('mistakes'))


@pytest.fixture(scope='module')
def ended_late(tmp_path_factory):
    """What `run` gives for the cases that take seconds each."""
    return run(LATE, tmp_path_factory.mktemp('late'))


def check(arguments, words, status, output):
    """Asserts that a command has refused its arguments as it should."""
    said = [line for line in output.splitlines() if line.startswith('error: ')]
    assert 'Traceback' not in output and status == 2, f'{arguments}: status {status}\n{output}'
    assert '\nencoding ' not in f'\n{output}', f'{arguments}: late\n{output}'
    assert len(said) == 1 and words in said[0], f'{arguments}: expected {words!r} in\n{output}'


@pytest.mark.parametrize('name', CASES)
def test_a_mistake_is_named(name, ended):
    _, arguments, words = CASES[name]
    *said, left = ended[name]
    check(arguments, words, *said)
    assert not left, f'{arguments}: the refused command has made {left}'


@pytest.mark.slow
@pytest.mark.parametrize('name', LATE)
def test_a_mistake_is_named_before_work(name, ended_late):
    _, arguments, words = LATE[name]
    *said, left = ended_late[name]
    check(arguments, words, *said)
    assert not left


def start(name, case, place):
    """The process of a case of `shell`."""
    make, (command, *arguments), environment, _ = case
    folder = place / str(abs(hash(name)))
    folder.mkdir()
    make(folder)
    return subprocess.Popen(
        [sys.executable, '-m', command, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
    )


@pytest.fixture(scope='module', autouse=True)
def ending_processes(tmp_path_factory):
    """Name -> future of (exit status, output). They run beside the imports of `forks.py`, one at a
    time.
    """
    place = tmp_path_factory.mktemp('processes')

    def run(item):
        process = start(*item, place)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield {name: pool.submit(run, (name, case)) for name, case in PROCESSES.items()}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize('name', PROCESSES)
def test_a_mistake_is_named_by_a_process_of_its_own(name, ending_processes):
    _, arguments, _, words = PROCESSES[name]
    check(arguments, words, *ending_processes[name].result())


@pytest.mark.slow
@pytest.mark.parametrize('name', SLOW)
def test_a_process_of_every_command_names_a_mistake(name, tmp_path):
    _, arguments, _, words = SLOW[name]
    process = start(name, SLOW[name], tmp_path)
    output, _ = process.communicate(timeout=120)
    check(arguments, words, process.returncode, output)


def test_a_folder_that_is_gone_is_named(tmp_path):
    gone = 'mkdir gone; cd gone; rmdir ../gone; exec "$0" -m densegrpo_jax train'
    done = subprocess.run(
        ['sh', '-c', gone, sys.executable],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert 'error: the current folder has been removed' in done.stderr


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ('tpu', 'banana')]


@pytest.mark.parametrize('platform', ['cuda', *SLOWER])
def test_a_platform_that_is_not_there_is_named(platform, tmp_path):
    """In a process of its own: a fork has imported JAX with the platform of its parent."""
    done = subprocess.run(
        [sys.executable, '-m', 'densegrpo_jax.main', typed.TINY, f'--workdir={tmp_path / "run"}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, 'JAX_PLATFORMS': platform},
    )
    said = f'error: JAX cannot start the platform {platform} (JAX_PLATFORMS={platform}): '
    assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr
