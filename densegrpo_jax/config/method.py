"""The parts of a method that a configuration names: plan, credit rule, kernel, noise table, loss.

A name is a key of the part's table in core, or 'package.module:object' of the user's own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from densegrpo_jax.core.advantages import check_centre
from densegrpo_jax.core.credit_rules import CREDIT_RULES, CreditRule
from densegrpo_jax.core.kernels import KERNELS, Kernel
from densegrpo_jax.core.losses import LOSSES, Loss
from densegrpo_jax.core.noise_tables import NOISE_TABLES, NoiseTable
from densegrpo_jax.core.options import keyword_options
from densegrpo_jax.core.plan_kinds import PLAN_KINDS, PlanKind
from densegrpo_jax.core.roles import REF, Follow
from densegrpo_jax.core.transitions import OUTCOME, PROCESS
from densegrpo_jax.rewards.build import own_kinds
from densegrpo_jax.runtime.named import code_digest, imported

Part = TypeVar('Part')

# Options of the shipped credit rules whose key in the group `credit` has another name.
CREDIT_KEYS = {'window': 'coca_window', 'alpha': 'coca_alpha'}


class Parts(NamedTuple):
    """The parts that a configuration names."""

    kernel: Kernel
    table: NoiseTable
    rule: CreditRule
    loss: Loss
    shape: PlanKind


def credit_rule_of(config) -> CreditRule:
    """The rule that `credit.rule` names. Like all parts it raises ValueError if there is no such
    name or object, or if the object is of another kind.
    """
    return _named('credit.rule', config.credit.rule, CREDIT_RULES, CreditRule)


def credit_options(config) -> dict[str, Any]:
    """The rule's options for which `credit` has keys, as arguments of `dense_reward`.

    Raises:
      ValueError: `credit` has no key for an option without a default.
    """
    c = config.credit
    shipped = c.rule in CREDIT_RULES
    renamed = {name: c[key] for name, key in CREDIT_KEYS.items()} if shipped else {}
    given = {**c, **renamed}
    return _options(f'credit.rule={c.rule!r}', credit_rule_of(config).options, given)


def plan_kind_of(config) -> PlanKind:
    """The shape of rollouts that `plan.kind` names."""
    return _named('plan.kind', config.plan.kind, PLAN_KINDS, PlanKind)


def plan_options(config) -> dict[str, Any]:
    """The shape's options, as arguments of `PlanKind.make`. Raises ValueError as
    `credit_options`.
    """
    given = {**config.credit, **config.plan}
    return _options(f'plan.kind={config.plan.kind!r}', plan_kind_of(config).options, given)


def kernel_of(config) -> Kernel:
    """The kernel that `rollout.kernel` names."""
    return kernel_named(config.rollout.kernel)


def kernel_named(name: str, key: str = 'rollout.kernel') -> Kernel:
    """The kernel named `name`, the value of `key`."""
    return _named(key, name, KERNELS, Kernel)


def search_kernel_of(config) -> Kernel:
    """The kernel that `search.kernel` names; if that is empty, the kernel of the rollouts."""
    name = config.search.kernel
    return kernel_named(name, 'search.kernel') if name else kernel_of(config)


def check_search_kernel(config) -> None:
    """Raises ValueError if the kernel of a search would read the noise levels of the rollouts as
    something else.
    """
    kernel, ours, table = search_kernel_of(config), kernel_of(config), noise_table_of(config)
    r, key = config.rollout, f'search.kernel={config.search.kernel!r}'
    if not config.search.kernel or not kernel.noisy:
        return
    means = ours.level if ours.noisy else table.gives  # without noise they were of no kernel yet
    if means not in (None, kernel.level):
        raise ValueError(
            f'{key} takes noise levels of the kind {kernel.level!r}, and rollout.noise={r.noise!r} '
            f'with rollout.kernel={r.kernel!r} gives {means!r}: leave search.kernel empty, or set '
            'rollout.kernel to that kernel, with a rollout.noise and rollout.level for it'
        )
    if table.in_levels and r.level > kernel.max_level:
        raise ValueError(
            f'{key} with rollout.noise={r.noise!r}: expected 0 < rollout.level <= '
            f'{kernel.max_level:g}, not {r.level}'
        )


def noise_table_of(config) -> NoiseTable:
    """The table that `rollout.noise` names."""
    return _named('rollout.noise', config.rollout.noise, NOISE_TABLES, NoiseTable)


def loss_of(config) -> Loss:
    """The loss that `loss.kind` names."""
    return _named('loss.kind', config.loss.kind, LOSSES, Loss)


def loss_options(config) -> dict[str, Any]:
    """The loss's options, as arguments of `Loss.fn`. Raises ValueError as `credit_options`."""
    credit = config.credit
    given = {
        **config.loss,
        'log_prob': config.rollout.log_prob,
        'kernel': kernel_of(config),
        'advantage_weights': {OUTCOME: credit.outcome_weight, PROCESS: credit.process_weight},
    }
    return _options(f'loss.kind={config.loss.kind!r}', loss_of(config).options, given)


def follows_of(config) -> dict[str, Follow]:
    """The loss's own roles and how each follows the policy, with the options that `loss` sets.
    Raises ValueError as `credit_options`.
    """
    where = f'loss.kind={config.loss.kind!r}'
    return {
        role: functools.partial(rule, **_options(where, keyword_options(rule), config.loss))
        for role, rule in loss_of(config).follows.items()
    }


def roles_read(config) -> tuple[str, ...]:
    """The roles other than the policy that an update reads: the loss's, and the reference if its KL
    is part of the update.
    """
    kl = [REF] if config.loss.beta or config.loss.measure_kl else []
    return tuple(dict.fromkeys([*loss_of(config).needs, *kl]))


def own_parts(config) -> dict[str, str]:
    """Key -> what it names, for the method's parts of a user's own; imports none."""
    named = {
        'credit.rule': config.credit.rule,
        'plan.kind': config.plan.kind,
        'rollout.kernel': config.rollout.kernel,
        'rollout.noise': config.rollout.noise,
        'loss.kind': config.loss.kind,
        'search.kernel': config.search.kernel,
    }
    return {key: name for key, name in named.items() if ':' in str(name)}


def own_code(config) -> dict[str, str]:
    """Key -> digest of the code that it names (`code_digest`), for the parts and the rewards of a
    user's own, those of the panel too.
    """
    named = own_parts(config)
    for group, rewards in (('reward', config.reward), ('eval.panel', config.eval.panel)):
        named |= {f'{group}.{name}': kind for name, kind in own_kinds(rewards).items()}
    return {key: code_digest(name) for key, name in named.items()}


def parts_of(config) -> Parts:
    """The parts that a configuration names, after a check of their options.

    Raises:
      ValueError: a part does not exist, or has an option that no key sets; or two keys of one
        option do not go together.
    """
    kernel, table = kernel_of(config), noise_table_of(config)
    rule, loss = credit_rule_of(config), loss_of(config)
    credit_options(config)
    loss_options(config)
    follows_of(config)
    plan_options(config)
    search_kernel_of(config)
    try:
        check_centre(config.credit.centre, config.credit.std)
    except ValueError as error:
        raise ValueError(f'credit.centre and credit.std: {error}') from None
    return Parts(kernel, table, rule, loss, plan_kind_of(config))


def _options(what: str, names: Mapping[str, bool], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options `names` (-> whether they have a default) that are given."""
    if absent := [name for name, default in names.items() if not default and name not in given]:
        raise ValueError(
            f'{what} has the option {absent[0]!r}, which no key of the configuration sets: give it '
            'a default'
        )
    return {name: given[name] for name in names if name in given}


def _named(key: str, name: str, table: Mapping[str, Part], kind: type[Part]) -> Part:
    """The object that `key` = `name` stands for, in `table` or on the import path."""
    if ':' not in name:
        if name not in table:
            raise ValueError(
                f'{key}={name!r}: expected one of {sorted(table)}, or one of your own as '
                "'package.module:object'"
            )
        return table[name]
    found = imported(name, f'{key}={name!r}')
    if not isinstance(found, kind):
        raise ValueError(
            f'{key}={name!r} is of the kind {type(found).__name__}; expected a {kind.__name__} '
            f'({kind.__module__})'
        )
    return found
