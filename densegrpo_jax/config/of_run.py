"""Commands that use a finished run take its configuration, unless another one is named."""

from __future__ import annotations

import functools
import json
import operator
import pathlib
import re
import sys
from collections.abc import Collection, Sequence

from absl import flags

from densegrpo_jax.config.key import SCIENCE, Selection
from densegrpo_jax.config.loading import load
from densegrpo_jax.runtime.trees import differing

CONFIG = 'config.json'  # of a run
SHOWN = 5  # keys in a note


def own_configuration(workdir: pathlib.Path, config, given: Collection[str]):
    """The configuration of the run in a folder, with the keys `given` on the command line as in
    `config`; `config` if the folder has none.

    Raises:
      ValueError: this version cannot read it.
    """
    from densegrpo_jax.config.schema import KEYS  # imports jax

    file = workdir / CONFIG
    if not file.is_file():
        return config
    try:
        own = load(str(file))
    except ValueError as error:
        raise ValueError(f'{error}. Move the file away, and --config takes its place') from None
    value = lambda key: functools.reduce(operator.getitem, key.split('.'), config)
    own.update_from_flattened_dict({key: value(key) for key in given if key in KEYS})
    return own


def told_otherwise(workdir: pathlib.Path, config, reads: Selection) -> str:
    """What a configuration sets otherwise than the run in a folder, of the keys that decide results
    and are in `reads`; '' if nothing, or if the folder has no configuration that can be read.
    """
    from densegrpo_jax.config.identity import kind_of  # imports jax

    try:
        own = own_configuration(workdir, config, ())
    except ValueError:
        return ''
    values = lambda c: json.loads(c.to_json_best_effort())
    found = [
        f'{key}={now!r}, and the run has {before!r}'
        for key, before, now in differing(values(own), values(config))
        if key in reads and kind_of(key) == SCIENCE
    ]
    more = [f'{len(found) - SHOWN} more'] if len(found) > SHOWN else []
    return '; '.join(found[:SHOWN] + more)


def with_own_configuration(args: Sequence[str]) -> list[str]:
    """The arguments of a command, with --config=WORKDIR/config.json if they have --workdir and no
    --config.

    Raises:
      flags.Error: that folder has no configuration, or there is neither flag.
    """
    given = flags.FLAGS.read_flags_from_files(args, force_gnu=False)
    found = {}
    for argument, following in zip(given, [*given[1:], '']):
        if named := re.fullmatch(r'--?(config|workdir)(=.*)?', argument, re.DOTALL):
            found[named[1]] = following if named[2] is None else named[2][1:]
    if not found:
        raise flags.Error('give --config=RECIPE, or --workdir=RUN, whose own is taken')
    if 'config' in found or not found.get('workdir'):
        return [*args]
    file = pathlib.Path(found['workdir']).expanduser() / CONFIG
    if not file.is_file():
        raise flags.Error(
            f'there is no --config, and --workdir={found["workdir"]} is no run whose own could be '
            f'used: there is no {file}. Name another folder, or the recipe'
        )
    print(f'note: without --config it is that of the run, {file}', file=sys.stderr)
    return [args[0], f'--config={file}', *args[1:]]
