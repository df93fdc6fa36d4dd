import numpy as np
import pytest

from densegrpo_jax.core.masks import StepMasks, completion_source, step_masks

FLUX6 = [1.0, 0.9037, 0.7897, 0.6525, 0.4842, 0.2730, 0.0]
SD3_10 = [1.0, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0.0]


def indices(mask):
    return np.flatnonzero(mask).tolist()


def test_transitions_into_clean_latents_are_deterministic_by_default():
    assert (
        indices(step_masks(FLUX6).stochastic)
        == indices(step_masks(FLUX6).trained)
        == [0, 1, 2, 3, 4]
    )
    assert (
        indices(step_masks(SD3_10).stochastic)
        == indices(step_masks(SD3_10).trained)
        == list(range(8))
    )


def test_a_grid_that_ends_above_zero_has_clean_latents_too():
    # Stable Diffusion 1.5 at T = 10: the step from 0.257 is the analogue of SD3.5's from 0.278.
    assert indices(step_masks([0.996, 0.9, 0.55, 0.257, 0.0397, 0.0283]).trained) == [0, 1, 2]


@pytest.mark.parametrize('end', [{'noisy_end': True}, {'train_end': True}])
def test_no_noise_is_added_into_the_end_by_the_kernel_that_has_none_there(end):
    # cps: std = s' sin(eta pi / 2), which is 0 where s' = 0. Such a transition has no density and
    # would only dilute the loss.
    assert indices(step_masks(FLUX6, kernel='cps', **end).stochastic) == [0, 1, 2, 3, 4]
    assert indices(step_masks(SD3_10, kernel='cps', **end).stochastic) == list(range(9))
    assert indices(step_masks(SD3_10, kernel='cps', train_end=True).trained) == list(range(9))


def test_options():
    peers = step_masks(SD3_10, noisy_end=True)
    assert indices(peers.stochastic) == list(range(10)) and indices(peers.trained) == list(range(8))
    paper = step_masks(SD3_10, train_end=True)
    assert indices(paper.stochastic) == indices(paper.trained) == list(range(10))
    window = step_masks(FLUX6, first=1, last=4)
    assert indices(window.stochastic) == indices(window.trained) == [1, 2, 3]
    late = step_masks(FLUX6, first=3)
    assert indices(late.stochastic) == [3, 4]
    for masks in (peers, paper, window, late):
        assert not np.any(masks.trained & ~masks.stochastic)


def test_bad_masks_are_refused():
    for window in ({'first': -1}, {'first': 3, 'last': 3}, {'last': 7}):
        with pytest.raises(ValueError, match='window'):
            step_masks(FLUX6, **window)
    with pytest.raises(ValueError, match='no transition is trained'):
        step_masks(FLUX6, first=5)
    with pytest.raises(ValueError, match="adds no noise into s = 0 with kernel 'cps'"):
        step_masks(FLUX6, first=5, train_end=True, kernel='cps')


def test_completion_source():
    masks = StepMasks(
        np.array([False, True, False, True, False, False]),
        np.array([False, True, False, True, False, False]),
    )
    assert [completion_source(masks, k) for k in range(7)] == [1, 1, 3, 3, 6, 6, 6]
    assert [completion_source(masks, k, n=1) for k in range(7)] == [0, 1, 2, 3, 4, 6, 6]
    assert [completion_source(masks, k, n=2) for k in range(7)] == [0, 1, 2, 3, 6, 6, 6]
