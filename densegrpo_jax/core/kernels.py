"""Kernels: how a step of the policy removes noise from the latent and adds fresh noise."""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

SIGMA = 'sigma'  # a noise level with std = sigma sqrt(-D), as in Flow-GRPO and DanceGRPO
ETA = 'eta'  # the share of the noise that is renewed, 0 (none) to 1 (all)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A family of stochastic steps: the Euler step, minus part of the predicted noise end x1hat =
    x + (1 - s) v, plus fresh noise z,

        mean = x + D v - c x1hat,    x' = mean + std z,    D = s_next - s < 0

    Attributes:
        coefficients: (s [B], s_next [B], noise_level [B]) -> (std [B], c [B]), differentiable JAX;
            both 0 where the noise level is 0.
        level: the meaning of its noise level: SIGMA, ETA or another word. `NoiseTable.gives` uses
            the same words. The KL form 'flow_grpo' exists for SIGMA.
        max_level: the largest allowed noise level.
        noise_into_zero: whether a step into s = 0 may add noise. False: its std is 0 there whatever
            the level.
        noisy: False if no step adds noise.
    """

    coefficients: Callable[[Array, Array, Array], tuple[Array, Array]]
    level: str = SIGMA
    max_level: float = math.inf
    noise_into_zero: bool = True
    noisy: bool = True

    def adds_noise(
        self, sigmas: Float[np.ndarray, 'states'], levels: Float[np.ndarray, 'steps']
    ) -> Bool[np.ndarray, 'steps']:
        """Whether the transitions of a grid [T + 1] add noise at these noise levels [T]."""
        into = (sigmas[1:] > 0) | self.noise_into_zero
        return (levels > 0) & into & self.noisy


def _sde(s: Array, s_next: Array, noise_level: Array) -> tuple[Array, Array]:
    std = noise_level * jnp.sqrt(s - s_next)
    return std, std**2 / (2 * jnp.where(s > 0, s, 1))


def _cps(s: Array, s_next: Array, noise_level: Array) -> tuple[Array, Array]:
    # s_next^2 = (s_next - c)^2 + std^2; the half angle avoids the cancellation in 1 - cos for a
    # small eta.
    angle = noise_level * (math.pi / 2)
    return s_next * jnp.sin(angle), 2 * s_next * jnp.sin(angle / 2) ** 2


def _ode(s: Array, s_next: Array, noise_level: Array) -> tuple[Array, Array]:
    return jnp.zeros_like(s), jnp.zeros_like(s)


# The formulas and their sources are in the table of `sde_step`.
KERNELS = {
    'sde': Kernel(_sde),
    'cps': Kernel(_cps, ETA, max_level=1.0, noise_into_zero=False),
    'ode': Kernel(_ode, noisy=False),
}


def as_kernel(kernel: str | Kernel) -> Kernel:
    """The kernel itself, or the kernel of that name in KERNELS. Raises ValueError if neither."""
    if isinstance(kernel, Kernel):
        return kernel
    if kernel not in KERNELS:
        raise ValueError(f'unknown kernel {kernel!r}; expected a Kernel or one of {[*KERNELS]}')
    return KERNELS[kernel]
