"""Step plans: which transitions of the grid are stochastic, which of those are trained, and which completions coincide."""

from typing import NamedTuple

import numpy as np

from densegrpo_jax.core.schedules import check_grid


class StepPlan(NamedTuple):
    """Two static masks over the T transitions of a grid; `trained` is a subset of `stochastic`."""

    stochastic: np.ndarray  # bool [T]: the transition adds noise
    trained: np.ndarray  # bool [T]: the transition enters the loss


def step_plan(sigmas, *, first=0, last=None, noisy_end=False, train_end=False, clean_sigma=0.02, trained_steps=None):
    """Stochastic and trained transitions of a grid.

    By default every transition is stochastic and trained, except those *into* an (almost) clean latent, sigmas[k+1] <=
    clean_sigma, which are deterministic: noise added there stays in the scored picture. That is the last transition on
    FLUX grids and the last two on SD3.5's at T = 10, whose grid ends 0.278, 0.0089, 0.

    Args:
        sigmas: [T+1] grid.
        first, last: window [first, last) of stochastic transitions (Flow-GRPO-Fast, MixGRPO); last=None means T.
        noisy_end: add noise in the transitions into clean latents too, without training them (as Flow-GRPO's code does
            with its last one).
        train_end: add noise there and train it (the DenseGRPO paper). Overrides noisy_end.
        clean_sigma: noise level at or below which a latent counts as clean.
        trained_steps: optional indices k; only these of the stochastic transitions are trained.

    Returns:
        StepPlan of bool [T] masks.

    Raises:
        ValueError: a window outside [0, T], a trained step that is not stochastic, or nothing left to train.
    """
    check_grid(sigmas)
    sigmas = np.asarray(sigmas)
    num_steps = len(sigmas) - 1
    last = num_steps if last is None else last
    if not 0 <= first < last <= num_steps:
        raise ValueError(f'the stochastic window [first, last) is [{first}, {last}); expected 0 <= first < last <= {num_steps}')
    index = np.arange(num_steps)
    window = (index >= first) & (index < last)
    into_clean = sigmas[1:] <= clean_sigma
    stochastic = window & (~into_clean | (noisy_end or train_end))
    trained = window & (~into_clean | train_end)
    if trained_steps is not None:
        chosen = np.isin(index, np.asarray(trained_steps, int))
        wrong = sorted({int(k) for k in trained_steps} - {int(k) for k in index[stochastic]})
        if wrong:
            raise ValueError(f'trained_steps {wrong} are not stochastic; the stochastic steps are {index[stochastic].tolist()}')
        trained = chosen
    if not trained.any():
        raise ValueError(
            f'no transition is trained: window [{first}, {last}), {int(into_clean.sum())} transitions into sigma <= {clean_sigma}; '
            'widen the window or set train_end'
        )
    return StepPlan(stochastic, trained)


def completion_source(plan, k, n=None):
    """The state whose completion equals that of state k, found without computing either.

    With n = None (the ODE uses every remaining grid point) deterministic transitions lie on the completion's own path: state
    k shares its completion with the next state that a stochastic transition leaves, or with state T, the sample itself. With
    fewer steps only one case is certain: when at most n transitions remain and all are deterministic.

    Returns:
        int in [k, T]; T means "the sample".
    """
    num_steps = len(plan.stochastic)
    ahead = np.flatnonzero(plan.stochastic[k:])
    if n is None:
        return k + int(ahead[0]) if len(ahead) else num_steps
    return num_steps if not len(ahead) and num_steps - k <= n else k
