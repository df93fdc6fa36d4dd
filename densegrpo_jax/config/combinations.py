"""Parts of a method that do not fit together: one table, whose messages say what would do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from densegrpo_jax.config.guide_keys import SOURCES, has_guide
from densegrpo_jax.config.moving_keys import SILENT_BESIDE, budget_sizes
from densegrpo_jax.core.credit_rules import CREDIT_RULES, CreditRule
from densegrpo_jax.core.kernels import SIGMA, Kernel
from densegrpo_jax.core.losses import CLEAN, LOSSES, Loss
from densegrpo_jax.core.plan_kinds import PLAN_KINDS, PlanKind

# Losses that compare the samples of a prompt with each other, transition by transition.
_COMPARE = ('list', 'list_trajectory', 'pair')


# Losses that add a surrogate for each of several advantages.
_WEIGHTED = [name for name, loss in LOSSES.items() if 'advantage_weights' in loss.options]


class Parts(NamedTuple):
    """The parts that a configuration names."""

    kernel: Kernel
    rule: CreditRule
    loss: Loss
    shape: PlanKind


class Refusal(NamedTuple):
    """A combination that makes no sense: (configuration, parts) -> whether it is there, and what is
    said.
    """

    found: Callable[[Any, Parts], bool]
    message: Callable[[Any, Parts], str]


def _shared(c) -> int:
    """Samples of a prompt that share an initial noise, if they do."""
    return c.rollout.group // c.plan.seeds


def _budget(c) -> tuple[int, int]:
    return budget_sizes(c.rollout.group, c.budget.ratio)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n // 2 + 1) if n % d == 0]


def _served(p: Parts) -> str:
    """What would do instead of a credit rule that reads points which the plan does not have."""
    rules = [repr(name) for name, rule in CREDIT_RULES.items() if rule.reads in p.shape.points]
    kinds = [repr(name) for name, kind in PLAN_KINDS.items() if p.rule.reads in kind.points]
    other = f', or plan.kind={" or ".join(kinds)}' if kinds else ''
    return f'use credit.rule={" or ".join(rules)}{other}'


def _any(names: Iterable[str], key: str = '') -> str:
    return ' or '.join(f'{key}{name!r}' for name in names)


TABLE: tuple[Refusal, ...] = (
    Refusal(
        lambda c, p: not p.kernel.noisy and c.rollout.shared_noise,
        lambda c, p: (
            f'rollout.shared_noise=True starts the samples of a prompt alike, and rollout.kernel='
            f'{c.rollout.kernel!r} adds no noise: all would be equal; use '
            'rollout.shared_noise=False'
        ),
    ),
    Refusal(
        lambda c, p: c.credit.process != 'none' and c.guide.source == 'none',
        lambda c, p: (
            f'credit.process={c.credit.process!r} is credit by a process reward, and there is '
            f"none: use guide.source={_any(SOURCES[1:])}, or credit.process='none'"
        ),
    ),
    Refusal(
        lambda c, p: c.credit.process != 'none' and 'advantage_weights' not in p.loss.options,
        lambda c, p: (
            f'credit.process={c.credit.process!r} makes a second advantage, and loss.kind='
            f'{c.loss.kind!r} takes one: use {_any(_WEIGHTED, "loss.kind=")}, or '
            "credit.process='none'"
        ),
    ),
    Refusal(
        lambda c, p: bool(c.guide.scale and c.guide.rate),
        lambda c, p: (
            f'guide.scale={c.guide.scale:g} and guide.rate={c.guide.rate:g} are two sizes of one '
            'drift: use one of them, and 0 for the other'
        ),
    ),
    Refusal(
        lambda c, p: has_guide(c) and c.guide.source == 'probe' and not c.guide.file,
        lambda c, p: (
            "guide.source='probe' needs a file of densegrpo_jax.process_reward: make one and name "
            'it as guide.file'
        ),
    ),
    Refusal(
        lambda c, p: has_guide(c) and not p.kernel.noisy,
        lambda c, p: (
            f'guide.source={c.guide.source!r} makes noisy steps drift, and rollout.kernel='
            f"{c.rollout.kernel!r} adds no noise: use another kernel, or guide.source='none'"
        ),
    ),
    Refusal(
        lambda c, p: has_guide(c) and c.plan.kind != 'trajectory',
        lambda c, p: (
            f'guide.source={c.guide.source!r} makes trajectories drift, and plan.kind='
            f'{c.plan.kind!r} compares samples that leave one state, which would drift alike and '
            "learn nothing from it: use plan.kind='trajectory', or guide.source='none'"
        ),
    ),
    Refusal(
        lambda c, p: (
            (c.moving.steps, c.moving.stay_rule) == ('window', 'linear')
            and c.moving.stay_least > c.moving.stay
        ),
        lambda c, p: (
            f'moving.stay_least={c.moving.stay_least} iterations at the last place are more than '
            f'moving.stay={c.moving.stay} at the first: use at most {c.moving.stay}'
        ),
    ),
    Refusal(
        lambda c, p: c.moving.steps in SILENT_BESIDE and c.rollout.noisy_end,
        lambda c, p: (
            f'rollout.noisy_end=True adds noise at the end, and moving.steps={c.moving.steps!r} '
            'only in the chosen transitions: use rollout.noisy_end=False'
        ),
    ),
    Refusal(
        lambda c, p: p.loss is LOSSES['pair'] and not c.rollout.shared_noise,
        lambda c, p: (
            f'loss.kind={c.loss.kind!r} compares samples that begin at one initial noise: use '
            'rollout.shared_noise=True'
        ),
    ),
    Refusal(
        lambda c, p: p.loss in [LOSSES[name] for name in _COMPARE] and c.plan.seeds > 1,
        lambda c, p: (
            f'loss.kind={c.loss.kind!r} compares all samples of a prompt, and plan.seeds='
            f'{c.plan.seeds} gives them several initial noises: use plan.seeds=1'
        ),
    ),
    Refusal(
        lambda c, p: c.moving.steps != 'none' and c.plan.kind != 'trajectory',
        lambda c, p: (
            f'moving.steps={c.moving.steps!r} chooses transitions of a trajectory, and plan.kind='
            f"{c.plan.kind!r} has others: use plan.kind='trajectory', or moving.steps='none' with "
            'plan.active'
        ),
    ),
    Refusal(
        lambda c, p: c.budget.by != 'none' and (p.loss.groups or c.plan.kind != 'trajectory'),
        lambda c, p: (
            f'budget.by={c.budget.by!r} makes groups of two sizes, and '
            + (
                f'loss.kind={c.loss.kind!r} compares whole groups of one size'
                if p.loss.groups
                else f"plan.kind={c.plan.kind!r} is not 'trajectory'"
            )
            + ": use budget.by='none'"
        ),
    ),
    Refusal(
        lambda c, p: c.budget.by != 'none' and c.rollout.prompts % (2 * c.optim.updates) > 0,
        lambda c, p: (
            f'budget.by={c.budget.by!r} pairs a prompt of few samples with one of many in every '
            f'update: rollout.prompts={c.rollout.prompts} is not a multiple of '
            f'2 * optim.updates={2 * c.optim.updates}'
        ),
    ),
    Refusal(
        lambda c, p: c.budget.by != 'none' and c.plan.seeds > 1,
        lambda c, p: (
            f'budget.by={c.budget.by!r} makes groups of two sizes, and plan.seeds={c.plan.seeds} '
            "divides groups of one: use plan.seeds=1, or budget.by='none'"
        ),
    ),
    Refusal(
        lambda c, p: c.budget.by != 'none' and min(_budget(c)) < 2,
        lambda c, p: (
            f'budget.ratio={c.budget.ratio:g} with rollout.group={c.rollout.group} makes groups of '
            f'{_budget(c)[0]} and {_budget(c)[1]} samples; expected at least 2: use a ratio nearer '
            'to 1'
        ),
    ),
    Refusal(
        lambda c, p: c.moving.steps != 'none' and p.loss.batch == CLEAN,
        lambda c, p: (
            f'moving.steps={c.moving.steps!r} chooses the trained transitions, and loss.kind='
            f"{c.loss.kind!r} trains on clean samples: use moving.steps='none'"
        ),
    ),
    Refusal(
        lambda c, p: (
            p.rule.reads_predictions
            and (c.credit.completion_every, c.credit.completion_steps) != (1, 0)
        ),
        lambda c, p: (
            f'credit.completion_every={c.credit.completion_every} and credit.completion_steps='
            f'{c.credit.completion_steps} are of completions, and credit.rule={c.credit.rule!r} '
            'scores predictions, which need none: use 1 and 0'
        ),
    ),
    Refusal(
        lambda c, p: (
            p.loss is LOSSES['pair'] and c.loss.pairs == 'neighbours' and bool(c.rollout.group % 2)
        ),
        lambda c, p: (
            f"loss.pairs='neighbours' puts the samples of a group in pairs, and rollout.group="
            f"{c.rollout.group} is odd: use an even number, or loss.pairs='all'"
        ),
    ),
    Refusal(
        lambda c, p: p.rule.reads not in p.shape.points,
        lambda c, p: (
            f'credit.rule={c.credit.rule!r} reads the rewards of points of the kind '
            f'{p.rule.reads!r}, and plan.kind={c.plan.kind!r} has {sorted(p.shape.points)}: '
            f'{_served(p)}'
        ),
    ),
    Refusal(
        lambda c, p: not p.shape.scores_states and not p.rule.per_sample,
        lambda c, p: (
            f'plan.kind={c.plan.kind!r} scores the finished images alone, and credit.rule='
            f"{c.credit.rule!r} reads states on the way: use credit.rule='sparse'"
        ),
    ),
    Refusal(
        lambda c, p: not p.shape.scores_states and p.loss.batch == CLEAN,
        lambda c, p: (
            f'plan.kind={c.plan.kind!r} gives a transition the mean of what follows it, and '
            f"loss.kind={c.loss.kind!r} trains on clean samples: use plan.kind='trajectory'"
        ),
    ),
    Refusal(
        lambda c, p: c.optim.share_states and (not p.shape.one_state or p.loss.trajectories),
        lambda c, p: (
            f'optim.share_states=True: with plan.kind={c.plan.kind!r} and loss.kind='
            f'{c.loss.kind!r} samples do not lie beside each other with one state; use False'
        ),
    ),
    Refusal(
        lambda c, p: p.shape.one_start and not c.rollout.shared_noise,
        lambda c, p: (
            f'plan.kind={c.plan.kind!r} compares samples that begin at one initial noise: use '
            'rollout.shared_noise=True'
        ),
    ),
    Refusal(
        lambda c, p: c.plan.seeds > 1 and not c.rollout.shared_noise,
        lambda c, p: (
            f'plan.seeds={c.plan.seeds} is the number of initial noises that the samples of a '
            'prompt share, and rollout.shared_noise=False gives every sample its own: use '
            'rollout.shared_noise=True, or plan.seeds=1'
        ),
    ),
    Refusal(
        lambda c, p: c.plan.seeds not in _divisors(c.rollout.group),
        lambda c, p: (
            f'plan.seeds={c.plan.seeds} does not divide rollout.group={c.rollout.group} into equal '
            f'parts of at least 2 samples: use one of {_divisors(c.rollout.group)}'
        ),
    ),
    Refusal(
        lambda c, p: bool(c.plan.merge_tau or c.plan.merge) and p.kernel.level != SIGMA,
        lambda c, p: (
            f'rollout.kernel={c.rollout.kernel!r} adds no more noise in a longer step, so merging '
            "steps lowers it: use rollout.kernel='sde', or plan.merge_tau=0 and plan.merge=()"
        ),
    ),
    Refusal(
        lambda c, p: bool(c.plan.merge_tau) and c.noise.calibrate,
        lambda c, p: (
            f'plan.merge_tau={c.plan.merge_tau} merges steps by their noise, which noise.calibrate='
            'True changes at the start of the run: calibrate first, and give the table as '
            'noise.psi_path, or use plan.merge_tau=0'
        ),
    ),
    Refusal(
        lambda c, p: bool(c.plan.merge_tau and c.plan.merge),
        lambda c, p: (
            f'plan.merge_tau={c.plan.merge_tau} and plan.merge={tuple(c.plan.merge)} both say how '
            'long the noisy steps are: use one of them'
        ),
    ),
    Refusal(
        lambda c, p: (
            'completion_every' not in p.shape.options
            and (c.credit.completion_every, c.credit.completion_steps) != (1, 0)
        ),
        lambda c, p: (
            f'credit.completion_every={c.credit.completion_every} and credit.completion_steps='
            f"{c.credit.completion_steps} are of a trajectory's completions: with plan.kind="
            f'{c.plan.kind!r} use 1 and 0, and plan.strides for shorter ones'
        ),
    ),
    Refusal(
        lambda c, p: p.shape.one_start and c.rollout.noisy_end,
        lambda c, p: (
            'rollout.noisy_end=True adds noise at the end of a trajectory, and with plan.kind='
            f'{c.plan.kind!r} samples end by the ODE: use rollout.noisy_end=False'
        ),
    ),
)


def check_combinations(config, parts: Parts) -> None:
    """Raises ValueError for the first combination of the table that the configuration has."""
    for refusal in TABLE:
        if refusal.found(config, parts):
            raise ValueError(refusal.message(config, parts))
