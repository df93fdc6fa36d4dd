"""Roles: the sets of parameters that a training state holds by name, and how each follows the
policy.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

POLICY = 'policy'  # the trained parameters
REF = 'ref'  # the reference policy: the frozen base, which no state holds
EMA = 'ema'  # the policy's exponential moving average, which is evaluated and exported

# (parameters of the role, those of the policy after the iteration, int32 [] iterations before it)
# -> the role's parameters after it; its keyword-only arguments are keys of the group `loss`
Follow = Callable[..., Any]


def moving_average(kept: Callable[[jax.Array], jax.Array]) -> Follow:
    """`role <- d role + (1 - d) policy` with d = kept(iterations before this one): d = 0 takes the
    policy, d = 1 keeps the role.
    """

    def follow(role, policy, step):
        d = kept(step)
        return jax.tree.map(lambda r, p: d * r + (1 - d) * p, role, policy)

    return follow


def warm_decay(decay: float, every: int = 1) -> Callable[[jax.Array], jax.Array]:
    """d = min(decay, (1 + step) / (10 + step)) at every `every`-th iteration, else 1 (Flow-GRPO's
    code): for `moving_average`.
    """
    return lambda step: jnp.where(
        (step + 1) % every == 0, jnp.minimum(decay, (1.0 + step) / (10.0 + step)), 1.0
    )


# d of DiffusionNFT's old policy, by name (arXiv 2509.16117 and its code).
OLD_DECAYS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    'none': lambda step: jnp.zeros(jnp.shape(step)),
    'rising': lambda step: jnp.minimum(0.001 * step, 0.5),
    'late': lambda step: jnp.clip(0.0075 * (step - 75), 0, 0.999),
}


def follow_old(role: Any, policy: Any, step: jax.Array, *, old_decay: str) -> Any:
    """The old policy, a `moving_average` of the policy with d of OLD_DECAYS."""
    return moving_average(OLD_DECAYS[old_decay])(role, policy, step)
