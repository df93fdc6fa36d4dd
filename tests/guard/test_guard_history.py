"""What the record of evaluations says of the past: which may be the best, what fell, the brake."""

from densegrpo_jax.guard.history import History


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
