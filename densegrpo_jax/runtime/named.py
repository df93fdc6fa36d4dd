"""Objects that a configuration names by their import path, 'package.module:object'."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pathlib
from typing import Any


def code_digest(path: str) -> str:
    """A short hash of the file of the module that 'package.module:object' names; '' where it has
    none. What the module itself imports is not in it.
    """
    spec = importlib.util.find_spec(path.partition(':')[0])
    file = pathlib.Path(spec.origin) if spec and spec.has_location and spec.origin else None
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file else ''


def imported(path: str, what: str) -> Any:
    """The object that 'package.module:object' names.

    Args:
      what: its name in messages, such as "reward 'my_rewards:Mine'".

    Raises:
      ValueError: the import path has no such module, or the module no such object.
      ValueError too for whatever the module itself raises.
    """
    module, _, name = path.partition(':')
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
            f'{what}: the module {module!r} cannot be imported: {type(error).__name__}: {error}'
        ) from error
    if not hasattr(found, name):
        raise ValueError(f'{what}: the module {module!r} has no {name!r}')
    return getattr(found, name)
