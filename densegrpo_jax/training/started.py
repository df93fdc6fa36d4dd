"""How a run was started, kept in its folder."""

import json
import pathlib
from typing import NamedTuple

from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.viewing.command import COMMAND, COMMAND_IN
from densegrpo_jax.viewing.run_data import RECIPE

CONFIG = 'config.json'


class Start(NamedTuple):
    """How a run was started; '' where that is not known.

    recipe: the configuration that the command names, without the keys that it sets, as JSON.
    folder: the current one, which relative paths start from.
    """

    command: str = ''
    recipe: str = ''
    folder: str = ''


def write_start(workdir: pathlib.Path, config, started: Start) -> None:
    """Writes the configuration of a run, and beside it how the run was started. A run that is
    continued by its own configuration keeps what its first start wrote.
    """
    own = workdir / CONFIG
    if not _same(own, started.recipe):
        command = started.command
        if command and started.folder:
            command += f'\n{COMMAND_IN}{started.folder}'
        for name, text in ((COMMAND, command), (RECIPE, started.recipe)):
            if text:
                replace_file(workdir / name, text + '\n')
    replace_file(own, config.to_json_best_effort(indent=2) + '\n')


def _same(file: pathlib.Path, text: str) -> bool:
    """Whether a file, if it is there, holds the same JSON as a text."""
    try:
        return json.loads(file.read_text(encoding='utf-8')) == json.loads(text)
    except (OSError, ValueError):
        return False
