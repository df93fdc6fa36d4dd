"""The released checkpoints of all families, for plans and benchmarks that need shapes but no
weights.
"""

from __future__ import annotations

import copy
from typing import Any

import jax.numpy as jnp

from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.folder import PIPELINES, build_pipeline


def released() -> dict[str, tuple[type[Pipeline], dict, dict[str, dict]]]:
    """Hugging Face id -> (pipeline class, scheduler_config.json, config.json of every component),
    from what each family itself names (`Pipeline.RELEASED`).
    """
    return {
        name: (kind, *files)
        for kind in PIPELINES.values()
        for name, files in vars(kind).get('RELEASED', {}).items()
    }


def released_pipeline(
    name: str, *, scan: bool = True, dtype: Any = jnp.bfloat16, **options
) -> Pipeline:
    """The pipeline of a released checkpoint without weights and tokenizers: for shapes, compilation
    and random weights.

    options: those of `build_pipeline`; text_length is required.

    Raises ValueError for a name that is not one of `released`.
    """
    known = released()
    if name not in known:
        raise ValueError(f'{name!r} is not one of the known checkpoints {sorted(known)}')
    kind, scheduler, configs = known[name]
    tokenizers = (None,) * len(kind.TEXT_ENCODERS)
    return build_pipeline(
        copy.deepcopy(configs), scheduler, tokenizers, kind=kind, scan=scan, dtype=dtype, **options
    )
