"""What the record of evaluations says of the past: which may be the best, what fell, the brake."""

from densegrpo_jax.guard.guard import Guard
from densegrpo_jax.guard.history import History
from densegrpo_jax.runtime.trees import Difference
from densegrpo_jax.training.progress import Progress


def test_evaluations_without_a_guard_may_be_the_best():
    row = lambda step, *fallen, **more: {
        'step': step,
        'fallen': [*fallen],
        'action': '',
        'brake': 1.0,
        **more,
    }
    history = History([[s, 0.5 + s / 10, 0.0] for s in range(5)])
    history.guarded, history.passed_over = [row(0), row(2, 'a')], [1]
    assert [history.competes(s) for s in range(5)] == [True, False, False, True, True]
    assert history.best()[0] == 4
    history.pass_over_unguarded()  # on again: it has seen neither 3 nor 4
    assert [history.competes(s) for s in range(5)] == [True, False, False, False, False]
    assert history.passed_over == [1, 3, 4] and history.best()[0] == 0
    history.passed_over.append(0)
    assert history.best() is None


def test_what_the_rows_say_of_the_past():
    row = lambda *fallen, action='', brake=1.0: {
        'step': 0, 'fallen': [*fallen], 'action': action, 'brake': brake,
    }  # fmt: skip
    of = lambda *rows: History(guarded=[*rows])
    assert (of().fallen_in_a_row, of().brake, of().stopped_by_guard) == (0, 1.0, False)
    assert of(row('a'), row(), row('a'), row('b')).fallen_in_a_row == 2
    unknown = row() | {'missing': ['a']}  # neither counts nor ends what fell before
    assert of(row('a'), unknown, row('a'), unknown).fallen_in_a_row == 2
    braked = of(row('a'), row('a', action='brake', brake=0.5), row('a', brake=0.5))
    assert braked.fallen_in_a_row == 1 and braked.brake == 0.5
    assert of(row('a', action='stop')).stopped_by_guard
    assert not of(row('a', action='stop'), row('a')).stopped_by_guard


def test_what_other_code_found_counts_no_more():
    row = lambda step, *fallen, action='', brake=1.0, **more: {
        'step': step, 'fallen': [*fallen], 'action': action, 'brake': brake, **more,
    }  # fmt: skip
    old = [row(1, 'own'), row(2, 'own', action='brake', brake=0.5), row(3, 'own', brake=0.5)]
    progress = Progress([[s, 0.5, 0.0] for s in range(1, 4)], [*old], [1])
    progress.go_on(3, [Difference('code of your own.credit.rule', 'a', 'b')])
    assert progress.guarded == old and progress.fallen_in_a_row == 1
    progress.go_on(3, [Difference('code of your own.reward.own', 'a', 'b')])
    assert progress.fallen_in_a_row == 0 and progress.brake == 0.5  # it has acted: that stays
    assert [r['fallen'] for r in progress.guarded] == [['own']] * 3  # and what it was told
    progress.evaluations.append([3, 0.1, 0.0])  # anew, and no guard looks
    assert progress.best() == [3, 0.1, 0.0]
    progress.guarded.append(row(4, 'own', brake=0.5))
    assert progress.fallen_in_a_row == 1
    progress.pass_over_unguarded()
    assert progress.best() is None and not progress.competes(3)


def test_a_stop_that_other_code_of_the_panel_has_asked_for_is_over():
    """Of that code the training knows nothing: the guard's rows tell."""
    row = lambda step, **more: {'step': step, 'fallen': ['x'], 'action': '', 'brake': 1.0, **more}
    guard, a, b = object.__new__(Guard), {'of': {'x': 'a'}}, {'of': {'x': 'b'}}
    history = History(guarded=[row(0), row(1, code=a), row(2, code=a, action='stop')])
    guard._code = a
    guard.go_on(history)
    assert history.fallen_in_a_row == 3 and history.stopped_by_guard
    guard._code = b
    guard.go_on(history)
    assert history.fallen_in_a_row == 0 and not history.stopped_by_guard
    assert history.competes(2) and not history.competes(0)
