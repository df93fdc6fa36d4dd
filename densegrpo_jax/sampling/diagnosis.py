"""Why no image came out: names the arrays that hold values that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from densegrpo_jax.sampling.session import Session

SHOWN = 5


def not_finite(tree: Any) -> list[str]:
    """The paths of the floating arrays in a tree that hold NaN or an infinity, 'a/b/c'."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    floats = [(path, x) for path, x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    bad = jax.device_get([jnp.logical_not(jnp.isfinite(x).all()) for _, x in floats])
    name = lambda key: str(getattr(key, 'key', getattr(key, 'name', key)))
    return ['/'.join(map(name, path)) for (path, _), wrong in zip(floats, bad) if wrong]


def explain(session: Session, policy: Any, texts: Sequence[str]) -> None:
    """Raises ValueError if weights, policy or the prompts' conditioning explain why no image has a
    score; returns if they are finite, and something else is the cause. All processes of a run call
    it alike.

    Args:
      policy: adapters or weights that sampled; None: the base.
      texts: the prompts that were sampled.
    """
    folder = session.folder
    causes = {
        f'the base model in {folder}': not_finite(session.params),
        'the policy': [] if policy is None else not_finite(policy),
    }
    for what, names in causes.items():
        if names:
            more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
            raise ValueError(
                f'{what} holds values that are not finite, so no image does either: '
                f'{", ".join(names[:SHOWN])}{more}. Fetch the weights again, or start from others'
            )
    bad = [text for text in texts if not_finite(session.conditioning([text]))]
    if bad:
        raise ValueError(
            f'the conditioning of {len(bad)} of {len(texts)} prompts is not finite, as that of '
            f'{bad[0]!r}: the text encoders in {folder} are damaged, or the cache '
            f'{session.config.text_cache or "in the folder text of the work directory"} is; '
            'remove the cache, and fetch the model again if that does not help'
        )
