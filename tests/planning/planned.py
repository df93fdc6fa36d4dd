"""A configuration that is small enough to be planned in a second or two."""

from configs import tiny_ocr
from tests.training.small_run import FEW


def small():
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict(
        {
            'rollout.steps': 2,
            'rollout.prompts': 2,
            'rollout.group': 4,
            'rollout.prompts_per_batch': 2,
            'optim.microbatch': 8,
            'eval.batch': 8,
            'eval.steps': 2,
            'data.train': FEW,
            'data.eval_prompts': 16,
            'model.height': 16,
            'model.width': 32,
            'model.scan': True,
        }
    )
    return config
