import numpy as np
import pytest

from densegrpo_jax.data.prompts import Prompt
from densegrpo_jax.data.sampler import prompts_for_step, some_prompts


def test_an_epoch_shows_every_prompt_once():
    steps = [prompts_for_step('abcdefghijkl', 4, step, seed=3) for step in range(6)]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(sum(epoch, [])) == list('abcdefghijkl')
    assert sum(steps[:3], []) != sum(steps[3:], [])


def test_steps_never_repeat_a_prompt_and_leftovers_change():
    left_out = set()
    for epoch in range(20):
        shown = sum([prompts_for_step(range(10), 4, 2 * epoch + i, seed=0) for i in (0, 1)], [])
        assert len(set(shown)) == 8
        left_out |= set(range(10)) - set(shown)
    assert left_out == set(range(10))


def test_depends_on_step_and_seed_alone():
    a = [prompts_for_step(range(100), 8, step, seed=1) for step in range(30)]
    for step in reversed(range(30)):  # any order of calls, as after a resume
        assert prompts_for_step(range(100), 8, step, seed=1) == a[step]
    assert prompts_for_step(range(100), 8, 0, seed=2) != a[0]


def test_the_order_is_the_one_that_earlier_runs_had():
    # Resumed runs and published commands depend on it: numpy's PCG64 seeded with [seed, epoch], a
    # permutation.
    assert (
        prompts_for_step(range(10), 4, 3, seed=5)
        == np.random.default_rng([5, 1]).permutation(10)[4:8].tolist()
    )


def test_a_step_may_show_the_whole_set():
    steps = [prompts_for_step('abc', 3, step, seed=0) for step in range(4)]
    assert all(sorted(step) == list('abc') for step in steps) and len({*map(tuple, steps)}) > 1


def test_errors_name_the_numbers():
    with pytest.raises(ValueError, match='11 prompts per step: expected 1 to 10'):
        prompts_for_step(range(10), 11, 0, 0)
    with pytest.raises(ValueError, match='step = -1'):
        prompts_for_step(range(10), 2, -1, 0)


def test_some_prompts_are_different_ones_in_their_order():
    train = [Prompt(f'prompt {i}') for i in range(30)]
    chosen = some_prompts(train, 12, 0, 10)
    assert len({p.text for p in chosen}) == 12 and chosen == some_prompts(train, 12, 0, 10)
    assert chosen == sorted(chosen, key=train.index)
    assert chosen != some_prompts(train, 12, 1, 10) != some_prompts(train, 12, 1, 3)
    assert some_prompts(train, 10**6, 0, 10) == train
    often = [Prompt(text, {'row': i}) for i, text in enumerate('aaaaabcaaaa')]
    assert [p.text for p in some_prompts(often, 3, 0, 10)] == ['a', 'b', 'c']
    assert sorted(p.text for p in some_prompts(often, 5, 0, 10)) == ['a', 'a', 'a', 'b', 'c']
