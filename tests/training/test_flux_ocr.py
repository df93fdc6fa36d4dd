"""configs/flux_ocr.py on a small random FLUX folder: scanned, rematerialised, bfloat16, CPS,
detector and recogniser.
"""

import pathlib
import subprocess
import sys

import pytest

from configs import flux_ocr
from tests import miniature
from tests.meshes import data_mesh
from tests.training.small_run import first_update

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
    'model.height': 64,
    'model.dtype': 'bfloat16',
    'rollout.steps': 3,
    'data.train': 'scenes',
    'data.eval': 'scenes',
    'data.scenes': 50,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return miniature.random_flux(tmp_path_factory.mktemp('flux'), double=2, single=2)


@pytest.mark.slow
def test_runs_on_a_small_folder(folder, tmp_path):
    mesh = data_mesh(2)
    first = first_update(flux_ocr, folder, tmp_path, mesh, reward=None, **SMALL)
    # bfloat16: the re-scored ratio may deviate by a tenth of the clip range.
    assert first['train/ratio_deviation_first'] <= 0.1 * flux_ocr.get_config().loss.clip_range
    assert first['train/nfe'] == 4 * (3 + 2 + 1) and first['train/transitions'] == 2 * 4
    assert 0 <= first['train/reward_ocr'] <= 1


@pytest.mark.parametrize(
    'given, said',
    [
        ([], ('black-forest-labs/FLUX.1-dev', '--config.model.path=', 'hf auth login')),
        (['--config.rollout.stepz=4'], ('stepz',)),
    ],
    ids=['absent weights', 'a mistyped key'],
)
def test_what_the_command_cannot_use_is_a_clear_message(tmp_path, given, said):
    command = [sys.executable, '-m', 'densegrpo_jax.main', '--config=configs/flux_ocr.py']
    command += [f'--workdir={tmp_path}', *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert all(words in done.stderr for words in said), done.stderr
