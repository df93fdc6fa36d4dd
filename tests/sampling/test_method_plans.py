"""What a sample of a method costs: network evaluations and scored pictures, counted by hand."""

import importlib

import numpy as np
import pytest

from densegrpo_jax.core.schedules import sigmas_from_scheduler
from densegrpo_jax.sampling.cost import executed, largest, mean_process, of_sample
from densegrpo_jax.sampling.guide import process_cost
from densegrpo_jax.sampling.schedule import make_schedule, restricted
from densegrpo_jax.training.announce import added
from densegrpo_jax.training.trial import try_parts
from tests.miniature import SCHEDULER, SD3_SCHEDULER


class Grids:
    """The part of a pipeline that `make_schedule` asks."""

    def __init__(self, kind):
        self._kind, self._config = kind, SD3_SCHEDULER if kind == 'sd3' else SCHEDULER

    def sigmas(self, steps, height, width):
        return sigmas_from_scheduler(self._config, steps, 1024, own_range=self._kind == 'sd3')


def changed(config, **changes):
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return config


def schedule(recipe, method, **changes):
    config = importlib.import_module(f'configs.{recipe}').get_config(f'method={method}')
    changed(config, **changes)
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
        ('dance', 'flux_pickscore', 6, 1, range(5)),
        ('mix', 'sd35_ocr', 10, 1, range(8)),
        # the probe evaluates policy and base once at every state, for a group of 24
        ('aegpo', 'flux_ocr', 6 + 2 * 6 / 24, 1, range(5)),
        # the probe of a process reward is evaluated at three states, and at four
        ('euphonium', 'tiny_ocr', 6 + 3, 1, range(5)),
        ('euphonium', 'sd35_ocr', 10 + 4, 1, range(8)),
        # the sample, its anchor, and the first prediction, which 24 samples have in common
        ('sdpo', 'flux_ocr', 6, 2 + 1 / 24, range(5)),
        # a tree that splits at 0 and 2: one root for 24, then 12 nodes, then 24
        ('branch', 'flux_ocr', 1 / 24 + 2 * 12 / 24 + 3, 1, range(5)),
        ('tp_grpo', 'tiny_ocr', 6 + 15, 6, range(5)),
        ('tp_grpo_code', 'flux_ocr', 6 + 15, 6, range(5)),
        ('tp_grpo', 'sd35_ocr', 10 + 44, 9, range(8)),
    ],
)
def test_cost_of_a_sample(method, recipe, nfe, pictures, trained):
    config, found = schedule(recipe, method)
    plan, each = found.plan, of_sample(config, found)
    assert (each.nfe, each.images) == pytest.approx((nfe, pictures))
    try_parts(config, found)
    assert np.flatnonzero(plan.transitions.trained).tolist() == list(trained)


# Of T = 6 the steps 3 and 4 drift, the states 4 and 5 are scored: three of the base, two of them
# with a gradient. The reward of predictions needs none of its own; differences two images a step.
@pytest.mark.parametrize(
    'changes, guide_steps, expected',
    [
        ({}, (3, 4), (3, 2, 0)),
        ({'credit__process': 'gain'}, (3, 4), (3, 2, 0)),
        ({'credit__process': 'none'}, (3, 4), (2, 2, 0)),
        ({'guide__scale': 0.0}, (3, 4), (2, 0, 0)),
        ({'guide__steps': (1, 4), 'credit__process': 'before'}, (1, 4), (2, 2, 0)),
        ({'guide__source': 'value', 'guide__file': ''}, (3, 4), (0, 2, 3)),
        (
            {'guide__source': 'spsa', 'guide__file': '', 'guide__spsa_directions': 3},
            (3, 4),
            (0, 0, 2 * 3 * 2 + 2),
        ),
        ({'guide__scale': 0.0, 'credit__process': 'none'}, (), (0, 0, 0)),
        ({'rollout__steps': 16}, (8, 9, 10, 11, 12, 13, 14), (8, 7, 0)),
    ],
)
def test_cost_of_a_process_reward(changes, guide_steps, expected):
    config, found = schedule('tiny_ocr', 'euphonium', **changes)
    assert found.guide_steps == guide_steps and process_cost(config, found) == expected
    each = of_sample(config, found)
    assert (each.process, each.gradients) == expected[:2]
    try_parts(config, found)


def test_evaluations_with_classifier_free_guidance_and_without():
    """Policy and probe are evaluated twice, a process reward on the prompt alone."""
    config, found = schedule('sd35_ocr', 'euphonium')
    each = of_sample(config, found)
    assert (each.rollout, each.probe, each.process) == (10, 0, 4)
    assert (each.network(False), each.network(True)) == (14, 24)
    each = of_sample(*schedule('sd35_ocr', 'aegpo'))
    assert each.network(True) == 2 * each.nfe == pytest.approx(2 * (10 + 2 * 10 / 24))


def test_samples_that_drift_are_alike_up_to_the_first_noise():
    """The completion of the initial noise is one image for a group of 12."""
    config, found = schedule('tiny_ocr', 'euphonium', credit__rule='dense', moving__steps='none')
    assert (
        found.guide_steps and config.rollout.group == 12 and found.plan.states == (0, 1, 2, 3, 4, 6)
    )
    assert of_sample(config, found).images == 5 + 1 / 12


def test_steps_that_cannot_drift():
    with pytest.raises(
        ValueError, match=r'guide.steps=\(2, 5\): transition 5 adds no noise.*0, 1,'
    ):
        schedule('tiny_ocr', 'euphonium', guide__steps=(5, 2))
    with pytest.raises(ValueError, match='there is none among .0, 1. of 6: name those that drift'):
        schedule('tiny_ocr', 'euphonium', rollout__last=2, moving__steps='none')


def test_merged_steps_end_where_their_noise_does_not_stay_in_the_image():
    """T = 6: state 6 is clean, so noise may end at 5 at most; a single last step may be trained."""
    merged = dict(plan__strides=(1,), plan__active='window')
    _, found = schedule('tiny_ocr', 'g2rpo', plan__merge=(2, 2, 2, 2, 1), **merged)
    assert found.plan.transitions.k_to == (2, 3, 4, 5, 5)
    with pytest.raises(ValueError, match='noisy step from 3 would end at 6, .*at most 5'):
        schedule('tiny_ocr', 'g2rpo', plan__merge=(2, 2, 2, 3, 1), **merged)


# (moving.width, the window, states that are completed): dense credit scores w states and the
# sample, whatever the grid is. The first of the w is completed once for all 24 samples.
@pytest.mark.parametrize(
    'width, steps, completed', [(3, [0, 1, 2], [0, 1, 2]), (3, [2, 3, 4], [2, 3, 4]), (1, [1], [1])]
)
def test_dense_credit_inside_a_window_completes_no_state_twice(width, steps, completed):
    config, whole = schedule('flux_ocr', 'mix', credit__rule='dense', moving__width=width)
    assert whole.moving.own_plans and whole.moving.count == width
    plan = restricted(config, whole, np.array(steps)).plan
    assert np.flatnonzero(plan.transitions.trained).tolist() == steps
    assert plan.states == (*completed, 6)
    first, *later = completed
    assert plan.nfe == (first + 1 + 5 - first) / 24 + 5 - first + sum(5 - k for k in later)
    assert len(later) == width - 1
    alone = restricted(changed(config, rollout__shared_noise=False), whole, np.array(steps)).plan
    assert alone.nfe == 6 + sum(6 - k - 1 for k in completed)


def test_the_cost_of_a_window_is_that_of_what_runs():
    """A window of three of five at its places 0, 1 and 2 of T = 6: the mean, and the largest."""
    dense = {'credit__rule': 'dense', 'moving__width': 3}
    config, found = schedule('flux_ocr', 'mix', **dense)
    each, places = of_sample(config, found), executed(config, found)
    # a place p: p + 1 evaluations to the first noisy transition and 5 - p more that complete its
    # start, one for 24 samples; each sample's others, and completions of the states p + 1 and p + 2
    nfe = [6 / 24 + (5 - p) + (5 - p - 1) + (5 - p - 2) for p in range(3)]
    assert [found.plan.nfe for found in places] == nfe
    assert each.rollout == pytest.approx(sum(nfe) / 3)
    assert each.images == pytest.approx(3 + 1 / 24)  # not the 6 of a plan that trains all
    assert largest(config, found).plan == places[0].plan
    config, found = schedule('flux_ocr', 'mix', **dense, moving__steps='random')
    assert len(executed(config, found)) == 10 == len(set(found.moving.choices))
    assert 3 <= of_sample(config, found).images <= 3 + 1 / 24
    config, found = schedule('flux_ocr', 'mix')  # credit reads no completions: one plan for all
    assert executed(config, found)[0] is found and of_sample(config, found).nfe == 6


def test_windows_and_subsets_of_the_methods():
    _, mix = schedule('flux_ocr', 'mix', moving__stay=2)
    assert mix.plan.nfe == 6 and len(mix.plan.completions) == 1 and not mix.moving.own_plans
    chosen = [mix.moving.choose(i).tolist() for i in range(6)]
    assert chosen == [[0, 1, 2, 3]] * 2 + [[1, 2, 3, 4]] * 2 + [[0, 1, 2, 3]] * 2
    levels = mix.moving.levels(mix.noise_levels, mix.moving.choose(2))
    assert levels.dtype == np.float32 and (levels > 0).tolist() == [False, *[True] * 4, False]
    _, dance = schedule('flux_ocr', 'dance', rollout__steps=16)
    assert (dance.plan.nfe, dance.moving.count) == (16, 9)  # 60 % of 15
    steps = dance.moving.choose(3)
    np.testing.assert_array_equal(steps, dance.moving.choose(3))  # as a run that continues
    assert any((steps != dance.moving.choose(i)).any() for i in range(3))
    np.testing.assert_array_equal(dance.moving.levels(dance.noise_levels, steps), np.float32(0.3))


def test_what_never_moves_is_today_s_program():
    """DanceGRPO with the fraction 1, MixGRPO with w = T: nothing is different."""
    for method, changes in (
        ('dance', {'moving__fraction': 1.0}),
        ('mix', {'moving__width': 5}),
        ('mix', {'moving__width': 5, 'moving__steps': 'random_window'}),
    ):
        _, found = schedule('flux_ocr', method, **changes)
        _, still = schedule('flux_ocr', method, moving__steps='none')
        assert found.moving is None and found.plan == still.plan


def test_windows_that_cannot_be():
    with pytest.raises(ValueError, match='moving.width=6: only 5 transitions may be trained'):
        schedule('flux_ocr', 'mix', moving__width=6)
    with pytest.raises(
        ValueError, match='each of the 21 choices of transitions, at most 16: use mov'
    ):
        schedule('flux_ocr', 'mix', credit__rule='dense', rollout__steps=25)
    schedule('flux_ocr', 'mix', credit__rule='dense', rollout__steps=25, moving__width=9)


def test_the_first_transition_of_stepwise_has_no_noise_to_train():
    config, plan = schedule('flux_ocr', 'stepwise', rollout__first=0)
    with pytest.raises(ValueError, match="noise='ddim_like', transition 0.*rollout.first"):
        try_parts(config, plan)


def test_a_window_of_its_own_plan_drifts_and_credits_only_its_own_transitions():
    """The others are silent there: their states are not scored on the way of the sample."""
    changes = {'credit.rule': 'dense', 'credit.process': 'gain', 'guide.source': 'value'}
    moving = {'moving.steps': 'window', 'moving.width': 3}
    config, grid = schedule('tiny_ocr', 'euphonium', **changes, **moving)
    assert grid.guide_steps == (3, 4) and grid.moving.own_plans
    cost = lambda window: process_cost(config, restricted(config, grid, np.array(window)))
    # a gradient at every drifting step; the states at both of its ends are scored
    assert [cost(w)[1:] for w in ((0, 1, 2), (1, 2, 3), (2, 3, 4))] == [(0, 0), (1, 2), (2, 3)]
    each = of_sample(config, grid)
    assert mean_process(config, grid) == (0, 1, 5 / 3) and each.gradients == 1
    assert process_cost(config, grid).gradients == 2
    said = 'process reward value at (3, 4): 1 gradients, 1.67 images scored on the devices'
    assert added(config, grid, each) == f'; {said}'
    # the first window holds most states, and no activations of a gradient
    assert largest(config, grid).plan == executed(config, grid)[1].plan


def test_the_noise_of_siblings_is_that_of_the_key():
    assert schedule('tiny_ocr', 'branch')[1].plan.split_noise == 4
    assert schedule('tiny_ocr', 'branch', plan__split_noise=2.5)[1].plan.split_noise == 2.5
