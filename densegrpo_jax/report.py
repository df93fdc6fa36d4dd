"""Command: a page of one run or several, as a folder that a browser opens from disk.

    python -m densegrpo_jax.report --workdir=runs/tiny_ocr
    python -m densegrpo_jax.report --workdir=runs/a --workdir=runs/b --out=runs/a_and_b
    python -m densegrpo_jax.report --workdir=runs/tiny_ocr --one_file=tiny_ocr.html

It shows the curves, held-out images by update, configuration and cost, and for the groups on record
(`eval.groups`) every sample with its completions, scores, gains and advantages. Everything that the
page needs is in the folder, or in one file; nothing is fetched from the web. A training makes the
page of itself at its end (`eval.report`); `densegrpo watch` shows a run that goes on.
"""

from __future__ import annotations

import pathlib

from absl import logging

from densegrpo_jax.config.command_line import define_folder, define_runs, run_main
from densegrpo_jax.config.flag_types import define_output
from densegrpo_jax.runtime.paths import writable


def main(flag) -> None:
    from densegrpo_jax.runtime.files import replace_file
    from densegrpo_jax.viewing.report import FOLDER, one_file, write_report

    workdirs = [pathlib.Path(folder).expanduser() for folder in flag.workdir]
    if len(workdirs) > 1 and not flag.out:
        raise ValueError('--out: name a folder for the page of several runs')
    out = pathlib.Path(flag.out).expanduser() if flag.out else workdirs[0] / FOLDER
    page = write_report(out, workdirs)
    logging.info('made %s', page)
    if flag.one_file is not None:
        file = writable(flag.one_file)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, one_file(page))
        logging.info('made %s', file)


def _is_page(file: pathlib.Path) -> bool:
    from densegrpo_jax.viewing.report import is_page

    return is_page(file)


if __name__ == '__main__':
    define_runs()
    define_folder('out', None, 'Folder of the page; default, for one run: WORKDIR/report.')
    what = 'Also writes the page as one HTML file, with its pictures: for a mail or a notebook.'
    define_output('one_file', None, what, '.html', _is_page)
    run_main(main)
