"""What --help prints, and --help GROUP."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags


def show_help(args: list[str], *, keys: bool, listed: bool) -> NoReturn:
    """Prints what was asked for and exits; ValueError for unknown names.

    keys: the command takes the keys of a training. listed: all of them are listed.
    """
    names = _after_help(args) if keys else []
    try:
        if not names:
            try:
                flags.FLAGS(args)
            except SystemExit:
                pass  # absl's --help leaves with 1, which says that something failed
        if keys:
            _print_keys(names, listed)
        sys.stdout.flush()
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _after_help(args: list[str]) -> list[str]:
    """The groups and keys of --help=GROUP, or of the words after --help."""
    for i, arg in enumerate(args):
        if arg.startswith('--help='):
            return arg.partition('=')[2].split(',')
        if arg == '--help':
            return [word for word in args[i + 1 :] if not word.startswith('-')]
    return []


def _print_keys(names: Sequence[str], listed: bool) -> None:
    """Prints keys for --help: those of `names`, or how to see them, and all if `listed`."""
    from densegrpo_jax.config.key_help import hint, keys_text  # imports jax

    text = keys_text(names).strip('\n') if names else f'\n{hint()}'
    if listed and not names:
        text += f'\n\nKeys, their defaults and values; a recipe sets some of them:\n\n{keys_text()}'
    print(text)
