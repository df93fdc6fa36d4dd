"""Objects that a configuration names by their import path, 'package.module:object'."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pathlib
import sysconfig
import traceback
from typing import Any

_LIBRARIES = [sysconfig.get_path(name) for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')]


def code_digest(path: str) -> str:
    """A short hash of the code that 'package.module:object' names: of all modules of its outermost
    package, or of the module's file if it is in none; '' where there is no file. Imports nothing,
    and follows no import out of the package.
    """
    spec = importlib.util.find_spec(path.partition(':')[0].partition('.')[0])
    if spec is None:
        return ''
    if spec.submodule_search_locations is None:
        files = [('', pathlib.Path(spec.origin or ''))]
    else:
        files = [found for place in spec.submodule_search_locations for found in _modules(place)]
    total, files = hashlib.sha256(), [(name, file) for name, file in files if file.is_file()]
    for name, file in sorted(files):
        total.update(name.encode() + file.read_bytes())
    return total.hexdigest()[:12] if files else ''


def _modules(place: str) -> list[tuple[str, pathlib.Path]]:
    """(name in the folder, file) of the modules in a package's folder. What no import can name does
    not count: hidden folders, virtual environments, runs.
    """
    found = []
    for folder, inner, files in os.walk(place):
        inner[:] = filter(str.isidentifier, inner)
        for file in (pathlib.Path(folder, name) for name in files):
            if file.suffix == '.py' and file.stem.isidentifier():
                found.append((str(file.relative_to(place)), file))
    return found


def failure(error: BaseException) -> str:
    """An error of somebody's code in a line: its type, its text, and the line of that code, which
    is the innermost outside this package, of no library.
    """
    known = (pathlib.Path(__file__).parents[1], *map(pathlib.Path, _LIBRARIES))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(pathlib.Path(frame.filename).is_relative_to(place) for place in known)
        and not frame.filename.startswith('<')
    ]
    at = f' ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})' if frames else ''
    text = f': {error}' if str(error) else ''  # a bare assert has none
    return f'{type(error).__name__}{text}{at}'


def imported(path: str, what: str) -> Any:
    """The object that 'package.module:object' names.

    Args:
      what: its name in messages, such as "reward 'my_rewards:Mine'".

    Raises:
      ValueError: the import path has no such module, or the module no such object.
      ValueError too for whatever the module itself raises.
    """
    module, _, name = path.partition(':')
    if name and (module.endswith('.py') or '/' in module):
        *folders, stem = module.removesuffix('.py').split('/')
        inside = all(map(str.isidentifier, folders))
        proposed = '.'.join([*folders, stem] if inside else [stem])
        where = '' if inside else f', with {"/".join(folders)} on the import path (PYTHONPATH)'
        raise ValueError(
            f"{what}: {module!r} is a file; expected the module's name, as {proposed}:{name}{where}"
        )
    if not module or not name or module.startswith('.'):
        raise ValueError(f'{what}: expected package.module:object')
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f'{module}.'.startswith(f'{error.name}.'):
            raise ValueError(
                f'{what}: the module {module!r} cannot be imported: {error}'
            ) from error
        raise ValueError(
            f'{what}: there is no module {error.name!r} on the import path (PYTHONPATH) or in '
            'the current folder'
        ) from None
    except Exception as error:  # noqa: BLE001 (somebody's code may raise anything)
        raise ValueError(
            f'{what}: the module {module!r} cannot be imported: {failure(error)}'
        ) from error
    if not hasattr(found, name):
        raise ValueError(f'{what}: the module {module!r} has no {name!r}')
    return getattr(found, name)
