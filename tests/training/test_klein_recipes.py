"""The FLUX.2 [klein] and Z-Image recipes on small random folders: distilled models with their own
steps, and base models with classifier-free guidance.

That a recipe of another family than FLUX trains is shown by tests/training/test_sd35_ocr.py, and
what these families' networks and pipelines compute by tests/networks and tests/pipelines.
"""

import pytest

from configs import flux2_klein_ocr, flux2_klein_pickscore, zimage_ocr, zimage_pickscore
from tests import miniature
from tests.training.small_run import first_update

# A guidance of 4 is ignored by a distilled model.
CASES = {
    'distilled': (flux2_klein_ocr, {'model.guidance': 4.0}, 4 * (4 + 3 + 2 + 1)),
    'base': (flux2_klein_pickscore, {'rollout.steps': 3}, 2 * 4 * (3 + 2 + 1)),
    'zimage_turbo': (zimage_ocr, {'rollout.steps': 3}, 4 * (3 + 2 + 1)),
    'zimage': (zimage_pickscore, {'rollout.steps': 3}, 2 * 4 * (3 + 2 + 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_runs_on_a_small_folder(case, tmp_path):
    recipe, changes, evaluations = CASES[case]
    folder = tmp_path / 'model'
    if case.startswith('zimage'):
        miniature.random_zimage(folder)
    else:
        miniature.random_klein(folder, distilled=case == 'distilled', scale=1.0)
    first = first_update(recipe, folder, tmp_path / 'run', **{'model.t5_length': 24}, **changes)
    assert first['train/ratio_deviation_first'] <= 1e-6
    assert first['train/nfe'] == evaluations
    assert first['train/grad_norm'] > 0
