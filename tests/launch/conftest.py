"""The scripts of launch/ among stand-ins for the commands that they call."""

import os
import shlex
import shutil
import subprocess

import pytest

from tests.launch.stand_ins import PYTHON, ROOT, STAND_IN, SUDO


@pytest.fixture
def scripts(tmp_path):
    """run(script, *args, answers={topic: [(code, text), ...]}, **env) -> (CompletedProcess, [call
    as a list of words]).
    """
    folder, commands, answers = tmp_path / 'a project', tmp_path / 'bin', tmp_path / 'answers'
    shutil.copytree(ROOT / 'launch', folder / 'launch')
    commands.mkdir()
    answers.mkdir()
    for name in ('requirements-tpu.txt', 'requirements-cuda.txt', 'requirements.txt'):
        (folder / name).write_text('jax\n')
    for name in ('gcloud', 'sbatch', 'srun', 'scontrol', 'curl', 'lsb_release'):
        (commands / name).write_text(STAND_IN)
    (commands / 'fake-python').write_text(PYTHON)
    (commands / 'sudo').write_text(SUDO)
    for file in commands.iterdir():
        file.chmod(0o755)
    git = ['git', '-c', 'user.name=x', '-c', 'user.email=x@example.org']
    for command in (['init', '-q'], ['add', '-A'], ['commit', '-qm', 'x']):
        subprocess.run([*git, *command], cwd=folder, check=True)

    def run(script, *args, answers_for=None, **env):
        for topic, lines in (answers_for or {}).items():
            (answers / topic).write_text(''.join(f'{code} {text}\n' for code, text in lines))
        calls = tmp_path / 'calls'
        calls.unlink(missing_ok=True)
        env = {
            **os.environ,
            'PATH': f'{commands}:{os.environ["PATH"]}',
            'CALLS': str(calls),
            'ANSWERS': str(answers),
            'PYTHON': str(commands / 'fake-python'),
            **env,
        }
        env.pop('VENV', None)
        command = ['bash', str(folder / 'launch' / script), *args]
        done = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        return done, [
            shlex.split(line) for line in calls.read_text().splitlines()
        ] if calls.exists() else []

    run.folder = folder
    return run
