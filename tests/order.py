"""In which order the tests run; conftest.py applies it.

What everything stands on comes first, so that the first minute fails where something basic is
broken. Then the rooms whose files take minutes, early enough that none of them runs alone at the
end, when the other processes have nothing left to do. The rest fills the gaps.
"""

import pathlib

BASICS = ('core', 'config', 'data', 'networks')
LONG = ('training', 'guard', 'calibration', 'experiments', 'search', 'planning', 'evaluation')
LONG += ('sampling', 'mistakes', 'viewing', 'tools')
ROOMS = (*BASICS, *LONG)


def place(path: pathlib.PurePath, root: pathlib.PurePath) -> int:
    """The place of a test file's room under the folder `root`; rooms without one share the last."""
    room = path.relative_to(root).parts[0]
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)
