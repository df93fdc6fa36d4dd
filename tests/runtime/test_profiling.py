"""Traces of iterations."""

import pytest

from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.profiling import Profile, Profiler, check_profile, profile_of


@pytest.fixture
def traced(monkeypatch):
    """What the profiler was asked."""
    calls = []
    start = lambda folder, **options: calls.append(f'start {folder.name}')
    monkeypatch.setattr('jax.profiler.start_trace', start)
    monkeypatch.setattr('jax.profiler.stop_trace', lambda: calls.append('stop'))
    return calls


def iterate(profile, folder, first, last, calls):
    with Profiler(profile, folder, first - 1) as profiler:
        for iteration in range(first, last + 1):
            profiler.begin(iteration)
            calls.append(iteration)
            profiler.end(iteration)


def test_the_iterations_that_were_named_are_traced(traced, tmp_path, caplog):
    iterate(Profile(3, 4), tmp_path, 1, 5, traced)
    assert traced == [1, 2, 'start profile', 3, 4, 'stop', 5]
    traced.clear()
    iterate(Profile(3, 4), tmp_path, 4, 5, traced)  # a run that continues in the middle
    assert traced == ['start profile', 4, 'stop', 5]
    traced.clear()
    iterate(Profile(3, 4), tmp_path, 5, 5, traced)
    assert traced == [5] and 'iterations 3 to 4 are done already' in caplog.text
    traced.clear()
    iterate(None, tmp_path, 1, 2, traced)
    assert traced == [1, 2]


def test_an_error_ends_the_trace(traced, tmp_path):
    with pytest.raises(ZeroDivisionError), Profiler(Profile(1, 5), tmp_path, 0) as profiler:
        profiler.begin(1)
        1 / 0  # noqa: B018
    assert traced == ['start profile', 'stop']


def test_each_of_several_processes_has_its_own_folder(traced, tmp_path):
    with Profiler(Profile(1, 1), tmp_path, 0, Hosts(1, 2)) as profiler:
        profiler.begin(1)
    assert traced == ['start process_1', 'stop']


def test_a_trace_that_fails_ends_no_run(traced, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr('jax.profiler.stop_trace', lambda: 1 / 0)
    iterate(Profile(1, 1), tmp_path, 1, 2, traced)
    assert traced == ['start profile', 1, 2] and 'no trace was made in' in caplog.text


@pytest.mark.parametrize('text', ['', '3', '0:1', '3:0', '-1:2', '3:101', '1:2:3', 'a:b', '3: 2'])
def test_other_values_are_refused(text):
    with pytest.raises(ValueError, match='expected START:COUNT'):
        profile_of(text)


def test_a_profile_ends_with_the_run():
    check_profile(profile_of('3:2'), 4)
    with pytest.raises(ValueError, match='--profile=3:2 ends after iteration 4, but iterations=3'):
        check_profile(profile_of('3:2'), 3)
