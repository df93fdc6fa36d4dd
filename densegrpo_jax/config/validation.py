"""Checks of a configuration that need neither weights nor devices: each key by the table
(`schema`), then keys against each other.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

from densegrpo_jax.config.key import Key
from densegrpo_jax.config.method import check_method, kernel_of
from densegrpo_jax.config.schema import TABLE, close_key
from densegrpo_jax.runtime.trackers import names_of


def validate(config) -> None:
    """Checks every key, and keys against each other.

    Raises:
      ValueError: the message names the key, its value and what is expected.
    """
    check_names(config)
    for name, entry in TABLE.items():
        if isinstance(entry, Key):
            check_value(name, entry, config[name])
        else:
            for inner, key in entry.items():
                check_value(f'{name}.{inner}', key, config[name][inner])
    _check_method(config)
    _check_noise(config)
    _check_training(config)
    _check_kept(config)
    names_of(config.log.report_to)


def check_value(name: str, key: Key, value: object) -> None:
    """Raises ValueError if the value does not have the key's type or is out of its range."""
    if key.accepts(value):
        return
    hint = '.'
    if key.choices is not None and isinstance(value, str):
        if close := difflib.get_close_matches(value, key.choices, 1):
            hint = f'; did you mean {close[0]!r}?'
    raise ValueError(f'{name}={_shown(value)}: expected {key.expected}{hint} {name}: {key.help}')


def check_names(config) -> None:
    """Raises ValueError unless the configuration has all keys of the table and no other."""
    for name, entry in TABLE.items():
        inner = {} if isinstance(entry, Key) else entry
        absent = [name] if name not in config else []
        absent += [f'{name}.{key}' for key in inner if not absent and key not in config[name]]
        if absent:
            raise ValueError(
                f'the configuration has no key {absent[0]}; start it from '
                'densegrpo_jax.config.schema.default_config()'
            )
        for key in config[name] if inner else ():
            _check_known(key, inner, name)
    for name in config:
        _check_known(name, TABLE, '')


def _check_known(name: str, known: Collection[str], group: str) -> None:
    if name not in known:
        close = close_key(name, group)
        hint = f'; did you mean {close}?' if close else ''
        raise ValueError(f'there is no key {f"{group}." if group else ""}{name}{hint}')


def _check_method(config) -> None:
    r, credit = config.rollout, config.credit
    _divides('rollout.prompts', r.prompts, 'rollout.prompts_per_batch', r.prompts_per_batch)
    _divides('rollout.prompts', r.prompts, 'optim.updates', config.optim.updates)
    if credit.completion_steps > r.steps:
        raise ValueError(
            f'credit.completion_steps={credit.completion_steps}: expected 0 (all) to '
            f'rollout.steps={r.steps}'
        )
    check_method(config)


def _check_noise(config) -> None:
    noise, c = config.noise, config.calibration
    if noise.psi_path and noise.calibrate:
        raise ValueError(
            f'noise.psi_path={noise.psi_path!r} and noise.calibrate=True: use the table of that '
            'file, or calibrate; not both'
        )
    if noise.interpolate and not noise.psi_path:
        raise ValueError(
            'noise.interpolate=True is for the table of a file, but noise.psi_path is empty'
        )
    if not c.low < c.high:
        raise ValueError(
            f'calibration.low={c.low} and calibration.high={c.high}: expected 0 < low < high'
        )
    highest = kernel_of(config).max_level
    if c.low >= highest:
        raise ValueError(
            f'calibration.low={c.low}: noise levels of rollout.kernel={config.rollout.kernel!r} '
            f'are at most {highest:g}'
        )


def _check_training(config) -> None:
    quantize, warmup = config.model.quantize, config.optim.warmup
    if config.full and config.lora.init_from:
        raise ValueError(
            'lora.init_from is set and full=True: merge the adapters into the base first '
            '(densegrpo_jax.export, merged)'
        )
    if config.full and quantize != 'none':
        raise ValueError(
            f'model.quantize={quantize!r} freezes the base, and full=True trains it: use one of '
            'them'
        )
    if warmup >= config.iterations:
        raise ValueError(
            f'optim.warmup={warmup}: expected 0 or more, and fewer than '
            f'iterations={config.iterations}'
        )
    if '://' in config.text_cache:
        raise ValueError(
            f'text_cache={config.text_cache!r}: expected a folder of this machine, such as one in '
            'a mounted bucket'
        )


def _check_kept(config) -> None:
    """What evaluations and checkpoints keep."""
    if config.eval.panel_prompts and not config.eval.panel:
        raise ValueError(
            f'eval.panel_prompts={config.eval.panel_prompts!r} has no reward to score it: name '
            'rewards in eval.panel'
        )
    if beyond := [i for i in config.checkpoint.pin if i > config.iterations]:
        raise ValueError(
            f'checkpoint.pin={tuple(config.checkpoint.pin)}: there is no iteration {beyond[0]}; '
            f'expected iterations up to iterations={config.iterations}'
        )


def _divides(key: str, whole: int, part_key: str, part: int) -> None:
    if whole % part:
        divisors = [d for d in range(1, whole + 1) if whole % d == 0]
        raise ValueError(
            f'{part_key}={part} does not divide {key}={whole}; it may be one of {divisors}'
        )


def _shown(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f'{text[:limit]}...'
