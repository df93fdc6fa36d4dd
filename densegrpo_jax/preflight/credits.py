"""The credits that a preflight compares, by the rules that training uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from densegrpo_jax.config.method import credit_options, credit_rule_of, loss_of
from densegrpo_jax.config.plan_keys import AS_TRAJECTORY
from densegrpo_jax.core.credit_rules import CREDIT_RULES, CreditRule
from densegrpo_jax.core.dense_reward import dense_reward
from densegrpo_jax.core.losses import CLEAN
from densegrpo_jax.core.rollout_plan import STATE
from densegrpo_jax.preflight.signal import Rewards


class Credit(NamedTuple):
    """A credit rule with its options, on completions by so many steps.

    Attributes:
      rule: as `credit.rule`; a CreditRule of the user's own.
      completion_steps: 0: all.
      keys: of the configuration, beside these two.
      options: of the rule.
      signed: the rule shares out the terminal advantage (`credit.coca_signed`).
    """

    rule: str | CreditRule
    completion_steps: int = 0
    keys: Mapping[str, object] = {}
    options: Mapping[str, object] = {}
    signed: bool = False

    def of(self, rewards: Rewards) -> np.ndarray:
        """A_k [T, P, G] before normalisation."""
        shape = (rewards.steps + 1, -1)
        terminal = rewards.terminal[None]
        if self.signed:
            centred = terminal - np.nanmean(terminal, axis=-1, keepdims=True)
            values = np.broadcast_to(centred, (rewards.steps + 1, *centred.shape[1:]))
        else:
            values = np.concatenate([rewards.completions[self.completion_steps], terminal])
        found = dense_reward(
            values.reshape(shape),
            self.rule,
            similarity=rewards.similarity.reshape(shape),
            **self.options,
        )
        return np.asarray(found, np.float64).reshape(rewards.steps, *terminal.shape[1:])

    @property
    def overrides(self) -> dict[str, object]:
        """The keys that choose it, on trajectories."""
        chosen = {'credit.rule': self.rule, 'credit.completion_steps': self.completion_steps}
        return {**AS_TRAJECTORY, 'credit.completion_every': 1, **chosen, **self.keys}


def candidates(steps: Iterable[int]) -> dict[str, Credit]:
    """Those of every preflight, by name; `steps`: of the completions measured."""
    dense = {f'dense {n}' if n else 'dense': Credit('dense', n) for n in steps}
    signed, whole = {'credit.coca_signed': True}, {'window': 1, 'alpha': 0.0}
    return {
        'sparse': Credit('sparse'),
        **dense,
        'gae 0.5': Credit('gae', keys={'credit.gae_lambda': 0.5}, options={'gae_lambda': 0.5}),
        'coca': Credit('coca_to_go', keys=signed, options=whole, signed=True),
    }


# Overrides that turn a recipe into branches from every trained step, completed in full.
BRANCHES = {
    **AS_TRAJECTORY,
    'plan.kind': 'branch',
    'credit.rule': 'branch',
    'credit.completion_steps': 0,
    'credit.completion_every': 1,
    'rollout.shared_noise': True,
}


def not_measured(config) -> list[str]:
    """In which ways the configuration trains otherwise than the measured credit says."""
    c, found = config.credit, []
    weighted = [n for n, options in config.reward.items() if options.get('weight', 1.0)]
    if c.combine != 'sum' and len(weighted) > 1:
        found.append(
            f'credit.combine={c.combine!r}: training normalises each of {len(weighted)} scores; '
            'measured is the weighted sum of raw scores'
        )
    if c.completion_every > 1 and not credit_rule_of(config).per_sample:
        found.append(
            f'credit.completion_every={c.completion_every}: training interpolates rewards between '
            'completed states; the signal measured is that of completions at every state, the cost '
            'that of the recipe'
        )
    if config.budget.by != 'none':
        found.append(
            f'budget.by={config.budget.by!r}: training has groups of two sizes; measured are '
            'groups of one'
        )
    if loss_of(config).batch == CLEAN:
        found.append(
            f'loss.kind={config.loss.kind!r}: training learns from finished samples, not from '
            "transitions; of the credits' signals none is that of its update"
        )
    return found


def own_credit(config) -> tuple[str, Credit]:
    """The name and the credit that the configuration trains with, as far as it is measured: see
    `not_measured`.

    Raises:
      ValueError: another plan than trajectories, steps that move, several seeds, a rule that needs
        more than completions and similarities, or rollouts that drift.
    """
    rule, c = credit_rule_of(config), config.credit
    for key, value, fits in (
        ('plan.kind', config.plan.kind, config.plan.kind == 'trajectory'),
        ('credit.rule', c.rule, rule.reads == STATE and not rule.reads_predictions),
        ('moving.steps', config.moving.steps, config.moving.steps == 'none'),
        ('plan.seeds', config.plan.seeds, config.plan.seeds == 1),
        ('guide.source', config.guide.source, config.guide.source == 'none'),
    ):
        if not fits:
            raise ValueError(
                f'{key}={value!r}: preflight measures credit along whole trajectories of the model '
                'alone; measure the reward with the recipe without a method, and '
                '--config.credit.rule=dense'
            )
    options, signed = credit_options(config), bool(c.coca_signed and rule.shares)
    mine = Credit(
        c.rule if c.rule in CREDIT_RULES else rule, c.completion_steps, {}, options, signed
    )
    same = lambda other: (
        (other.rule, other.signed) == (mine.rule, mine.signed)
        and (other.completion_steps == mine.completion_steps or rule.per_sample or rule.shares)
        and dict(other.options) == options
    )
    for name, known in candidates({0, c.completion_steps}).items():
        if same(known):
            return name, known
    return f'{c.rule} own', mine
