"""What `densegrpo_jax.evaluate` compares: which policies, on which prompts, with which rewards."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from densegrpo_jax.config import identity
from densegrpo_jax.data.prompts import PromptSet, columns
from densegrpo_jax.evaluation.divergence import KL
from densegrpo_jax.evaluation.diversity import embedding_facts
from densegrpo_jax.evaluation.evaluator import DIVERSITY
from densegrpo_jax.evaluation.record import Record
from densegrpo_jax.rewards.base import Reward
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.trial import try_own
from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.sampling.conditioning import content_hash, load_panel_prompts
from densegrpo_jax.sampling.loading import find_step
from densegrpo_jax.sampling.session import Checked

PANEL = 'panel'  # the prompt set of eval.panel_prompts
SETS = ('eval', PANEL)  # names of prompt sets


class Policy(NamedTuple):
    """A policy to score: the base model (workdir None) or a checkpoint of a run."""

    label: str
    workdir: pathlib.Path | None = None
    step: int = 0


class Part(NamedTuple):
    """A prompt set and the rewards that score its images."""

    prompts: PromptSet
    rewards: list[Reward]


def choose(
    checkpoints: Sequence[str], workdir: str | None = None, *, base: bool = True
) -> list[Policy]:
    """The base and the checkpoints named 'best', 'latest' or by a step, of `workdir` or, as
    RUN:NAME, of another run.

    Raises:
      ValueError, FileNotFoundError: a name has no run, or no checkpoint.
    """
    chosen = []
    place = lambda run: pathlib.Path(run).expanduser().resolve()
    runs_of = [name.rpartition(':')[0] for name in checkpoints]
    if workdir and runs_of and all(run and place(run) != place(workdir) for run in runs_of):
        raise ValueError(
            f'--workdir={workdir} is given, and every --checkpoint names a run of its own: leave '
            f'it out (--config={workdir}/config.json takes its configuration), or name a '
            f'checkpoint of it, as {workdir}:best'
        )
    for name in checkpoints:
        run, _, which = name.rpartition(':')
        if not (run or workdir):
            raise ValueError(
                f'--checkpoint={name}: of which run? Give --workdir=RUN, or --checkpoint=RUN:{name}'
            )
        folder = pathlib.Path(run or workdir).expanduser()
        chosen.append((folder, find_step(folder, which)))
    runs = {folder for folder, _ in chosen}
    unique = len({folder.name for folder in runs}) == len(runs)
    prefix = lambda folder: '' if len(runs) == 1 else f'{folder.name if unique else folder} '
    return [Policy('base')] * base + [
        Policy(f'{prefix(folder)}step {step}', folder, step)
        for folder, step in dict.fromkeys(chosen)
    ]


def panel_rewards(config) -> list[Reward]:
    """The rewards of `eval.panel`, one each.

    Raises:
      ValueError: a reward has a weight, but the scores of a panel are not added up.
    """
    rewards = []
    for name, options in config.eval.panel.items():
        if 'weight' in options:
            raise ValueError(
                f'eval.panel.{name}.weight={options["weight"]}: the scores of a panel are not '
                'added up; remove the weight'
            )
        rewards.append(build_reward({name: options}).parts[0][0])
    return rewards


def check_names(rewards: Iterable[Reward], *own: str) -> None:
    """Raises ValueError if two scores, or a score and one of the table's `own`, have one name: they
    would be one column.
    """
    names = [*own, *(name for reward in rewards for name in reward.names)]
    if twice := {name for name in names if names.count(name) > 1}:
        among = ', '.join(['reward', 'eval.panel', *map(repr, own)])
        raise ValueError(
            f'score names {sorted(twice)} occur twice in {among}; names must differ: the option '
            '`prefix` of a remote reward is put before its names'
        )


def parts(config, test: PromptSet, reward: Reward) -> dict[str, Part]:
    """Prompt set -> its prompts and rewards: of SETS, the second if the panel has its own prompts.
    Every reward has checked its prompts, and own ones of the panel have been tried (`try_own`).

    Args:
      test: the evaluation's prompts. reward: the training reward.
    """
    panel = panel_rewards(config)
    result = {SETS[0]: Part(test, [reward])}
    if (prompts := load_panel_prompts(config)) is None:
        result[SETS[0]].rewards.extend(panel)
    else:
        result[PANEL] = Part(prompts, panel)
    for part in result.values():
        check_names(part.rewards, DIVERSITY, KL)
        for each in part.rewards:
            each.check(*columns(part.prompts))
            if each is not reward:  # that has been tried
                try_own(each, *columns(part.prompts), (config.model.height, config.model.width))
    return result


def settings(checked: Checked, which: dict[str, Part], group: int) -> dict:
    """The JSON values, other than the policy, that scores depend on."""
    config = checked.config
    facts = {
        **checked.facts(reward for part in which.values() for reward in part.rewards),
        'psi': checked.schedule.noise_levels.tolist() if config.noise.psi_path else None,
        'noise of the KL': 'of each run' if config.noise.calibrate else None,
        'prompts': {name: content_hash(part.prompts) for name, part in which.items()},
        'group': group,
        **(embedding_facts(config.eval.embedding) if group > 1 else {}),
    }
    record = identity.record('evaluation', config, facts)
    if group == 1:  # no diversity is measured
        del record['eval']['embedding']
    return record


def record_of(
    checked: Checked,
    which: dict[str, Part],
    group: int,
    folder: pathlib.Path,
    name: str,
    **options: Any,
) -> Record | None:
    """The scores in `folder` so far, in the primary process; None in others.

    Args:
      name: of the agreement about them, unique within a run.
      options: of Record.

    Raises:
      ValueError: they are damaged or of other settings, in all processes.
    """
    with Agreement(checked.hosts, name).alike():
        if not checked.hosts.primary:
            return None
        return Record(folder, settings(checked, which, group), **options)
