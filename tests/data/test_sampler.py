import numpy as np
import pytest

from densegrpo_jax.data.sampler import process_slice, prompt_indices_for_step


def test_an_epoch_shows_every_prompt_once():
    steps = [prompt_indices_for_step(12, 4, step, seed=3) for step in range(6)]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(np.concatenate(epoch)) == list(range(12))
    assert not np.array_equal(np.concatenate(steps[:3]), np.concatenate(steps[3:]))


def test_steps_never_repeat_a_prompt_and_leftovers_change():
    left_out = set()
    for epoch in range(20):
        shown = np.concatenate([prompt_indices_for_step(10, 4, 2 * epoch + i, seed=0) for i in (0, 1)])
        assert len(set(shown)) == 8
        left_out |= set(range(10)) - set(shown)
    assert left_out == set(range(10))


def test_depends_on_step_and_seed_alone():
    a = [prompt_indices_for_step(100, 8, step, seed=1) for step in range(30)]
    for step in reversed(range(30)):  # any order of calls, as after a resume
        np.testing.assert_array_equal(prompt_indices_for_step(100, 8, step, seed=1), a[step])
    assert not np.array_equal(prompt_indices_for_step(100, 8, 0, seed=2), a[0])


def test_errors_name_the_numbers():
    with pytest.raises(ValueError, match='prompts_per_step = 11: expected 1 to 10'):
        prompt_indices_for_step(10, 11, 0, 0)
    with pytest.raises(ValueError, match='step = -1'):
        prompt_indices_for_step(10, 2, -1, 0)
    with pytest.raises(ValueError, match='10 rows do not divide over 4'):
        process_slice(10, 0, 4)
    with pytest.raises(ValueError, match='process_index = 2'):
        process_slice(10, 2, 2)


def test_processes_split_a_step_into_blocks():
    indices = prompt_indices_for_step(50, 12, 5, seed=9)
    parts = [indices[process_slice(12, p, 4)] for p in range(4)]
    assert all(len(part) == 3 for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), indices)
