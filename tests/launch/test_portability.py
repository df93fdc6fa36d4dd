"""The sensitive tests as other machines run them: other instructions, threads, a busy machine."""

import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / 'launch' / 'portability.sh'
SETTINGS = re.search(r'^all=\((.*)\)$', SCRIPT.read_text(), re.MULTILINE)[1].split()


@pytest.mark.slow
@pytest.mark.parametrize('setting', SETTINGS)
def test_no_outcome_hangs_on_the_machine(setting, tmp_path):
    # as from a shell: what these tests have set for themselves would win
    ours = ('TESTS_', 'XLA_', 'PYTEST_', 'JAX_', 'OMP_')
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment |= {'SETTINGS': setting, 'PYTEST_WORKERS': '1'}
    environment['JAX_COMPILATION_CACHE_DIR'] = str(tmp_path / 'programs')
    done = subprocess.run(
        ['bash', SCRIPT, '--sensitive', '-x'],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(rf'^{setting}: \d+ passed', done.stdout, re.MULTILINE)
