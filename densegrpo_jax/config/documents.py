"""Configurations as data: a .yaml or .json file with keys that differ from the defaults, or from a
recipe that it names. A run's own config.json is one.

    recipe: flux_ocr:devices=8,method=g2rpo
    rollout: {steps: 12}
    optim.learning_rate: 1e-4
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from densegrpo_jax.config.key import Key, check_value
from densegrpo_jax.config.label import relabel, told
from densegrpo_jax.config.retired import RETIRED
from densegrpo_jax.runtime.reading import check_depth, read_text

SUFFIXES = ('.yaml', '.yml', '.json')
RECIPE = 'recipe'  # the key that names what the file changes


def from_document(path: pathlib.Path, load: Callable[[str], ConfigDict]) -> ConfigDict:
    """The complete configuration that a file describes.

    Args:
      load: makes the configuration of the recipe that the file names.

    Raises:
      ValueError: the file cannot be read, a key occurs twice or does not exist, or a value cannot
        be one of the key's. The message names the key.
    """
    # imports jax, which most mistakes on a command line need not wait for
    from densegrpo_jax.config.schema import KEYS, OPEN, TABLE, close_key, default_config

    values = _read(path)
    recipe = values.pop(RECIPE, None)
    if recipe is not None and not isinstance(recipe, str):
        raise ValueError(f'{RECIPE}: expected a name such as flux_ocr:devices=8, not {recipe!r}')
    config = default_config() if recipe is None else load(recipe)
    before, keys = told(config), set()
    for key, value in _keys(values, OPEN):
        keys.add(key)
        if key in RETIRED:
            _check_retired(key, value, of_a_run=path.suffix == '.json')
            continue
        if key not in KEYS:
            close = close_key(key.rpartition('.')[2], key.rpartition('.')[0])
            hint = f'; did you mean {close}?' if close else ''
            hint = f'; {key} is a group of keys' if key in TABLE else hint
            raise ValueError(f'there is no key {key}{hint}')
        group, _, name = key.rpartition('.')
        (config[group] if group else config)[name] = _converted(key, KEYS[key], value)
    if 'label' not in keys:
        relabel(config, before)
    return config


def _check_retired(key: str, value: Any, of_a_run: bool) -> None:
    gone = RETIRED[key]
    if value == gone.value:
        return
    if not gone.successor:
        raise ValueError(f'{key}={value!r}: this key was removed; {gone!r} now')
    if not of_a_run:
        raise ValueError(f'{key}={value!r}: {gone.successor} takes the place of this key')
    logging.warning('%s=%r is not read: %s takes its place', key, value, gone.successor)


def _read(path: pathlib.Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        if path.suffix == '.json':
            found = json.loads(text, object_pairs_hook=_once)
        else:
            found = _yaml(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'line {error.lineno}: {error.msg}') from None
    except RecursionError:
        raise ValueError('brackets nested too deeply') from None
    check_depth(found, path.name)
    if not isinstance(found, dict):
        raise ValueError('expected keys with their values, such as rollout.steps: 12')
    return found


def _yaml(text: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that occurs twice, and reads 1e-4 as the number that it is."""

    def mapping(loader, node):
        return _once([(loader.construct_object(k), loader.construct_object(v, True))
                      for k, v in node.value])  # fmt: skip

    Loader.add_constructor('tag:yaml.org,2002:map', mapping)
    number = re.compile(r'^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$')
    Loader.add_implicit_resolver('tag:yaml.org,2002:float', number, list('-+.0123456789'))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        where = f'line {mark.line + 1}: ' if mark else ''
        raise ValueError(f'{where}{getattr(error, "problem", error)}') from None


def _once(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise ValueError(f'{key!r} is no name of a key')
        if key in found:
            raise ValueError(f'the key {key} occurs twice')
        found[key] = value
    return found


def _keys(values: Mapping, opened: tuple[str, ...], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted key -> value; a group of rewards is one value."""
    seen: set[str] = set()
    for name, value in values.items():
        key = f'{prefix}{name}'
        inner = isinstance(value, Mapping) and key not in opened
        for found, of in _keys(value, opened, f'{key}.') if inner else ((key, value),):
            if found in seen:
                raise ValueError(f'the key {found} occurs twice')
            seen.add(found)
            yield found, of


def _converted(name: str, key: Key, value: object) -> object:
    """The value in the key's type, as far as a file's notation has none of its own for it."""
    if isinstance(key.default, tuple) and isinstance(value, list):
        value = tuple(value)
    if isinstance(key.default, float) and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # then it is refused as it stands
            value = float(value)
    check_value(name, key, value)
    return value
