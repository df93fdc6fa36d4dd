"""The wheel holds the package and nothing else, and trains where the repository is not (slow)."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_trains_from_an_empty_folder(tmp_path):
    if not list(pathlib.Path(sys.prefix).glob('.installed-*')):
        pytest.skip('launch/setup_env.sh has not made this environment: it would fetch packages')
    done = subprocess.run(
        ['bash', str(ROOT / 'launch' / 'wheel.sh'), '--offline', f'--out={tmp_path}'],
        env={**os.environ, 'VENV': sys.prefix},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert 'after 2 updates' in done.stderr
    [wheel] = tmp_path.glob('*.whl')
    files = {pathlib.PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert {path.parts[0] for path in files} == {
        'densegrpo_jax',
        f'{wheel.stem.split("-py3")[0]}.dist-info',
    }
    package = ROOT / 'densegrpo_jax'
    ours = {
        pathlib.PurePosixPath(path.relative_to(ROOT).as_posix())
        for path in package.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }
    recipes = pathlib.PurePosixPath('densegrpo_jax/configs')  # a link here, files there
    packed = {path for path in files if path.parts[0] == 'densegrpo_jax'}
    assert {path for path in packed if recipes not in path.parents} == ours
    packaged = {path.name for path in packed if recipes in path.parents}
    assert packaged == {path.name for path in (ROOT / 'configs').glob('*.py')}
