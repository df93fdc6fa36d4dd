"""What a page reads of a run's folder, and shows of it. The folder may be somebody else's."""

from __future__ import annotations

import os
import pathlib
import re

# what a run makes of itself at its end
ENDS = BEFORE_AFTER, CURVE = 'before_after.png', 'reward_curve.png'
# what the page shows, and a server may send
PICTURES = re.compile(
    r'samples/step_\d{6,9}\.png|guard/verdict_\d{6,9}\.png|groups/step_\d{6,9}_\d{1,9}\.webp|'
    + '|'.join(map(re.escape, ENDS))
)


def real(folder: pathlib.Path) -> pathlib.Path:
    """A folder without links in its path."""
    return pathlib.Path(os.path.realpath(folder))


def inside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """A file of a run's folder. None: it is absent, or a link out of the folder, which may lead to
    whatever the reader may read, and the page may be passed on.

    folder: its real path, see `real`.
    """
    path = folder / name
    within = real(path).is_relative_to(folder)
    return path if within and os.path.isfile(path) else None


def picture(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """A picture of a run's folder that may be shown. None: as `inside`, or it is none of the
    page's. folder: its real path.
    """
    return inside(folder, name) if PICTURES.fullmatch(name) else None
