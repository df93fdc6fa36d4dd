"""The summary of an evaluation by task."""

import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.data.prompts import Prompt, PromptSet
from densegrpo_jax.evaluation import tables
from densegrpo_jax.evaluation.evaluator import Evaluation
from densegrpo_jax.sampling.conditioning import load_prompts


def test_evaluate_reports_geneval_by_task(tmp_path):
    row = '{"tag": "%s", "include": [{"class": "cup", "count": 1}], "prompt": "a photo of a cup"}\n'
    (tmp_path / 'rows.jsonl').write_text(row % 'counting' + row % 'colors' * 2 + row % 'counting')
    config = tiny_ocr.get_config()
    config.data.update(eval=str(tmp_path / 'rows.jsonl'), eval_prompts=0)
    scores = {'total': np.float32([1, 1, 0.5, np.nan]), 'geneval_correct': np.float32([0, 1, 1, 0])}
    result = Evaluation(scores, np.zeros((1, 8, 8, 3), np.uint8), ['a photo of a cup'])
    summary = tables.summary(config, 'eval', load_prompts(config, 'eval'), {'base': result})
    assert '| policy | score | colors | counting | mean of tasks |' in summary
    assert (
        '| base | total | 0.7500 | 1.0000 | 0.8750 |' in summary
        and '| base | geneval_correct | 1.0000 | 0.0000 | 0.5000 |' in summary
    )


@pytest.mark.parametrize(
    'tags, tasks',
    [
        ((1, 2, 1, 2), '1 | 2 | mean'),
        ((0.5, 'x', True, None), '0.5 | True | x | mean'),
        (([1, 2], [3], {'a': 1}, 'x'), 'x | mean'),
        (([1, 2], [3, 4], [5, 6], [7, 8]), ''),
    ],
)
def test_a_column_of_tags_may_hold_anything(tags, tasks):
    prompts = PromptSet(tuple(Prompt('a cup', {'tag': tag}) for tag in tags))
    scores = {'total': np.float32([1, 1, 0.5, 0])}
    result = Evaluation(scores, np.zeros((1, 8, 8, 3), np.uint8), ['a cup'])
    summary = tables.summary(tiny_ocr.get_config(), 'eval', prompts, {'base': result})
    assert ('By task' in summary) == bool(tasks) and f'| score | {tasks}' in summary + '| score | '
