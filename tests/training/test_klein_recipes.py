"""The FLUX.2 [klein] and Z-Image recipes on small random folders: distilled models with their own
steps, and base models with classifier-free guidance.

That a recipe of another family than FLUX trains is shown by tests/training/test_sd35_ocr.py, and
what these families' networks and pipelines compute by tests/networks and tests/pipelines.
"""

import json

import pytest

from configs import flux2_klein_ocr, flux2_klein_pickscore, zimage_ocr, zimage_pickscore
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests import miniature
from tests.training.small_run import FEW, one_device

SMALL = {
    'iterations': 1,
    'model.height': 32,
    'model.width': 64,
    'model.t5_length': 24,
    'model.dtype': 'float32',
    'rollout.prompts': 2,
    'rollout.group': 2,
    'rollout.prompts_per_batch': 2,
    'optim.microbatch': 4,
    'eval.batch': 2,
    'eval.steps': 2,
    'eval.shown': 2,
    'data.train': FEW,
    'data.eval': 'tiny',
    'data.eval_prompts': 2,
}
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
    config = recipe.get_config()
    config.model.path = str(folder)
    config.reward = {'jpeg': {'weight': 1.0}}
    config.update_from_flattened_dict(SMALL | changes)
    run(config, tmp_path / 'run', one_device(), StopRequest())
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    first = json.loads(lines[1])
    assert first['train/ratio_deviation_first'] <= 1e-6
    assert first['train/nfe'] == evaluations
    assert first['train/grad_norm'] > 0
