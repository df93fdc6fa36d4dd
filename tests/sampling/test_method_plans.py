"""What a sample of a method costs: network evaluations and scored pictures, counted by hand."""

import importlib

import numpy as np
import pytest

from densegrpo_jax.core.schedules import sigmas_from_scheduler
from densegrpo_jax.sampling.sampler import make_schedule
from densegrpo_jax.training.trial import try_parts
from tests.miniature import SCHEDULER, SD3_SCHEDULER


class Grids:
    """The part of a pipeline that `make_schedule` asks."""

    def __init__(self, kind):
        self._kind, self._config = kind, SD3_SCHEDULER if kind == 'sd3' else SCHEDULER

    def sigmas(self, steps, height, width):
        return sigmas_from_scheduler(self._config, steps, 1024, pipeline=self._kind)


def schedule(recipe, method, **changes):
    config = importlib.import_module(f'configs.{recipe}').get_config(f'method={method}')
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return config, make_schedule(Grids('sd3' if recipe == 'sd35_ocr' else 'flux'), config)


# FLUX's T = 6: the last transition is deterministic. SD3.5's T = 10: the last two are.
@pytest.mark.parametrize(
    'method, recipe, nfe, pictures, trained',
    [
        # completions of states 1 ... 4 with 4, 3, 2 and 1 evaluations more; state 5 is the sample
        ('stepwise', 'tiny_ocr', 6 + 4 + 3 + 2 + 1, 5, range(1, 5)),
        ('stepwise', 'flux_ocr', 6 + 4 + 3 + 2 + 1, 5, range(1, 5)),
        # states 1 ... 5 have at least five steps left, 6 and 7 four and three; 8 is the sample
        ('stepwise', 'sd35_ocr', 10 + 5 * 4 + 3 + 2, 8, range(1, 8)),
        # all states: 5 + 4 + 3 + 2 + 1 evaluations more, and 9 + ... + 2; the last share a picture
        ('tp_grpo', 'tiny_ocr', 6 + 15, 6, range(5)),
        ('tp_grpo_code', 'flux_ocr', 6 + 15, 6, range(5)),
        ('tp_grpo', 'sd35_ocr', 10 + 44, 9, range(8)),
    ],
)
def test_cost_of_a_sample(method, recipe, nfe, pictures, trained):
    config, found = schedule(recipe, method)
    plan = found.plan
    assert (plan.nfe, len(plan.completions)) == (nfe, pictures)
    try_parts(config, found)
    assert np.flatnonzero(plan.transitions.trained).tolist() == list(trained)


def test_the_first_transition_of_stepwise_has_no_noise_to_train():
    config, plan = schedule('flux_ocr', 'stepwise', rollout__first=0)
    with pytest.raises(ValueError, match="noise='ddim_like', transition 0.*rollout.first"):
        try_parts(config, plan)
