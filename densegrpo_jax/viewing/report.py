"""The page of runs as a folder that opens from disk: HTML, script, style, data and pictures."""

from __future__ import annotations

import importlib.resources
import json
import pathlib
import shutil
from collections.abc import Sequence

from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.viewing.run_data import picture, read_runs

FOLDER = 'report'  # in a run's folder
ASSETS = ('index.html', 'viewer.css', 'viewer.js', 'groups.js', 'curves.js')
MARK = 'densegrpo-report.txt'  # a folder with it was made by this command and may be made anew


def asset(name: str) -> bytes:
    """A file of the page."""
    return importlib.resources.files(__package__).joinpath('assets', name).read_bytes()


def plotly() -> str:
    """Plotly's own script, from its Python package: nothing is fetched from the web."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def write_report(
    out: pathlib.Path, workdirs: Sequence[pathlib.Path], ended: bool = False
) -> pathlib.Path:
    """Writes the page of some runs.

    Args:
      out: a new or empty folder, or one that this function made.
      ended: the process of the run asks, at its end: no run of them goes on.

    Returns:
      OUT/index.html.

    Raises:
      ValueError: `out` holds files of something else.
      FileNotFoundError: a folder is not a run's.
    """
    runs = read_runs(workdirs, ended)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).exists())):
        raise ValueError(f'--out={out} holds something else; name a new folder, or an empty one')
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / MARK, 'Made by densegrpo report; open index.html. It may be made anew.\n')
    pictures = out / 'runs'
    shutil.rmtree(pictures, ignore_errors=True)
    for number, (run, workdir) in enumerate(zip(runs, workdirs)):
        run['files'] = f'runs/{number}'
        for path in shown(workdir, run):
            target = pictures / str(number) / path.relative_to(workdir)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for name in ASSETS:
        replace_file(out / name, asset(name).decode())
    replace_file(out / 'plotly.js', plotly())
    replace_file(out / 'data.js', f'window.RUNS = {json.dumps(runs, allow_nan=False)};\n')
    return out / 'index.html'


def shown(workdir: pathlib.Path, run: dict) -> list[pathlib.Path]:
    """The pictures of a run's folder that the page shows."""
    names = [*run['pictures'], *(s['file'] for s in run['sheets'])]
    names += [group['image'] for group in run['groups']]
    return [path for name in names if (path := picture(workdir, name))]
