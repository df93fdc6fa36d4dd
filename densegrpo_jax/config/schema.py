"""The one table of configuration keys, and the configuration of its defaults.

`configs/*.py` start from `default_config()` and change what they must; a key that is not in the
table cannot be set. Ranges and choices are checked by `validation`, docs/config.md shows the table.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import ml_collections

from densegrpo_jax.config import (
    d2_keys,
    guard_keys,
    guide_keys,
    method_keys,
    model_keys,
    moving_keys,
    plan_keys,
    run_keys,
    search_keys,
)
from densegrpo_jax.config.key import Key
from densegrpo_jax.config.retired import ELSEWHERE

# In the order of configurations; an entry that is not a Key is a group of keys.
TABLE: Mapping[str, Key | Mapping[str, Key]] = {
    'seed': run_keys.SEED,
    'iterations': run_keys.ITERATIONS,
    'label': run_keys.LABEL,
    'log': run_keys.LOG,
    'model': model_keys.MODEL,
    'lora': model_keys.LORA,
    'full': model_keys.FULL,
    'data': run_keys.DATA,
    'rollout': method_keys.ROLLOUT,
    'plan': plan_keys.PLAN,
    'moving': moving_keys.MOVING,
    'budget': moving_keys.BUDGET,
    'guide': guide_keys.GUIDE,
    'noise': method_keys.NOISE,
    'calibration': method_keys.CALIBRATION,
    'credit': method_keys.CREDIT,
    'loss': method_keys.LOSS,
    'optim': run_keys.OPTIM,
    'ema': run_keys.EMA,
    'reward': run_keys.REWARD,
    'd2': d2_keys.D2,
    'text_cache': run_keys.TEXT_CACHE,
    'reward_workers': run_keys.REWARD_WORKERS,
    'eval': run_keys.EVAL,
    'guard': guard_keys.GUARD,
    'checkpoint': run_keys.CHECKPOINT,
    'search': search_keys.SEARCH,
    'mesh': run_keys.MESH,
}


def _flat() -> Iterator[tuple[str, Key]]:
    for name, entry in TABLE.items():
        if isinstance(entry, Key):
            yield name, entry
        else:
            yield from ((f'{name}.{inner}', key) for inner, key in entry.items())


KEYS: Mapping[str, Key] = dict(_flat())  # by their dotted names
# Rewards by their names, each with options that its own class declares.
OPEN = tuple(name for name, key in KEYS.items() if isinstance(key.default, Mapping))


def default_config() -> ml_collections.ConfigDict:
    """FLUX.1-dev, dense credit, the settings of comparable FLUX recipes. It has every setting that
    a run needs; none is left to the code.

    Returns:
      A locked configuration: a file cannot add keys by mistake, only rewards and their options.
    """
    c = ml_collections.ConfigDict()
    for name, entry in TABLE.items():
        if isinstance(entry, Key):
            c[name] = _value(entry)
        else:
            values = {inner: _value(key) for inner, key in entry.items()}
            c[name] = ml_collections.ConfigDict(values, type_safe=True)
    c.lock()
    for name in OPEN:
        group = c
        for part in name.split('.'):
            group = group[part]
        group.unlock()
    return c


def close_key(name: str, group: str = '') -> str | None:
    """The dotted name of the key or group that `name` in `group` may mean; None if none is similar.
    Keys of the group come first, then those of other groups.
    """
    name = ELSEWHERE.get(name, name)
    beside = {
        key.rpartition('.')[2]: key for key in (*KEYS, *TABLE) if key.rpartition('.')[0] == group
    }
    # of keys with one name the first
    anywhere = {key.rpartition('.')[2]: key for key in reversed([*KEYS])}
    for known, cutoff in ((beside, 0.6), (anywhere, 0.8)):
        if close := difflib.get_close_matches(name, known, 1, cutoff):
            return known[close[0]]
    return None


def _value(key: Key):
    if isinstance(key.default, Mapping):
        return ml_collections.ConfigDict(key.default, type_safe=False)
    return key.default
