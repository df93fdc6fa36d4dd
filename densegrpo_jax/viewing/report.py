"""The page of runs as a folder that opens from disk: HTML, script, style, data and pictures."""

from __future__ import annotations

import base64
import importlib.resources
import itertools
import json
import pathlib
import re
import shutil
from collections.abc import Sequence

from absl import logging

from densegrpo_jax.runtime.files import TEMPORARY, replace_file
from densegrpo_jax.viewing.run_data import read_runs

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
    """Writes the page of some runs. If that fails, as on a full disk, the page that was there
    stays with its data and pictures.

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
    if (out.exists() and not out.is_dir()) or is_taken(out):
        raise ValueError(f'--out={out} holds something else; name a new folder, or an empty one')
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / MARK, 'Made by densegrpo report; open index.html. It may be made anew.\n')
    places = (f'runs_{number}' if number else 'runs' for number in itertools.count())
    place = next(name for name in places if not (out / name).exists())
    try:
        for number, (run, workdir) in enumerate(zip(runs, workdirs)):
            for what in run['damaged']:
                logging.warning('%s: %s', workdir, what)
            run['files'] = f'{place}/{number}'
            for name in shown(run):
                target = out / run['files'] / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(workdir / name, target)
        replace_file(out / 'plotly.js', plotly())
        for name in ASSETS:
            replace_file(out / name, asset(name).decode())
        # no text of a run ends a script, wherever the data may stand
        data = json.dumps(runs, allow_nan=False).replace('<', '\\u003c')
        replace_file(out / 'data.js', f'window.RUNS = {data};\n')
    except BaseException:
        shutil.rmtree(out / place, ignore_errors=True)
        raise
    for old in out.glob('runs*'):  # data.js no longer names them
        if old.name != place and re.fullmatch(r'runs(_\d+)?', old.name):
            shutil.rmtree(old, ignore_errors=True)
    return out / 'index.html'


def is_taken(folder: pathlib.Path) -> bool:
    """Whether a folder holds something else than a page of `write_report`, or its beginning."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return bool(found - {MARK + TEMPORARY}) and MARK not in found


def one_file(page: pathlib.Path) -> str:
    """A page that `write_report` made as one HTML text: style, scripts and pictures are inside.

    page: its index.html.
    """

    def inside(found: re.Match) -> str:
        name = found['style'] or found['script']
        text = (page.parent / name).read_text(encoding='utf-8')
        if found['style']:
            return f'<style>\n{text}</style>'
        text = re.sub('</(?=script)', r'<\\/', text, flags=re.IGNORECASE)  # in a string of Plotly's
        return f'<script>\n{text}{files if name == "data.js" else ""}</script>'

    pictures = {
        path.relative_to(page.parent).as_posix(): f'data:image/{path.suffix[1:]};base64,'
        + base64.b64encode(path.read_bytes()).decode()
        for path in sorted(page.parent.glob('runs*/**/*'))
        if path.is_file()
    }
    files = f'window.FILES = {json.dumps(pictures)};\n'
    parts = r'<link rel="stylesheet" href="(?P<style>\S+)">|<script src="(?P<script>\S+)"></script>'
    return re.sub(parts, inside, page.read_text(encoding='utf-8'))


def is_page(file: pathlib.Path) -> bool:
    """Whether a file is one that `one_file` made."""
    try:
        with open(file, 'rb') as page:
            return b'<title>densegrpo_jax</title>' in page.read(1000)
    except OSError:
        return False


def shown(run: dict) -> list[str]:
    """The names of the pictures in a run's folder that its page shows, of `read_run`."""
    kinds = run['pictures'], run['sheets'], run['verdicts'], run['groups']
    return [found['file'] for kind in kinds for found in kind]
