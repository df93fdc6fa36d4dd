"""What the guard will measure and which alarms it can give, told before anything is loaded."""

from __future__ import annotations

import math
import pathlib
from typing import NamedTuple

from absl import logging

from densegrpo_jax.config.guard_keys import BETA, BRAKE
from densegrpo_jax.config.method import kernel_of, loss_of
from densegrpo_jax.data.prompts import PromptSet, columns
from densegrpo_jax.data.sampler import some_prompts
from densegrpo_jax.evaluation import divergence
from densegrpo_jax.evaluation.diversity import embedding_folder
from densegrpo_jax.evaluation.evaluator import check_group
from densegrpo_jax.evaluation.panel import PANEL, Part, parts, record_of
from densegrpo_jax.evaluation.record import Record
from densegrpo_jax.guard.falls import FEWEST
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.runtime.streams import STREAM_EVAL
from densegrpo_jax.sampling.conditioning import check_prompts
from densegrpo_jax.sampling.session import Checked

FOLDER = 'guard'  # in the work directory


def _guarded_part(checked: Checked) -> Part:
    config = checked.config
    found, count = parts(config, checked.test, checked.reward), config.guard.prompts
    part = found['eval']
    if PANEL in found:
        part = _with_trained(found[PANEL], checked.reward, config.eval.panel_prompts)
    chosen = some_prompts(part.prompts, count or len(part.prompts), config.seed, STREAM_EVAL)
    return part._replace(prompts=PromptSet(tuple(chosen)))


def _with_trained(part: Part, reward: CompositeReward, name: str) -> Part:
    """The panel on its own prompts, and the training reward if it can score them too.

    Raises:
      ValueError: it cannot, and has scores of weight 0 that would not be watched.
    """
    panel = {score for of in part.rewards for score in of.names}
    why = f'eval.panel has {sorted(twice)} too' if (twice := panel & {*reward.names}) else ''
    try:
        reward.check(*columns(part.prompts))
    except ValueError as error:
        why = str(error)
    if not why:
        return part._replace(rewards=[reward, *part.rewards])
    if unseen := [score for score in unseen_of(reward) if score not in panel]:
        raise ValueError(
            f'guard.on=True watches {", ".join(unseen)}, of weight 0 in `reward`, and on '
            f'eval.panel_prompts={name!r} `reward` is not measured ({why}): name them in '
            'eval.panel, or leave out eval.panel_prompts'
        )
    logging.warning(
        'guard: the trained score is not measured beside the others: on eval.panel_prompts=%r '
        '`reward` is not measured (%s)',
        name,
        why,
    )
    return part


def check_guard(checked: Checked) -> Part | None:
    """What the guard measures: its prompts, and their rewards, the training reward among them if it
    can score them; None without a guard.

    Raises:
      ValueError, FileNotFoundError: it cannot measure, or cannot act.
    """
    config, g = checked.config, checked.config.guard
    if not g.on:
        return None
    part = _guarded_part(checked)
    if config.eval.panel_prompts:
        check_prompts(checked.pipeline, part.prompts, 'eval.panel_prompts')
    panel = any(reward is not checked.reward for reward in part.rewards)
    unseen = panel or unseen_of(checked.reward)
    if not unseen and g.images == 1:
        raise ValueError(
            'guard.on=True has nothing to measure: name rewards that are not trained on in '
            'eval.panel, or in `reward` with weight 0, or let guard.images be at least 2'
        )
    count = len({prompt.text for prompt in part.prompts})  # rows of one text are no more than one
    if count < FEWEST:
        if 0 < g.prompts < FEWEST:
            way = f'raise guard.prompts={g.prompts} to at least that'
        elif config.eval.panel_prompts:
            way = f'eval.panel_prompts={config.eval.panel_prompts!r} needs more'
        else:
            way = 'give it more by data.eval and data.eval_prompts'
        raise ValueError(
            f'guard.on=True measures on {count} different prompts, and on fewer than {FEWEST} it '
            f'finds no fall: {way}'
        )
    check_group(g.images, config, 'guard.images')
    if g.action == BRAKE and g.brake == BETA and not config.loss.beta:
        raise ValueError(
            "guard.brake='beta' divides loss.beta by guard.factor, and loss.beta is 0: set "
            "loss.beta, or use guard.brake='rate'"
        )
    if g.images > 1:
        embedding_folder(config.eval.embedding)
    return part


def images_together(config) -> int:
    """Images of a prompt that evaluations sample together: the fewest that eval.batch may be."""
    return config.guard.images if config.guard.on else 1


def open_record(checked: Checked, part: Part, workdir: pathlib.Path) -> Record | None:
    """The guard's measurements so far, in the primary process; None in others.

    Raises:
      ValueError: they are damaged or of other settings, in all processes.
    """
    folder, images = workdir / FOLDER, checked.config.guard.images
    way_out = f'remove {folder}: then the guard measures again, also at the start of the run'
    how = dict(way_out=way_out, differences=checked.differences)
    return record_of(checked, {FOLDER: part}, images, folder, 'guard', **how)


def planned(config) -> int:
    """Guarded evaluations of the whole run, without the start."""
    every = config.eval.every
    evaluations = range(every, config.iterations + every, every)
    return max(1, math.ceil(len(evaluations) / config.guard.every))


class GuardCost(NamedTuple):
    """What the guard adds to a run.

    Attributes:
      evaluations: how often it measures, the start among them.
      images: sampled and scored at each.
      kl_prompts: whose KL is measured at each.
      nfe: network evaluations of each after the start; with classifier-free guidance each is two.
      start_nfe: of the start, whose KL is known without `lora.init_from`.
    """

    evaluations: int
    images: int
    kl_prompts: int
    nfe: int
    start_nfe: int

    @property
    def total_nfe(self) -> int:
        """Network evaluations of the whole run."""
        return self.start_nfe + (self.evaluations - 1) * self.nfe


def guard_cost(checked: Checked, part: Part) -> GuardCost:
    """Of a run. part: of `check_guard`."""
    config, count = checked.config, len(part.prompts)
    images = count * config.guard.images
    with_kl = min(count, config.guard.kl_prompts) if measures_kl(config) else 0
    drawn = images * config.eval.steps
    nfe = drawn
    if with_kl:
        nfe += with_kl * divergence.evaluations(config, checked.pipeline)
    start = nfe if config.lora.init_from else drawn
    return GuardCost(planned(config) + 1, images, with_kl, nfe, start)


def measures_kl(config) -> bool:
    """Whether a KL is asked for, and there is one: it compares noisy transitions."""
    return config.guard.kl_prompts > 0 and kernel_of(config).noisy


def ratio_limit(config) -> float | None:
    """The mean deviation of the ratio from 1, in an update, beyond which there is an alarm; None if
    the loss clips no ratio.
    """
    clips = 'clip_range' in loss_of(config).options
    return config.guard.ratio * config.loss.clip_range if clips else None


def unseen_of(reward: CompositeReward) -> list[str]:
    """Scores that the training reward logs and does not train on."""
    return [part.names[0] for part, weight in reward.parts if weight == 0]
