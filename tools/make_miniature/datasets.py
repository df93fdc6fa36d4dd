"""The training data of a miniature, by name: its images and prompts, the words of its tokenizers,
and its evaluation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from densegrpo_jax.data import shapes
from densegrpo_jax.data.prompts import PromptSet, tiny_eval_prompts
from densegrpo_jax.pipelines.tokenizers import template_words
from tools.make_miniature import render

Batches = Callable[[int, int, int], tuple[np.ndarray, Sequence[str]]]


class Dataset(NamedTuple):
    """The training data of a miniature.

    vocabulary: words that become one token each. batch, flow_batch:
    `(seed, step, size) -> (images uint8 [size, H, W, 3], prompts)`, pure functions, for the
    autoencoder and for the flow. eval_prompts: held-out prompts. reward: specification of the
    reward that scores them.
    """

    vocabulary: list[str]
    batch: Batches
    flow_batch: Batches
    eval_prompts: PromptSet
    reward: dict


def words(config) -> Dataset:
    """Signs that show a word (render.py); the flow sees only `config.flow_fonts`."""
    render.check_fonts(render.FONTS, 'the fonts of the miniature')
    render.check_fonts(config.flow_fonts, 'flow_fonts')
    draw = lambda fonts: (
        lambda *key: render.training_batch(
            *key, height=config.height, width=config.width, fonts=fonts
        )[:2]
    )
    ocr = {'ocr': {'mode': 'recognise'}}
    return Dataset(
        template_words(), draw(render.FONTS), draw(config.flow_fonts), tiny_eval_prompts(), ocr
    )


def coloured_shapes(config) -> Dataset:
    """Coloured shapes with counts and positions (data/shapes.py)."""
    if config.height != config.width:
        raise ValueError(
            f'height={config.height}, width={config.width}: images of shapes are square'
        )
    draw = functools.partial(shapes.training_batch, size=config.height)
    return Dataset(shapes.vocabulary(), draw, draw, shapes.shapes_eval_prompts(), {'shapes': {}})


DATASETS: dict[str, Callable[..., Dataset]] = {'words': words, 'shapes': coloured_shapes}
