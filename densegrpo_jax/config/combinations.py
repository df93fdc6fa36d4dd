"""Keys that do not go together, with what would do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from densegrpo_jax.config.guide_keys import SOURCES, has_guide
from densegrpo_jax.config.method import Parts, parts_of
from densegrpo_jax.config.moving_keys import SILENT_BESIDE, budget_sizes
from densegrpo_jax.core.credit_rules import CREDIT_RULES
from densegrpo_jax.core.kernels import KERNELS, SIGMA
from densegrpo_jax.core.losses import CLEAN, LOSSES
from densegrpo_jax.core.noise_tables import NOISE_TABLES
from densegrpo_jax.core.plan_kinds import PLAN_KINDS

# Losses that compare the samples of a prompt with each other, transition by transition.
_COMPARE = ('list', 'list_trajectory', 'pair')

# Losses that add a surrogate for each of several advantages.
_WEIGHTED = [name for name, loss in LOSSES.items() if 'advantage_weights' in loss.options]


def check_combinations(config) -> None:
    """Raises ValueError for the first of the `problems`, and as `parts_of`."""
    for message in problems(config):
        raise ValueError(message)


def problems(c) -> Iterator[str]:
    """Of each combination of keys that makes no sense and is there, what is said; the values are
    each in their range.
    """
    for key in ('rollout.prompts_per_batch', 'optim.updates'):
        group, name = key.split('.')
        whole, part = c.rollout.prompts, c[group][name]
        if whole % part:
            yield (
                f'{key}={part} does not divide rollout.prompts={whole}; it may be one of '
                f'{_divisors(whole)}'
            )
    if c.credit.completion_steps > c.rollout.steps:
        yield (
            f'credit.completion_steps={c.credit.completion_steps}: expected 0 (all) to '
            f'rollout.steps={c.rollout.steps}'
        )
    p = parts_of(c)
    if c.credit.completion_every > 1 and not p.rule.interpolates:
        yield (
            f'credit.completion_every={c.credit.completion_every} interpolates rewards, and '
            f'credit.rule={c.credit.rule!r} compares the gains of neighbouring transitions, '
            'which would be equal: use credit.completion_every=1'
        )
    if not p.kernel.noisy and p.loss.batch != CLEAN:
        noisy = [name for name, k in KERNELS.items() if k.noisy]
        yield (
            f'rollout.kernel={c.rollout.kernel!r} adds no noise, so no transition can be trained; '
            f'use one of {noisy}'
        )
    if not p.kernel.noisy and c.noise.calibrate:
        yield (
            f'noise.calibrate=True, and rollout.kernel={c.rollout.kernel!r} adds no noise: use '
            'noise.calibrate=False'
        )
    if c.loss.kl_form == 'flow_grpo' and p.kernel.level != SIGMA:
        yield (
            "loss.kl_form='flow_grpo' divides by the noise level of the sde kernel; with "
            f"rollout.kernel={c.rollout.kernel!r} use 'gaussian'"
        )
    if p.loss in (LOSSES['list'], LOSSES['list_trajectory']) and c.rollout.log_prob != 'gaussian':
        yield (
            f'loss.kind={c.loss.kind!r} takes a softmax over log-densities, and '
            f"rollout.log_prob={c.rollout.log_prob!r} are none: use 'gaussian'"
        )
    if p.table.gives not in (None, p.kernel.level):
        fitting = [name for name, t in NOISE_TABLES.items() if t.gives in (None, p.kernel.level)]
        yield (
            f'rollout.noise={c.rollout.noise!r} gives noise levels of the kind {p.table.gives!r}, '
            f'and rollout.kernel={c.rollout.kernel!r} takes {p.kernel.level!r}: use one of '
            f'{fitting}, or another kernel'
        )
    if p.table.in_levels and c.rollout.level > p.kernel.max_level:
        yield (
            f'rollout.level={c.rollout.level}: with rollout.kernel={c.rollout.kernel!r} and '
            f'rollout.noise={c.rollout.noise!r} expected 0 < rollout.level <= '
            f'{p.kernel.max_level:g}'
        )
    if p.loss.batch == CLEAN and not p.rule.per_sample:
        yield (
            f'loss.kind={c.loss.kind!r} trains on clean samples, which have one reward each, '
            f'and credit.rule={c.credit.rule!r} gives every transition its own: use '
            "credit.rule='sparse'"
        )
    if not p.kernel.noisy and c.rollout.shared_noise:
        yield (
            'rollout.shared_noise=True starts the samples of a prompt alike, and rollout.kernel='
            f'{c.rollout.kernel!r} adds no noise: all would be equal; use '
            'rollout.shared_noise=False'
        )
    if c.credit.process != 'none' and c.guide.source == 'none':
        yield (
            f'credit.process={c.credit.process!r} is credit by a process reward, and there is '
            f"none: use guide.source={_any(SOURCES[1:])}, or credit.process='none'"
        )
    if c.credit.process != 'none' and 'advantage_weights' not in p.loss.options:
        yield (
            f'credit.process={c.credit.process!r} makes a second advantage, and loss.kind='
            f'{c.loss.kind!r} takes one: use {_any(_WEIGHTED, "loss.kind=")}, or '
            "credit.process='none'"
        )
    if c.guide.scale and c.guide.rate:
        yield (
            f'guide.scale={c.guide.scale:g} and guide.rate={c.guide.rate:g} are two sizes of one '
            'drift: use one of them, and 0 for the other'
        )
    if has_guide(c) and c.guide.source == 'probe' and not c.guide.file:
        yield (
            "guide.source='probe' needs a file of densegrpo_jax.process_reward: make one and name "
            'it as guide.file'
        )
    if has_guide(c) and not p.kernel.noisy:
        yield (
            f'guide.source={c.guide.source!r} makes noisy steps drift, and rollout.kernel='
            f"{c.rollout.kernel!r} adds no noise: use another kernel, or guide.source='none'"
        )
    if has_guide(c) and c.plan.kind != 'trajectory':
        yield (
            f'guide.source={c.guide.source!r} makes trajectories drift, and plan.kind='
            f'{c.plan.kind!r} compares samples that leave one state, which would drift alike and '
            "learn nothing from it: use plan.kind='trajectory', or guide.source='none'"
        )
    linear = (c.moving.steps, c.moving.stay_rule) == ('window', 'linear')
    if linear and c.moving.stay_least > c.moving.stay:
        yield (
            f'moving.stay_least={c.moving.stay_least} iterations at the last place are more than '
            f'moving.stay={c.moving.stay} at the first: use at most {c.moving.stay}'
        )
    if c.moving.steps in SILENT_BESIDE and c.rollout.noisy_end:
        yield (
            f'rollout.noisy_end=True adds noise at the end, and moving.steps={c.moving.steps!r} '
            'only in the chosen transitions: use rollout.noisy_end=False'
        )
    if p.loss is LOSSES['pair'] and not c.rollout.shared_noise:
        yield (
            f'loss.kind={c.loss.kind!r} compares samples that begin at one initial noise: use '
            'rollout.shared_noise=True'
        )
    if p.loss in [LOSSES[name] for name in _COMPARE] and c.plan.seeds > 1:
        yield (
            f'loss.kind={c.loss.kind!r} compares all samples of a prompt, and plan.seeds='
            f'{c.plan.seeds} gives them several initial noises: use plan.seeds=1'
        )
    if c.moving.steps != 'none' and c.plan.kind != 'trajectory':
        yield (
            f'moving.steps={c.moving.steps!r} chooses transitions of a trajectory, and plan.kind='
            f"{c.plan.kind!r} has others: use plan.kind='trajectory', or moving.steps='none' with "
            'plan.active'
        )
    if c.budget.by != 'none' and (p.loss.groups or c.plan.kind != 'trajectory'):
        found = f"plan.kind={c.plan.kind!r} is not 'trajectory'"
        if p.loss.groups:
            found = f'loss.kind={c.loss.kind!r} compares whole groups of one size'
        yield (
            f'budget.by={c.budget.by!r} makes groups of two sizes, and {found}: use '
            "budget.by='none'"
        )
    if c.budget.by != 'none' and c.rollout.prompts % (2 * c.optim.updates):
        yield (
            f'budget.by={c.budget.by!r} pairs a prompt of few samples with one of many in every '
            f'update: rollout.prompts={c.rollout.prompts} is not a multiple of '
            f'2 * optim.updates={2 * c.optim.updates}'
        )
    if c.budget.by != 'none' and c.plan.seeds > 1:
        yield (
            f'budget.by={c.budget.by!r} makes groups of two sizes, and plan.seeds={c.plan.seeds} '
            "divides groups of one: use plan.seeds=1, or budget.by='none'"
        )
    sizes = budget_sizes(c.rollout.group, c.budget.ratio)
    if c.budget.by != 'none' and min(sizes) < 2:
        yield (
            f'budget.ratio={c.budget.ratio:g} with rollout.group={c.rollout.group} makes groups of '
            f'{sizes[0]} and {sizes[1]} samples; expected at least 2: use a ratio nearer to 1'
        )
    if c.moving.steps != 'none' and p.loss.batch == CLEAN:
        yield (
            f'moving.steps={c.moving.steps!r} chooses the trained transitions, and loss.kind='
            f"{c.loss.kind!r} trains on clean samples: use moving.steps='none'"
        )
    shortened = (c.credit.completion_every, c.credit.completion_steps) != (1, 0)
    if p.rule.reads_predictions and shortened:
        yield (
            f'credit.completion_every={c.credit.completion_every} and credit.completion_steps='
            f'{c.credit.completion_steps} are of completions, and credit.rule={c.credit.rule!r} '
            'scores predictions, which need none: use 1 and 0'
        )
    if p.loss is LOSSES['pair'] and c.loss.pairs == 'neighbours' and c.rollout.group % 2:
        yield (
            f"loss.pairs='neighbours' puts the samples of a group in pairs, and rollout.group="
            f"{c.rollout.group} is odd: use an even number, or loss.pairs='all'"
        )
    if p.rule.reads not in p.shape.points:
        yield (
            f'credit.rule={c.credit.rule!r} reads the rewards of each {p.rule.reads}, and '
            f'plan.kind={c.plan.kind!r} scores each {" and ".join(sorted(p.shape.points))}: '
            f'{_served(p)}'
        )
    if not p.shape.scores_states and not p.rule.per_sample:
        yield (
            f'plan.kind={c.plan.kind!r} scores the finished images alone, and credit.rule='
            f"{c.credit.rule!r} reads states on the way: use credit.rule='sparse'"
        )
    if not p.shape.scores_states and p.loss.batch == CLEAN:
        yield (
            f'plan.kind={c.plan.kind!r} gives a transition the mean of what follows it, and '
            f"loss.kind={c.loss.kind!r} trains on clean samples: use plan.kind='trajectory'"
        )
    if c.optim.share_states and (not p.shape.one_state or p.loss.trajectories):
        yield (
            f'optim.share_states=True: with plan.kind={c.plan.kind!r} and loss.kind='
            f'{c.loss.kind!r} samples do not lie beside each other with one state; use False'
        )
    if p.shape.one_start and not c.rollout.shared_noise:
        yield (
            f'plan.kind={c.plan.kind!r} compares samples that begin at one initial noise: use '
            'rollout.shared_noise=True'
        )
    if c.plan.seeds > 1 and not c.rollout.shared_noise:
        yield (
            f'plan.seeds={c.plan.seeds} is the number of initial noises that the samples of a '
            'prompt share, and rollout.shared_noise=False gives every sample its own: use '
            'rollout.shared_noise=True, or plan.seeds=1'
        )
    shares = _divisors(c.rollout.group)[:-1]
    if c.plan.seeds not in shares:
        yield (
            f'plan.seeds={c.plan.seeds} does not divide rollout.group={c.rollout.group} into equal '
            f'parts of at least 2 samples: use one of {shares}'
        )
    if (c.plan.merge_tau or c.plan.merge) and p.kernel.level != SIGMA:
        yield (
            f'rollout.kernel={c.rollout.kernel!r} adds no more noise in a longer step, so merging '
            "steps lowers it: use rollout.kernel='sde', or plan.merge_tau=0 and plan.merge=()"
        )
    if c.plan.merge_tau and c.noise.calibrate:
        yield (
            f'plan.merge_tau={c.plan.merge_tau} merges steps by their noise, which noise.calibrate='
            'True changes at the start of the run: calibrate first, and give the table as '
            'noise.psi_path, or use plan.merge_tau=0'
        )
    if c.plan.merge_tau and c.plan.merge:
        yield (
            f'plan.merge_tau={c.plan.merge_tau} and plan.merge={tuple(c.plan.merge)} both say how '
            'long the noisy steps are: use one of them'
        )
    if 'completion_every' not in p.shape.options and shortened:
        yield (
            f'credit.completion_every={c.credit.completion_every} and credit.completion_steps='
            f"{c.credit.completion_steps} are of a trajectory's completions: with plan.kind="
            f'{c.plan.kind!r} use 1 and 0, and plan.strides for shorter ones'
        )
    if p.shape.one_start and c.rollout.noisy_end:
        yield (
            'rollout.noisy_end=True adds noise at the end of a trajectory, and with plan.kind='
            f'{c.plan.kind!r} samples end by the ODE: use rollout.noisy_end=False'
        )
    if c.noise.psi_path and c.noise.calibrate:
        yield (
            f'noise.psi_path={c.noise.psi_path!r} and noise.calibrate=True: use the table of that '
            'file, or calibrate; not both'
        )
    if c.noise.interpolate and not c.noise.psi_path:
        yield 'noise.interpolate=True is for the table of a file, but noise.psi_path is empty'
    if not c.calibration.low < c.calibration.high:
        yield (
            f'calibration.low={c.calibration.low} and calibration.high={c.calibration.high}: '
            'expected 0 < low < high'
        )
    if c.calibration.low >= p.kernel.max_level:
        yield (
            f'calibration.low={c.calibration.low}: noise levels of rollout.kernel='
            f'{c.rollout.kernel!r} are at most {p.kernel.max_level:g}'
        )
    if c.full and c.lora.init_from:
        yield (
            'lora.init_from is set and full=True: merge the adapters into the base first '
            '(densegrpo_jax.export, merged)'
        )
    if c.full and c.model.quantize != 'none':
        yield (
            f'model.quantize={c.model.quantize!r} freezes the base, and full=True trains it: use '
            'one of them'
        )
    if c.optim.warmup >= c.iterations:
        yield (
            f'optim.warmup={c.optim.warmup}: expected 0 or more, and fewer than iterations='
            f'{c.iterations}'
        )
    if '://' in c.text_cache:
        yield (
            f'text_cache={c.text_cache!r}: expected a folder of this machine, such as one in a '
            'mounted bucket'
        )
    if c.eval.panel_prompts and not c.eval.panel:
        yield (
            f'eval.panel_prompts={c.eval.panel_prompts!r} has no reward to score it: name '
            'rewards in eval.panel'
        )
    if beyond := [i for i in c.checkpoint.pin if i > c.iterations]:
        yield (
            f'checkpoint.pin={tuple(c.checkpoint.pin)}: there is no iteration {beyond[0]}; '
            f'expected iterations up to iterations={c.iterations}'
        )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _served(p: Parts) -> str:
    """What would do instead of a credit rule that reads points which the plan does not have."""
    fit = lambda rule, kind: rule.reads in kind.points and (kind.scores_states or rule.per_sample)
    rules = [repr(name) for name, rule in CREDIT_RULES.items() if fit(rule, p.shape)]
    kinds = [repr(name) for name, kind in PLAN_KINDS.items() if fit(p.rule, kind)]
    other = f', or plan.kind={" or ".join(kinds)}' if kinds else ''
    return f'use credit.rule={" or ".join(rules)}{other}'


def _any(names: Iterable[str], key: str = '') -> str:
    return ' or '.join(f'{key}{name!r}' for name in names)
