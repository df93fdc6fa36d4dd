"""Reading a network's config.json: every key is either used, checked or known to be irrelevant; anything else is an error."""

from collections.abc import Collection, Mapping
import dataclasses
from typing import Any


def read_config(kind: type, name: str, config: Mapping[str, Any], *, only: Mapping[str, Collection], ignored: Collection[str],
                defaults: Mapping[str, Any] | None = None):
    """Builds the dataclass `kind` from a parsed config.json.

    Args:
      kind: dataclass; keys that name its fields are used (lists become tuples).
      name: how errors call the file.
      config: the parsed JSON.
      only: key -> the values of it that the port supports.
      ignored: keys without influence on the forward pass; keys with a leading underscore are ignored too.
      defaults: what the reference assumes for absent keys where that differs from the defaults of `kind`.
    Raises:
      ValueError: an unknown key, or a value that is not supported, by name.
    """
    fields = {field.name for field in dataclasses.fields(kind)}
    values = dict(defaults or {})
    for key, value in config.items():
        if key in only and value not in only[key]:
            raise ValueError(f'{name}: {key}={value!r} is not supported, expected {" or ".join(map(repr, only[key]))}')
        if key in fields:
            values[key] = tuple(value) if isinstance(value, list) else value
        elif key not in only and key not in ignored and not key.startswith('_'):
            raise ValueError(f'{name}: unknown key {key!r} (value {value!r}); this may not be the plain network that is supported here')
    return kind(**values)


def check_positive(config, name: str, *keys: str) -> None:
    """ValueError unless every named field is a positive integer."""
    for key in keys:
        value = getattr(config, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f'{name}: {key} must be a positive integer, got {value!r}')
