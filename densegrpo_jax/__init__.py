"""DenseGRPO in JAX: dense step-wise rewards for aligning flow-matching image models by online RL
(arXiv 2601.20218).
"""

import importlib
import sys

from densegrpo_jax.runtime import entry

if sys.argv[:1] == ['-m']:  # perhaps a command of this package
    entry.begin(__name__)

__version__ = '0.2.0'

_FACE = {
    'sde_step': 'densegrpo_jax.core.sde_step',
    'ode_rollout': 'densegrpo_jax.core.ode_rollout',
    'dense_reward': 'densegrpo_jax.core.dense_reward',
    'grpo_loss': 'densegrpo_jax.core.grpo_loss',
}
__all__ = sorted(_FACE)


def __getattr__(name):
    # Resolved on first use, so that importing a data or reward module does not import jax.
    if name not in _FACE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_FACE[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
