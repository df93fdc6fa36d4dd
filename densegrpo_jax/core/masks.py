"""Step masks: which transitions of the grid are stochastic, which of these are trained, and which
completions coincide.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from densegrpo_jax.core.kernels import Kernel, as_kernel
from densegrpo_jax.core.schedules import Grid, check_grid

# A latent up to this far above the grid's last noise level counts as clean.
CLEAN_SIGMA = 0.02


class StepMasks(NamedTuple):
    """Two static masks over the T transitions of a grid; `trained` is a subset of `stochastic`."""

    stochastic: Bool[np.ndarray, 'T']  # the transition adds noise
    trained: Bool[np.ndarray, 'T']  # the transition enters the loss


def step_masks(
    sigmas: Grid,
    *,
    first: int = 0,
    last: int | None = None,
    noisy_end: bool = False,
    train_end: bool = False,
    kernel: str | Kernel = 'sde',
) -> StepMasks:
    """Stochastic and trained transitions of a grid.

    By default every transition is stochastic and trained, except those *into* an (almost) clean
    latent, sigmas[k+1] within CLEAN_SIGMA of the last, which are deterministic: noise added there
    stays in the scored image. That is the last transition on FLUX grids, the last two on SD3.5's
    at T = 10, whose grid ends 0.278, 0.0089, 0, and on Stable Diffusion 1.5's, which ends 0.257,
    0.040, 0.028.

    Args:
        sigmas: [T+1] grid.
        first, last: window [first, last) of stochastic transitions (Flow-GRPO-Fast, MixGRPO);
            last=None means T.
        noisy_end: add noise in the transitions into clean latents too, without training them (as
            Flow-GRPO's code does with its last one).
        train_end: add noise there and train it (the DenseGRPO paper). Overrides noisy_end.
        kernel: of `sde_step`. With one that adds no noise into s = 0, such as 'cps', a transition
            into s = 0 is never stochastic.

    Returns:
        StepMasks of bool [T] masks.

    Raises:
        ValueError: a window outside [0, T], or nothing left to train.
    """
    check_grid(sigmas)
    sigmas = np.asarray(sigmas)
    num_steps = len(sigmas) - 1
    last = num_steps if last is None else last
    if not 0 <= first < last <= num_steps:
        raise ValueError(
            f'the stochastic window [first, last) is [{first}, {last}); expected 0 <= first < last '
            f'<= {num_steps}'
        )
    index = np.arange(num_steps)
    window = (index >= first) & (index < last)
    if not as_kernel(kernel).noise_into_zero:
        window &= sigmas[1:] > 0
    into_clean = sigmas[1:] <= sigmas[-1] + CLEAN_SIGMA
    stochastic = window & (~into_clean | (noisy_end or train_end))
    trained = window & (~into_clean | train_end)
    if not trained.any():
        raise ValueError(
            f'no transition is trained: window [{first}, {last}), {int(into_clean.sum())} '
            'transitions into a clean latent; '
            "widen the window, or set train_end (which adds no noise into s = 0 with kernel 'cps')"
        )
    return StepMasks(stochastic, trained)


def completion_source(masks: StepMasks, k: int, n: int | None = None) -> int:
    """The state whose completion equals that of state k, found without computing either.

    With n = None (the ODE uses every remaining grid point) deterministic transitions lie on the
    completion's own path: state k shares its completion with the next state at which a stochastic
    transition starts, or with state T, the sample itself. With fewer steps only one case is
    certain: at most n transitions remain and all are deterministic.

    Returns:
        int in [k, T]; T means "the sample".
    """
    num_steps = len(masks.stochastic)
    ahead = np.flatnonzero(masks.stochastic[k:])
    if n is None:
        return k + int(ahead[0]) if len(ahead) else num_steps
    return num_steps if not len(ahead) and num_steps - k <= n else k
