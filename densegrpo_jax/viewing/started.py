"""How a run was started, kept in its folder."""

import json
import pathlib
from typing import NamedTuple

from densegrpo_jax.config.retired import RETIRED
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.trees import ABSENT, dotted
from densegrpo_jax.viewing.command import COMMAND, NEWEST, Recorded, record
from densegrpo_jax.viewing.run_data import CONFIG, RECIPE


class Start(NamedTuple):
    """How a run was started; '' where that is not known.

    recipe: the configuration that the command names, without the keys that it sets, as JSON.
    folder: the current one, which relative paths start from.
    """

    command: str = ''
    recipe: str = ''
    folder: str = ''


def write_start(workdir: pathlib.Path, config, started: Start, processes: int = 1) -> None:
    """Writes the configuration of a run, and beside it how the run was started. A run that is
    continued by its own configuration keeps what its first start wrote; its newest command is kept
    apart.

    processes: that were started so.
    """
    own = workdir / CONFIG
    command = ''
    if started.command:
        command = record(Recorded(started.command, started.folder, processes))
    texts = {NEWEST: command}
    if not _same(own, started.recipe):
        texts |= {COMMAND: command, RECIPE: started.recipe and started.recipe + '\n'}
    for name, text in texts.items():
        if text:
            replace_file(workdir / name, text)
    replace_file(own, config.to_json_best_effort(indent=2) + '\n')


def _same(file: pathlib.Path, text: str) -> bool:
    """Whether a configuration says what the one in a file says, if that is there; an earlier
    version's has fewer keys, and some that were removed.
    """
    try:
        said, now = (dotted(json.loads(t)) for t in (file.read_text(encoding='utf-8'), text))
    except (OSError, ValueError):
        return False
    return all(now.get(key, ABSENT) == said[key] for key in said.keys() - RETIRED.keys())
