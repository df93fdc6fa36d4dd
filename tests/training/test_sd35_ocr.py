"""configs/sd35_ocr.py on a small random SD3.5 folder: guidance in sampling and in training, or in
sampling alone, or none.
"""

import json

import pytest

from configs import sd35_ocr
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests import miniature
from tests.training.small_run import FEW, FEW_LAYERS, one_device

SMALL = {
    'iterations': 1,
    'model.height': 32,
    'model.width': 64,
    'model.t5_length': 16,
    'model.dtype': 'float32',
    'rollout.prompts': 2,
    'rollout.group': 2,
    'rollout.prompts_per_batch': 2,
    'rollout.steps': 4,
    'optim.microbatch': 4,
    'eval.batch': 2,
    'eval.steps': 2,
    'eval.shown': 2,
    'data.train': FEW,
    'data.eval': 'tiny',
    'data.eval_prompts': 2,
    'reward': {'jpeg': {'weight': 1.0}},
}


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
    config = sd35_ocr.get_config()
    config.model.path = str(folder)
    config.reward = SMALL['reward']
    config.update_from_flattened_dict({k: v for k, v in SMALL.items() if k != 'reward'} | changes)
    run(config, tmp_path, one_device(), StopRequest())
    first = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()][1]
    assert first['train/ratio_deviation_first'] <= 1e-6
    # The grid of shift 3 ends in an almost clean state: of four transitions the last two are
    # deterministic, so two states are completed.
    assert first['train/nfe'] == calls * 4 * (4 + 3 + 2)
    assert first['train/grad_norm'] > 0
