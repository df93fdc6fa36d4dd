"""The configuration that --config=RECIPE[:VARIANT] names: a recipe of the package or a file."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import inspect
import os
import pathlib
import sys
import traceback
from collections.abc import Callable

from ml_collections import ConfigDict

from densegrpo_jax.config.documents import RECIPE, SUFFIXES, from_document
from densegrpo_jax.runtime.reading import missing

# the folder configs of the repository, which is a part of the package
RECIPES = pathlib.Path(__file__).parents[1] / 'configs'


def load(argument: str, within: tuple[pathlib.Path, ...] = ()) -> ConfigDict:
    """The configuration of --config=RECIPE[:VARIANT], not locked.

    Args:
      argument: RECIPE is a Python file, the name of a recipe in the package, or a .yaml or .json
        file, see `documents`.
      within: the files that name this one as their recipe.

    Raises:
      ValueError: no such recipe, no such variant, or an error of the file itself.
    """
    name, colon, variant = _parts(argument)
    if colon and not variant:
        raise ValueError(f'--config={argument}: there is no variant after the colon; leave it out')
    path = _recipe_file(name, argument)
    if path.suffix in SUFFIXES:
        if colon:
            raise ValueError(
                f'--config={argument}: {path.name} has no variants; name one in the file, as '
                f"'{RECIPE}: flux_ocr:{variant}'"
            )
        if (here := path.resolve()) in within:
            raise ValueError(f'{RECIPE}: {path} names itself, directly or by way of another file')
        inner = functools.partial(load, within=(*within, here))
        return _run_file(argument, path, lambda: from_document(path, inner))
    spec = importlib.util.spec_from_file_location('configuration', path)
    if spec is None or spec.loader is None:
        raise ValueError(
            f'--config={argument}: expected a Python file with a function get_config(), as '
            'configs/tiny_ocr.py'
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _run_file(argument, path, functools.partial(spec.loader.exec_module, module))
    if not hasattr(module, 'get_config'):
        raise ValueError(f'--config={argument}: the file has no function get_config()')
    if colon and not inspect.signature(module.get_config).parameters:
        raise ValueError(
            f'--config={argument}: this configuration has no variants, its get_config() takes '
            f"none; leave ':{variant}' out"
        )
    given = [variant] if colon else []
    config = _run_file(argument, path, lambda: module.get_config(*given))
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f'--config={argument}: get_config() returned {config!r}; expected a configuration, as '
            'densegrpo_jax.config.schema.default_config() makes one'
        )
    return config


def with_method(argument: str, method: str) -> str:
    """--config=RECIPE[:VARIANT] with method=NAME beside what the variant names already."""
    name, _, variant = _parts(argument)
    return f'{name}:{",".join(filter(None, [variant, f"method={method}"]))}'


def _parts(argument: str) -> tuple[str, str, str]:
    """RECIPE, ':' and VARIANT, as `str.partition`; a path may have colons itself, as those of a
    time of day.
    """
    ends = (at for at, character in enumerate(f'{argument}:') if character == ':')
    for end in sorted(ends, reverse=True):
        if os.path.isfile(argument[:end]):  # unlike pathlib's it takes names of any length
            return argument[:end], argument[end : end + 1], argument[end + 1 :]
    return argument.partition(':')


def _run_file(argument: str, path: pathlib.Path, call: Callable):
    """The result of `call`, which runs the code of a configuration file.

    Raises:
      ValueError: the file's own, or one that names the line of any other error.
    """
    try:
        return call()
    except ValueError as error:
        raise ValueError(f'--config={argument}: {error}') from error
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a user's code may raise anything)
        frames = traceback.extract_tb(error.__traceback__)
        here = lambda name: name and pathlib.Path(name).resolve() == path.resolve()
        lines = [(frame.lineno, frame.line) for frame in frames if here(frame.filename)]
        if isinstance(error, SyntaxError) and here(error.filename):
            lines = [(error.lineno, (error.text or '').strip())]
        where = f'line {lines[-1][0]} of {path}, {lines[-1][1]!r}: ' if lines else ''
        # The library's errors hold the whole group between their first and last lines.
        said = str(error.args[0] if error.args else error).strip().splitlines() or ['']
        reason = ' ... '.join(dict.fromkeys((said[0][:200], said[-1][:200])))
        raise ValueError(f'--config={argument}: {where}{type(error).__name__}: {reason}') from error


def _recipe_file(name: str, argument: str) -> pathlib.Path:
    """The file of a recipe, given by its path or its name."""
    path, known = pathlib.Path(name), sorted(other.stem for other in RECIPES.glob('*.py'))
    if path.is_file():
        return path
    if name and path.exists() and (path.name != name or path.suffix or name not in known):
        raise ValueError(f'--config={argument}: {missing(path, str(path))}')
    if path.name != name or path.suffix:
        beside, where = (
            path.parent.glob(f'*{path.suffix}'),
            f'the current folder is {pathlib.Path.cwd()}',
        )
        close = difflib.get_close_matches(path.name, [other.name for other in beside], 1)
        named = difflib.get_close_matches(path.stem, known, 1)
        hint = f'did you mean the recipe {named[0]!r}?' if named else where
        hint = f'did you mean {path.with_name(close[0])}?' if close else hint
        raise ValueError(f'--config={argument}: there is no file {name!r}; {hint}')
    if (packaged := RECIPES / f'{name}.py').is_file():
        return packaged
    close = difflib.get_close_matches(name, known, 1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    recipe, comma, rest = argument.partition(',')
    if comma and recipe in known:
        hint = f'did you mean {recipe}:{rest}? '
    raise ValueError(
        f'--config={argument}: there is no recipe {name!r}; {hint}recipes: {", ".join(known)}; one '
        'of your own is named by its file'
    )
