"""configs/sd35_ocr.py on a small random SD3.5 folder: guidance in sampling and in training, or in
sampling alone, or none.
"""

import pytest

from configs import sd35_ocr
from tests import miniature
from tests.training.small_run import FEW_LAYERS, first_update


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return miniature.random_sd3(tmp_path_factory.mktemp('sd3'), layers=2, scale=1.0)


@pytest.mark.parametrize(
    'changes, calls',
    [
        pytest.param({'lora.targets': FEW_LAYERS}, 2, id='cfg'),
        pytest.param(
            {'loss.cfg': False, 'model.guidance': 1.5}, 2, id='sampling', marks=pytest.mark.slow
        ),
        pytest.param({'model.guidance': 1.0}, 1, id='none', marks=pytest.mark.slow),
    ],
)
def test_runs_on_a_small_folder(folder, changes, calls, tmp_path):
    small = {'model.t5_length': 16, 'rollout.steps': 4}
    first = first_update(sd35_ocr, folder, tmp_path, **small, **changes)
    assert first['train/ratio_deviation_first'] <= 1e-6
    # The grid of shift 3 ends in an almost clean state: of four transitions the last two are
    # deterministic, so two states are completed.
    assert first['train/nfe'] == calls * 4 * (4 + 3 + 2)
    assert first['train/grad_norm'] > 0
