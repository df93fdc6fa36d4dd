"""What a run keeps of its evaluations' images, and shows of them at its end."""

import dataclasses

import numpy as np
import pytest

from densegrpo_jax.evaluation.evaluator import Evaluation
from densegrpo_jax.viewing.pictures import before_after, keep_images


def evaluation(shown=2):
    """An evaluation of four prompts, with the images of the first ones."""
    images = np.zeros((shown, 8, 8, 3), np.uint8)
    return Evaluation({'total': np.arange(4.0)}, images, ['a', 'b', 'c', 'd'][:shown])


@pytest.mark.parametrize('damage', [b'x', b'PK', b''])
def test_damaged_images_of_an_earlier_start_are_left_out(tmp_path, caplog, damage):
    for step in 0, 1:
        keep_images(tmp_path, step, evaluation())
    (tmp_path / 'samples' / 'step_000000.npz').write_bytes(damage)
    assert before_after(tmp_path, 0, 1) is None
    assert 'step_000000.npz is damaged' in caplog.text


def test_images_before_and_after_may_differ_in_number_and_not_in_prompts(tmp_path, caplog):
    """`eval.shown` may change when a run continues."""
    for step, n in (0, 4), (1, 2):
        keep_images(tmp_path, step, evaluation(n))
    assert before_after(tmp_path, 0, 1) == tmp_path / 'before_after.png'
    keep_images(tmp_path, 1, dataclasses.replace(evaluation(2), prompts=['a', 'c']))
    assert before_after(tmp_path, 0, 1) is None
    assert 'other prompts or sizes' in caplog.text
    assert not (tmp_path / 'before_after.png').exists()


def test_arrays_of_images_stay_of_the_first_and_the_newest_evaluation(tmp_path):
    for step in 0, 1, 2, 1:  # a run goes on from an earlier checkpoint
        keep_images(tmp_path, step, evaluation())
    names = sorted(path.name for path in (tmp_path / 'samples').iterdir())
    sheets = [f'step_{step:06d}.png' for step in range(3)]
    assert names == sorted([*sheets, 'step_000000.npz', 'step_000001.npz'])
