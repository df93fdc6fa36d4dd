"""Methods whose mechanism is off are Flow-GRPO: MixGRPO with a window of all transitions, DanceGRPO
that trains all of them, AEGPO with equal budgets and all of them, under the same kernel, noise,
credit and loss.
"""

import jax
import numpy as np
import pytest

from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.planning.lowering import phases
from densegrpo_jax.sampling.session import check
from densegrpo_jax.training.learner import make_credit
from tests.training.small_run import SMOOTH, equal, make_config, one_device, trained

pytestmark = pytest.mark.usefixtures('exact_runs')

# Put on both sides: what the rows set beside their mechanism. No row has all of it.
SAME = {
    **SMOOTH,
    'credit.std': 'group',
    'credit.combine': 'advantages',
    'loss.kl_form': 'gaussian',
    'loss.clip_range': 1e-3,
    'loss.beta': 0.0,
    'rollout.noise': 'flow_grpo',
    'rollout.level': 0.8,
    'rollout.shared_noise': True,
    'rollout.steps': 4,  # three of them are trained
    'optim.microbatch': 8,
    'iterations': 1,
    'eval.every': 50,
}
OFF = {
    'mix': {'moving.width': 3},
    'dance': {'moving.fraction': 1.0},
    'aegpo': {'moving.width': 3, 'budget.ratio': 1.0, 'budget.warmup': 0},
}


def settings(method, **changes):
    return {**METHODS[method].overrides, **SAME, **changes}


def programs(folder, **changes):
    """(schedule, program -> its text): rollout, credit and update of a run."""
    config, mesh = make_config(folder, **changes), one_device()
    config.reward = {'brightness': {'weight': 1.0}}
    checked = check(config, mesh, needs=('schedule',))
    schedule = checked.schedule
    found = phases(config, checked.pipeline, schedule, mesh)
    rollout, update = found['rollout'].lowered, found['update'].lowered
    shape = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
    sampled = jax.tree.map(shape, rollout.out_info[0])
    r, pictures = config.rollout, len(schedule.plan.completions)
    ids = group_ids_of([r.group] * r.prompts)
    scored = [jax.ShapeDtypeStruct((pictures, len(ids)), d) for d in (np.float32, bool)]
    credit = make_credit(config, schedule, mesh, checked.reward.weights)
    scores = {'brightness': scored[0]}
    given = [sampled] * (r.prompts // r.prompts_per_batch), *scored, ids, scores
    texts = {'rollout': rollout, 'credit': credit.lower(*given), 'update': update}
    return schedule, {name: program.as_text() for name, program in texts.items()}


def test_the_programs_and_their_arguments_are_those_of_flow_grpo(folder):
    """Letter by letter: an iteration's record, and what is learned from it, have equal bits."""
    expected, texts = programs(folder, **settings('flow_grpo'))
    for method, off in OFF.items():
        schedule, found = programs(folder, **settings(method, **off))
        for name in texts:
            assert found[name] == texts[name], (method, name)
        assert schedule.moving is None and schedule.plan == expected.plan, method
        np.testing.assert_array_equal(schedule.noise_levels, expected.noise_levels, method)
        np.testing.assert_array_equal(schedule.sigmas, expected.sigmas, method)
        config = make_config(folder, **settings(method, **{'moving.width': 2}))
        on = check(config, one_device(), needs=('schedule',)).schedule
        assert on.moving is not None and on.moving.count < 3, method


@pytest.mark.slow
def test_an_iteration_moves_the_policy_as_flow_grpo_does(folder, tmp_path):
    (_, expected, _), _ = trained(folder, tmp_path / 'flow_grpo', **settings('flow_grpo'))
    for method, off in OFF.items():
        (_, found, _), metrics = trained(folder, tmp_path / method, **settings(method, **off))
        equal(found, expected)
        # the probe runs, and changes nothing
        assert ('train/entropy_change' in metrics[0]) == (method == 'aegpo')
