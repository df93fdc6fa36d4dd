"""The order of the tests."""

import pathlib

from tests.order import ROOMS, place

TESTS = pathlib.Path(__file__).parent


def test_the_basics_come_first_and_long_files_before_the_rest():
    names = ['runtime/test_files.py', 'training/test_run.py', 'test_pages.py', 'core/test_face.py']
    found = sorted((TESTS / name for name in names), key=lambda path: place(path, TESTS))
    assert [found[0], found[1]] == [TESTS / 'core/test_face.py', TESTS / 'training/test_run.py']


def test_every_room_of_the_order_has_tests():
    assert all(list((TESTS / room).glob('test_*.py')) for room in ROOMS)


def test_this_session_runs_in_that_order(request):
    places = [place(item.path, TESTS) for item in request.session.items]
    assert places == sorted(places)


def test_no_two_test_files_share_a_name():
    """pytest imports them by their bare names: of two alike, it refuses the second."""
    names = [path.name for path in TESTS.rglob('test_*.py')]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})
