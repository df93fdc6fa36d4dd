"""The tables of an evaluation."""

import numpy as np
import pytest

from densegrpo_jax.configs import tiny_ocr
from densegrpo_jax.data.prompts import Prompt, PromptSet
from densegrpo_jax.evaluation.evaluator import Evaluation
from densegrpo_jax.evaluation.tables import summary


@pytest.mark.parametrize('tags', [(1, 2), (0.5, None), (True, False), (['a'], ['b', 'c'])])
def test_a_column_tag_that_is_no_text_names_no_tasks(tags):
    prompts = PromptSet(tuple(Prompt('a', {'tag': tag}) for tag in tags))
    images = np.zeros((2, 8, 8, 3), np.uint8)
    found = {'base': Evaluation({'total': np.array([0.5, 1.0])}, images, ['a', 'a'])}
    said = summary(tiny_ocr.get_config(), 'eval', prompts, found)
    assert '0.7500' in said and 'By task' not in said
