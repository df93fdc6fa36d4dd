"""Keys that are set and that no chosen part of the method reads: one check, made from the options
that the parts' registries declare.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from densegrpo_jax.config.d2_keys import D2_OF_FILE
from densegrpo_jax.config.guard_keys import BRAKE_HEEDED, GUARD_HEEDED, PANEL_HEEDED
from densegrpo_jax.config.guide_keys import GUIDE_HEEDED
from densegrpo_jax.config.method import (
    CREDIT_KEYS,
    credit_rule_of,
    kernel_of,
    loss_of,
    plan_kind_of,
)
from densegrpo_jax.config.method_keys import CALIBRATE_HEEDED, PROCESS_HEEDED, RULE_HEEDED
from densegrpo_jax.config.model_keys import FULL_HEEDED
from densegrpo_jax.config.moving_keys import BUDGET_HEEDED, HEEDED, STAY_HEEDED
from densegrpo_jax.config.reads import REFUSE, WARN
from densegrpo_jax.config.schema import KEYS
from densegrpo_jax.config.search_keys import SEARCH_HEEDED
from densegrpo_jax.core.credit_rules import CREDIT_RULES, CreditRule
from densegrpo_jax.core.dense_reward import needed_states
from densegrpo_jax.core.kernels import KERNELS, Kernel
from densegrpo_jax.core.losses import CLEAN, LOSSES, TRANSITIONS, Loss
from densegrpo_jax.core.masks import StepMasks
from densegrpo_jax.core.options import keyword_options
from densegrpo_jax.core.plan_kinds import PLAN_KINDS, PlanKind
from densegrpo_jax.core.rollout_plan import STATE

TRAINING, SEARCH, CALIBRATION = 'training', 'search', 'calibration'

# Keys that all losses on a kind of batch have in common.
_OF_BATCH = {
    TRANSITIONS: {'loss.noise_power', 'loss.step_decay', 'loss.kl_form'},
    CLEAN: {'loss.draws'},
}
_OF_NOISE = {
    *(f'rollout.{name}' for name in ('noise', 'level', 'first', 'last', 'noisy_end', 'train_end')),
    'noise.psi_path',
    'noise.interpolate',
}
_COMPLETIONS = {'credit.completion_every', 'credit.completion_steps'}
_FILE = 'FILE'  # any, in what is said

# (key of a part, its value, the keys that it reads, those that every shipped part reads)
Part = tuple[str, Any, Collection[str], Mapping[Any, Collection[str]]]


class Unread(NamedTuple):
    """A key with a value other than its default, and the part that does not read it."""

    key: str
    value: object
    part: str  # the key of the part
    chosen: object  # its value
    readers: tuple[object, ...]  # other values with which the key is read

    def __str__(self) -> str:
        ways = ' or '.join('a file' if way is _FILE else repr(way) for way in self.readers)
        reads = 'reads' if len(self.readers) == 1 else 'read'
        choose = f': choose {ways}, which {reads} it, or' if ways else ':'
        default = KEYS[self.key].default
        return (
            f'{self.key}={self.value!r} is set, and {self.part}={self.chosen!r} does not read it'
            f'{choose} leave {self.key} at its default {default!r}'
        )


def unread(config) -> list[Unread]:
    """The keys that differ from their default and that a chosen part of the method should read and
    does not, in the order of the table of keys.

    Raises:
      ValueError: a part does not exist.
    """
    return _unread(config, (*_parts(config), *_guarding(config)))


def _unread(config, parts: Iterable[Part]) -> list[Unread]:
    found = {}
    for part, chosen, own, reads in parts:
        alternatives = {**reads, chosen: own}
        for key in set().union(*alternatives.values()) - {*own}:
            if not _is_default(config, key):
                readers = (name for name, keys in alternatives.items() if key in keys)
                found[key] = Unread(key, _value(config, key), part, chosen, tuple(readers))
    return [found[key] for key in KEYS if key in found]


def check_unread(config, given: Collection[str], *, of: str = TRAINING, then: str = REFUSE) -> None:
    """Raises ValueError if one of the keys that a user has given is not read. Those that a shared
    recipe sets may be, in a run that replaces one of its parts, or for another command.

    Args:
      of: what the command does: TRAINING, SEARCH or CALIBRATION.
      then: REFUSE, or WARN: says so instead.
    """
    parts = {
        TRAINING: lambda: (*_parts(config), *_guarding(config), *_given(config), *_trained(config)),
        SEARCH: lambda: (*_searching(config), *_given(config)),
        CALIBRATION: lambda: _calibrating(config),
    }[of]()
    for found in _unread(config, parts):
        if any(key == found.key or key.startswith(f'{found.key}.') for key in given):
            if then == REFUSE:
                raise ValueError(f'{found}, or give --unread={WARN}')
            print(f'note: {found}', file=sys.stderr)


def reset_unread(config) -> None:
    """Sets the keys of the method's parts that are not read to their defaults. Those of the guard
    wait for it to be switched on.
    """
    idle = _unread(config, _parts(config))
    config.update_from_flattened_dict({found.key: KEYS[found.key].default for found in idle})


def _parts(c) -> Iterable[Part]:
    """Those of the method."""
    shipped_rule = c.credit.rule in CREDIT_RULES
    losses = {name: _of_loss(loss) for name, loss in LOSSES.items()}
    yield 'loss.kind', c.loss.kind, _of_loss(loss_of(c)), losses
    rules = {name: _of_rule(rule) for name, rule in CREDIT_RULES.items()}
    yield 'credit.rule', c.credit.rule, _of_rule(credit_rule_of(c), shipped_rule), rules
    kinds = {name: _of_plan(kind) for name, kind in PLAN_KINDS.items()}
    yield 'plan.kind', c.plan.kind, _of_plan(plan_kind_of(c)), kinds
    kernels = {name: _of_kernel(kernel) for name, kernel in KERNELS.items()}
    yield 'rollout.kernel', c.rollout.kernel, _of_kernel(kernel_of(c)), kernels
    for part, chosen, heeded in (
        ('moving.steps', c.moving.steps, HEEDED),
        ('moving.stay_rule', c.moving.stay_rule, STAY_HEEDED),
        ('budget.by', c.budget.by, BUDGET_HEEDED),
        ('guide.source', c.guide.source, GUIDE_HEEDED),
        ('credit.process', c.credit.process, PROCESS_HEEDED),
    ):
        if chosen in heeded:
            yield part, chosen, heeded[chosen], heeded


def _guarding(c) -> Iterable[Part]:
    yield 'guard.on', c.guard.on, GUARD_HEEDED[c.guard.on], GUARD_HEEDED
    if c.guard.on and c.guard.action in BRAKE_HEEDED:
        yield 'guard.action', c.guard.action, BRAKE_HEEDED[c.guard.action], BRAKE_HEEDED


def _given(c) -> Iterable[Part]:
    """What a recipe may set for other commands, or for when the part is chosen."""
    yield 'full', c.full, FULL_HEEDED[c.full], FULL_HEEDED
    yield 'd2.file', c.d2.file, D2_OF_FILE if c.d2.file else (), {_FILE: D2_OF_FILE}
    table = 'rollout.noise', 'rollout.level'
    yield 'noise.psi_path', c.noise.psi_path, () if c.noise.psi_path else table, {'': table}


def _trained(c) -> Iterable[Part]:
    """As `_given`, of a training alone."""
    yield 'guard.on', c.guard.on, PANEL_HEEDED[c.guard.on], PANEL_HEEDED
    calibrate = c.noise.calibrate
    yield 'noise.calibrate', calibrate, CALIBRATE_HEEDED[calibrate], CALIBRATE_HEEDED
    if calibrate:
        yield from _calibrating(c)
    panel = c.eval.panel_prompts if c.guard.on else ''
    if 'scenes' not in (c.data.train, c.data.eval, panel):
        yield 'data.train', c.data.train, (), {'scenes': ('data.scenes',)}
    if not c.loss.beta and not c.loss.measure_kl and 'loss.kl_form' in _of_loss(loss_of(c)):
        yield 'loss.measure_kl', False, (), {True: ('loss.kl_form',)}


def _calibrating(c) -> Iterable[Part]:
    if (rule := c.calibration.rule) in RULE_HEEDED:
        yield 'calibration.rule', rule, RULE_HEEDED[rule], RULE_HEEDED


def _searching(c) -> Iterable[Part]:
    if c.search.method in SEARCH_HEEDED:
        yield 'search.method', c.search.method, SEARCH_HEEDED[c.search.method], SEARCH_HEEDED


def _of_loss(loss: Loss) -> set[str]:
    options = {*loss.options}.union(*map(keyword_options, loss.follows.values()))
    keys = {f'loss.{name}' for name in options} & KEYS.keys()
    # A loss of one's own may read the log-probability that the rollouts stored.
    own = loss.batch == TRANSITIONS and loss not in LOSSES.values()
    stored = {'rollout.log_prob'} if own or 'log_prob' in options else set()
    return keys | _OF_BATCH[loss.batch] | stored


def _of_rule(rule: CreditRule, shipped: bool = True) -> set[str]:
    renamed = CREDIT_KEYS if shipped else {}
    keys = {f'credit.{renamed.get(name, name)}' for name in rule.options} & KEYS.keys()
    signed = {'credit.coca_signed'} if rule.shares else set()
    return keys | signed | (_COMPLETIONS if _completes(rule) else set())


def _completes(rule: CreditRule) -> bool:
    """Whether a rule reads states before the last."""
    if rule.reads != STATE:
        return False
    everywhere = np.ones(4, bool)
    try:
        return needed_states(rule, StepMasks(everywhere, everywhere)) != (len(everywhere),)
    except Exception:  # noqa: BLE001 (somebody's code may raise anything; it is tried later)
        return True


def _of_plan(kind: PlanKind) -> set[str]:
    names = (f'{group}.{name}' for group in ('plan', 'credit') for name in kind.options)
    return {*names} & KEYS.keys()


def _of_kernel(kernel: Kernel) -> set[str]:
    return _OF_NOISE if kernel.noisy else set()


def _value(config, key: str) -> object:
    value = config
    for part in key.split('.'):
        value = value[part]
    if hasattr(value, 'to_dict'):
        return value.to_dict()
    return tuple(value) if isinstance(value, list) else value


def _is_default(config, key: str) -> bool:
    return _value(config, key) == KEYS[key].default
