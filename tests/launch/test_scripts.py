"""The scripts against a stand-in interpreter that records how it was called: nothing is
installed here.
"""

import os
import shutil
import subprocess
from pathlib import Path
from unittest.mock import ANY

import pytest

ROOT = Path(__file__).parents[2]

# Answers as a Python of $FAKE_VERSION would; `-m venv DIR` copies it into DIR; pip and modules only
# write down their arguments.
STAND_IN = """#!/bin/bash
case "$*" in
  "-c import sys; sys.exit(sys.version_info"*) [ "$FAKE_VERSION" != old ]; exit ;;
  "-c import hashlib"*) cksum <"${!#}" | cut -d' ' -f1; exit ;;
  "--version") echo "Python 3.11.0"; exit ;;
  "-m venv"*) mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python"; exit ;;
  "-m pip --version") exit ;;
esac
printf -v call '%s|' "$@"
echo "$call" >>"$CALLS"  # in one piece, where calls run side by side
case "$*" in
  "-m pip install"*)
    echo "Collecting jax"; echo "Installing collected packages: numpy, jax"
    echo "ERROR: No matching distribution" >&2
    exit "${FAKE_PIP:-0}" ;;
  "-m ruff"*) exit "${FAKE_RUFF:-0}" ;;
  "-m densegrpo_jax.main"*) exit "${FAKE_MAIN:-0}" ;;
  "-m pytest"*)
    env | grep -E "^(MKL_|OMP_NUM|XLA_FLAGS|JAX_COMP)" | sort >>"$CALLS.env"
    [ "$MKL_ENABLE_INSTRUCTIONS" != "${FAKE_FAILS:-nothing}" ] ;;
esac
"""


PYTEST = ['-m', 'pytest', '-q', '-n', '3', '--dist', 'loadfile', '--no-loadscope-reorder']


@pytest.fixture
def project(tmp_path):
    """A copy of the scripts, with requirement files of its own. Returns run(script, *args, **env)
    -> CompletedProcess, and the folder.
    """
    folder = tmp_path / 'project with a space'
    for part in ('launch', '.ci'):
        shutil.copytree(ROOT / part, folder / part)
    (folder / 'requirements.txt').write_text('jax\n')
    (folder / 'requirements-test.txt').write_text('scipy\n')
    (folder / 'requirements-check.txt').write_text('ruff\n')
    fake = tmp_path / 'fake-python'
    fake.write_text(STAND_IN)
    fake.chmod(0o755)

    def run(script, *args, **env):
        env = {
            **os.environ,
            'PYTHON': str(fake),
            'CALLS': str(tmp_path / 'calls'),
            'FAKE_VERSION': 'new',
            'PYTEST_WORKERS': '3',
            **env,
        }
        env.pop('VENV', None)
        done = subprocess.run(
            ['bash', str(folder / 'launch' / script), *args],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        calls = (
            (tmp_path / 'calls').read_text().splitlines() if (tmp_path / 'calls').exists() else []
        )
        (tmp_path / 'calls').unlink(missing_ok=True)
        return done, [call[:-1].split('|') for call in calls]

    return run, folder


def test_installs_once_and_again_only_what_changed(project):
    run, folder = project
    done, calls = run('test.sh')
    assert done.returncode == 0, done.stderr
    install = ['-m', 'pip', 'install', '--disable-pip-version-check', '--no-input', '--no-compile']
    assert calls == [[*install, '-r', 'requirements.txt', '-r', 'requirements-test.txt'], PYTEST]
    assert 'unpacking 2 packages' in done.stderr and 'No matching' not in done.stderr
    assert 'Collecting jax' in (folder / '.venv' / 'install.log').read_text()

    assert run('test.sh')[1] == [PYTEST]
    command = ['--config=configs/tiny_ocr.py', '--workdir=runs/tiny_ocr', '--require_gain=0']
    assert run('demo.sh')[1] == [['-m', 'densegrpo_jax.main', *command]]
    (folder / 'requirements-test.txt').write_text('scipy\nchex\n')
    assert run('test.sh')[1][0] == [*install, '-r', 'requirements-test.txt']


def test_a_failed_installation_is_shown_and_tried_again(project):
    run, _ = project
    done, calls = run('demo.sh', FAKE_PIP='1')
    assert done.returncode == 1 and len(calls) == 1
    assert (
        'ERROR: No matching distribution' in done.stderr
        and 'error: pip could not install requirements.txt' in done.stderr
    )
    assert len(run('demo.sh')[1]) == 2


def test_an_old_python_is_refused(project):
    done, calls = project[0]('demo.sh', FAKE_VERSION='old')
    assert done.returncode == 1 and calls == []
    assert 'is not a Python 3.11 or newer' in done.stderr


def test_an_environment_of_an_old_python_is_made_anew(project):
    run, folder = project
    old = folder / '.venv' / 'bin' / 'python'
    old.parent.mkdir(parents=True)
    old.write_text(STAND_IN.replace('"$FAKE_VERSION" != old', '"$FAKE_VERSION" = old'))
    old.chmod(0o755)
    done, calls = run('demo.sh')
    assert done.returncode == 0 and len(calls) == 2
    assert old.read_text() == STAND_IN


@pytest.mark.parametrize(
    'given, passed',
    [
        ([], []),
        (['--all'], ['-m', '']),
        (['tests/core', '-k', 'a b', '-x'], ['tests/core', '-k', 'a b', '-x']),
        (['--all', '-x'], ['-m', '', '-x']),
    ],
)
def test_arguments_of_the_test_command(project, given, passed):
    calls = project[0]('test.sh', *given)[1]
    assert calls[-1] == [*PYTEST, *passed]


@pytest.mark.parametrize('option', ['--out=', '--out', 'dist', '--online'])
def test_an_option_that_the_wheel_does_not_take_is_said(project, option):
    done, calls = project[0]('wheel.sh', option)
    assert done.returncode == 1 and calls == []
    assert f'error: unknown option {option}: bash launch/wheel.sh [--out=FOLDER]' in done.stderr


def test_the_tests_of_other_machines(project, tmp_path, monkeypatch):
    """Every setting runs, with a cache of its own; the one that fails is named. Busy loops end, or
    their output would be waited for.
    """
    run, _ = project
    for name in ('MKL_ENABLE_INSTRUCTIONS', 'OMP_NUM_THREADS'):
        monkeypatch.delenv(name, raising=False)  # the script may have started this test
    settings = 'mkl-avx2 busy one-thread xla-sse4'
    options = {'JAX_COMPILATION_CACHE_DIR': '/cache', 'SETTINGS': settings, 'XLA_FLAGS': ''}
    done, calls = run('portability.sh', 'tests/core', '-x', **options, FAKE_FAILS='AVX2')
    assert done.returncode == 1 and 'not all tests passed under: mkl-avx2\n' in done.stderr
    assert calls[1:] == [[*PYTEST, 'tests/core', '-x']] * 4
    seen = (tmp_path / 'calls.env').read_text().splitlines()
    assert [line for line in seen if line.startswith('JAX')] == [
        f'JAX_COMPILATION_CACHE_DIR=/cache-{setting}' for setting in settings.split()
    ]
    isa = 'XLA_FLAGS=--xla_cpu_max_isa=SSE4_2'
    for line in ('MKL_ENABLE_INSTRUCTIONS=AVX2', 'OMP_NUM_THREADS=1', isa):
        assert seen.count(line) == 1
    assert run('portability.sh', **options, FAKE_FAILS='nothing')[0].returncode == 0
    done, calls = run('portability.sh', SETTINGS='busy amx')
    assert done.returncode == 1 and calls == []
    assert 'SETTINGS=amx is no setting; choose among: aten-default' in done.stderr


@pytest.mark.parametrize(
    'code, message',
    [(0, 'Results in runs/other'), (75, 'the same command continues'), (3, 'failed (exit code 3)')],
)
def test_the_demo_hands_on_the_exit_code(project, code, message):
    run, folder = project
    (folder / 'runs' / 'other').mkdir(parents=True)
    (folder / 'runs' / 'other' / 'curve.png').touch()
    done, calls = run('demo.sh', '--workdir=runs/other', '--config.seed=1', FAKE_MAIN=str(code))
    assert done.returncode == code and message in done.stderr
    assert calls[-1][2:4] == ['--config=configs/tiny_ocr.py', '--workdir=runs/other']
    assert calls[-1][4:] == ['--require_gain=0', '--workdir=runs/other', '--config.seed=1']
    assert ('runs/other/curve.png' in done.stderr) == (code == 0)


def test_the_demo_tells_its_own_options(project):
    done, calls = project[0]('demo.sh', '--help')
    assert done.returncode == 0 and not calls
    assert '`--quick` runs' in done.stdout and 'set -' not in done.stdout


def test_the_quick_demo_is_another_method_beside_the_first(project):
    run, folder = project
    runs = [folder / 'runs' / name for name in ('tiny_ocr', 'tiny_ocr_quick')]
    for path in runs:
        path.mkdir(parents=True)
    (runs[0] / 'summary.json').touch()
    done, calls = run('demo.sh', '--quick', '--config.seed=1')
    assert calls[-1][2:] == [
        '--config=configs/tiny_ocr_quick.py',
        '--workdir=runs/tiny_ocr_quick',
        '--require_gain=0',
        '--config.seed=1',
    ]
    assert 'side by side' not in done.stderr
    (runs[1] / 'summary.json').touch()
    done, _ = run('demo.sh', '--quick')
    both = '--workdir=runs/tiny_ocr --workdir=runs/tiny_ocr_quick --out=runs/tiny_ocr_both'
    assert both in done.stderr


def test_every_check_runs_also_after_one_that_fails(project):
    run, folder = project
    done, calls = run('check.sh')
    assert done.returncode == 1 and 'error: shellcheck failed' in done.stderr  # none is there
    shellcheck = folder / '.venv' / 'bin' / 'shellcheck'
    shellcheck.write_text('#!/bin/bash\necho "shellcheck saw $*"\n')
    shellcheck.chmod(0o755)

    done, calls = run('check.sh')
    assert done.returncode == 0, done.stderr
    assert [call[1:3] for call in calls] == [
        ['ruff', 'check'],
        ['ruff', 'format'],
        ['mypy', ANY],
        ['mkdocs', 'build'],
    ]
    assert 'shellcheck saw -x launch/check.sh' in done.stderr and done.stdout == ''

    done, calls = run('check.sh', FAKE_RUFF='1')
    assert done.returncode == 1 and len(calls) == 4
    assert 'error: ruff check, ruff format failed' in done.stderr and 'mypy: ok' in done.stderr

    assert run('check.sh', '--fix')[1][0][:5] == ['-m', 'ruff', 'check', '--quiet', '--fix-only']
    assert run('check.sh', '--all')[1] == []


def test_what_only_the_tests_need_is_installed_beside_the_checks(project, tmp_path):
    """The tests run when both are done, and only if both were."""
    run, folder = project
    browser = tmp_path / 'bin' / 'chromedriver'  # or it would be installed
    browser.parent.mkdir()
    browser.touch(0o755)
    path = {'PATH': f'{browser.parent}:{os.environ["PATH"]}'}

    done, calls = run('../.ci/run', **path)
    assert done.returncode == 1 and 'error: shellcheck failed' in done.stderr  # none is there
    installed = [call[6:] for call in calls if call[1] == 'pip']
    assert installed == [
        ['-r', 'requirements.txt', '-r', 'requirements-check.txt'],
        ['-r', 'requirements-test.txt'],
    ]
    assert {call[1] for call in calls} == {'pip', 'ruff', 'mypy', 'mkdocs'}

    shellcheck = folder / '.venv' / 'bin' / 'shellcheck'
    shellcheck.symlink_to('/bin/true')
    (folder / 'requirements-test.txt').write_text('scipy\nchex\n')
    done, calls = run('../.ci/run', **path, FAKE_PIP='1')
    assert done.returncode == 1 and 'mkdocs: ok' in done.stderr
    assert 'error: pip could not install requirements.txt requirements-test.txt' in done.stderr
    assert ['-m', 'pytest'] not in [call[:2] for call in calls]

    done, calls = run('../.ci/run', **path)
    assert done.returncode == 0 and calls[-1] == [*PYTEST, '--durations=10']
    assert ['-r', 'requirements-test.txt'] in [call[6:] for call in calls]
