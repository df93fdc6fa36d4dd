"""The search of many prompts, a few at a time; each result is stored as soon as it is done."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from densegrpo_jax.config import identity
from densegrpo_jax.config.method import check_search_kernel, search_kernel_of
from densegrpo_jax.data.prompts import Prompt, PromptSet, columns
from densegrpo_jax.evaluation.diversity import embedding_facts, make_embedding, pairwise_diversity
from densegrpo_jax.evaluation.evaluator import finite_mean
from densegrpo_jax.evaluation.panel import check_names, panel_rewards
from densegrpo_jax.rewards.base import Reward, RewardError
from densegrpo_jax.rewards.differentiable import without_gradient
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.streams import STREAM_SEARCH, key_data, stream_key
from densegrpo_jax.runtime.trees import json_value
from densegrpo_jax.sampling.conditioning import content_hash
from densegrpo_jax.sampling.diagnosis import explain
from densegrpo_jax.sampling.loading import weights_digest
from densegrpo_jax.sampling.sampler import make_sampler
from densegrpo_jax.sampling.session import Checked, Session
from densegrpo_jax.search.budget import cost, sizes_for
from densegrpo_jax.search.loop import Unscored, Walk
from densegrpo_jax.search.methods import METHODS, Found, Rule, Sizes, best_of_n
from densegrpo_jax.search.model import Model, temperature_of
from densegrpo_jax.search.record import Results, Tracker, draw

GUIDED = ('smc', 'psi')  # methods that may follow a reward's gradient
# Samples for measuring the reward's spread, if it is needed.
SPREAD_PROMPTS, SPREAD_SAMPLES = 8, 4


class Budget(NamedTuple):
    """A configuration's search of one prompt."""

    sizes: Sizes
    expected: tuple  # Cost
    guided: bool


def make_budget(session, given: int = 0) -> Budget:
    """Sizes and cost of `config.search` on the schedule of a session (or `session.Checked`).

    Args:
      given: number of images that refine starts from, for each prompt.

    Raises:
      ValueError: options contradict each other, or the budget is too small.
    """
    o, schedule = session.config.search, session.schedule
    guided = o.gradient
    if guided and o.method not in GUIDED:
        raise ValueError(
            f'search.gradient=True: search.method={o.method!r} follows no gradient; '
            f'use one of {GUIDED}'
        )
    kernel = search_kernel_of(session.config)
    check_search_kernel(session.config)
    if guided and (names := without_gradient(session.reward)):
        raise ValueError(
            f'search.gradient=True: the reward {names[0]!r} has no gradient; the CLIP rewards and '
            "'pixels' have one"
        )
    if not kernel.noisy and o.method != 'best_of_n':
        raise ValueError(
            f'search.kernel={o.kernel!r}: without noise the copies that {o.method} makes of a '
            "particle never separate; use it with search.method='best_of_n'"
        )
    if given and o.method != 'refine':
        raise ValueError(f"--from is for search.method='refine', but it is {o.method!r}")
    noisy = kernel.adds_noise(schedule.sigmas, schedule.noise_levels)
    stochastic = schedule.masks.stochastic & noisy
    levels = np.abs(schedule.sigmas - o.from_level)
    sizes = sizes_for(
        o.method,
        o.nfe,
        stochastic,
        particles=o.particles,
        candidates=o.candidates,
        designs=o.designs,
        chains=o.chains,
        from_state=int(np.argmin(levels)),
        given=given,
    )
    many = dict(every=o.every, guided=guided, given=bool(given))
    return Budget(sizes, cost(o.method, sizes, stochastic, **many), guided)


def rule_of(config, spread: float) -> Rule:
    """`config.search` as a Rule. Temperatures are multiplied by the reward's spread, except `beta`,
    which is the target's own temperature.
    """
    o = config.search
    return Rule(
        temperature=o.beta or o.temperature * spread,
        alpha=o.alpha * spread,
        selection=o.selection * spread,
        incremental=o.incremental,
        keep_best=o.keep_best,
        backward=o.backward,
        step_size=o.step_size,
        scheme=o.scheme,
        threshold=o.threshold or None,
        potential=o.potential,
        every=o.every,
    )


def search(
    session: Session,
    policy: dict | None,
    prompts: list[Prompt],
    results: Results | None,
    *,
    given: np.ndarray | None = None,
    panel: Sequence[Reward] | None = None,
) -> dict[int, dict]:
    """Prompt's index -> result. The primary process adds it to `results`, and leaves out what they
    hold.

    Args:
      policy: None: the base.
      results: of `open_results`, with the same arguments.
      given: images uint8 [B, H, W, 3] that refine starts from, for each prompt.
      panel: of `unseen_rewards`; None: made here.

    Raises:
      Preempted: a stop was requested; finished prompts are kept.
      RewardError: no image of some prompts could be scored; the others have been searched.
    """
    config, stop = session.config, session.stop
    budget = make_budget(session, 0 if given is None else len(given))
    o, seed = config.search, stream_key(config.seed, STREAM_SEARCH, 0)
    known = None if results is None else ([*results.prompts], results.spread or 0.0)
    done, unit = stop.communicator.of_primary(known)
    todo = sorted({*range(len(prompts))} - {*done})
    keys = key_data(jax.vmap(lambda i: jax.random.fold_in(seed, i))(np.arange(len(prompts))))
    base = make_sampler(session.pipeline, config, config.eval.steps, session.mesh)
    embed = make_embedding(config.eval.embedding)
    unseen = unseen_rewards(session, prompts) if panel is None else panel
    with contextlib.ExitStack() as stack:
        scorer, *scorers = (
            stack.enter_context(Scorer(reward, config.reward_workers))
            for reward in (session.reward, *unseen)
        )
        model = Model(session, policy, scorer, search_kernel_of(config))
        if not unit and todo and _needs_unit(o):
            unit = _measure_spread(model, prompts, config)
            if results is not None:
                results.keep_spread(unit)
        rule = rule_of(config, unit)
        latents = None if given is None else model.encode(given)
        logging.info(
            '%s: %s, %d network evaluations and %d images a prompt; spread of the reward %.4g, '
            'temperature %.4g',
            o.method,
            {k: v for k, v in budget.sizes._asdict().items() if v != Sizes()._asdict()[k]},
            budget.expected.evaluations,
            budget.expected.images,
            unit,
            rule.temperature,
        )
        with ProgressBar(
            len(prompts),
            start=len(prompts) - len(todo),
            label='prompts',
            show=results is not None,
            unit='prompt',
        ) as bar:
            left, together, failed = todo, min(o.prompts, len(todo)), []
            while left:
                chosen = left[:together]
                # A batch of fewer is filled up, so that one compiled shape serves all.
                rows = np.pad(chosen, (0, together - len(chosen)), mode='edge')
                began = time.monotonic()
                try:
                    found = _one_batch(
                        *(model, session, policy, base, prompts, keys, rows, rule, budget, latents),
                        *(scorers, embed),
                    )
                except Unscored as error:
                    if not failed:  # weights or texts that are not finite would spoil all prompts
                        explain(session, policy, [prompts[i].text for i in rows[error.rows]])
                    logging.error('%s. The search goes on without', error)
                    without = {int(i) for i in rows[error.rows]}
                    failed += without
                    left = [i for i in left if i not in without]
                    stop.communicator.exchange()
                    continue
                left = left[together:]
                seconds = (time.monotonic() - began) / len(chosen)
                for i, row in zip(chosen, found):
                    if results is not None:
                        row, images = row
                        # first, as a prompt that is on record is not searched again
                        draw(results.folder, int(i), *images, budget.expected.evaluations)
                        results.put({'prompt': int(i), **row, 'seconds': seconds})
                best = float(np.mean([row['best']['total'] for row, _ in found[: len(chosen)]]))
                searched = len(todo) - len(left) - len(failed)
                spent = searched * budget.expected.evaluations
                bar.update(len(prompts) - len(todo) + searched, {'nfe': spent, 'best': best})
                stop.communicator.exchange()
    if results is not None:
        results.write_summary(f'{o.method}, {o.nfe} evaluations a prompt')
    if failed:
        raise RewardError(
            f'{len(failed)} of {len(prompts)} prompts have no result, as the search of them had '
            f'no valid score to go on with, the first {prompts[min(failed)].text!r}; the same '
            'command tries them again'
        )
    return results.prompts if results is not None else {}


def open_results(
    checked: Checked,
    policy: dict | None,
    prompts: Sequence[Prompt],
    out: pathlib.Path,
    *,
    restart: bool = False,
    given: np.ndarray | None = None,
    panel: Sequence[Reward] | None = None,
    name: str = 'results',
) -> Results | None:
    """The results in `out` so far, in the primary process; None in others.

    Args:
      policy, given, panel: as in `search`.
      restart: forget them.
      name: of the agreement about them, unique within a run.

    Raises:
      ValueError: they are damaged or of other settings, in all processes.
    """
    config = checked.config
    noise = checked.schedule.noise_levels.tolist() if config.noise.psi_path else None
    unseen = unseen_rewards(checked, prompts) if panel is None else panel
    told = checked.facts([checked.reward, *unseen])
    facts = {'policy': weights_digest(policy), **told, 'psi': noise}
    facts |= embedding_facts(config.eval.embedding)
    settings = identity.record('search', config, facts) | {
        'prompts': [p.text for p in prompts],
        'content of the prompts': content_hash(PromptSet(tuple(prompts))),
    }
    if given is not None:
        settings['given'] = images_hash(given)
    with Agreement(checked.hosts, name).alike():
        return Results(out, settings, restart=restart) if checked.hosts.primary else None


def images_hash(images: np.ndarray) -> str:
    """A short hash of images by their values, in their order."""
    return hashlib.sha256(np.ascontiguousarray(images)).hexdigest()[:12]


def _needs_unit(o) -> bool:
    return {
        'best_of_n': False,
        'smc': not o.beta,
        'pg': not o.beta,
        'psi': not o.beta,
        'svdd': o.alpha > 0,
        'refine': True,
    }[o.method]


def _measure_spread(model: Model, prompts: list[Prompt], config) -> float:
    chosen = prompts[:SPREAD_PROMPTS]
    key = jax.random.fold_in(stream_key(config.seed, STREAM_SEARCH, 1), 0)
    keys = key_data(jax.random.split(key, len(chosen)))
    rewards, evaluations, together = [], 0, config.search.prompts  # as many as memory is meant for
    for start in range(0, len(chosen), together):
        rows = slice(start, start + together)
        walk = Walk(model.flow(chosen[rows]), keys[rows])
        found = best_of_n(walk, Sizes(particles=SPREAD_SAMPLES), Rule())
        rewards.append(np.asarray(found.particles.reward))
        evaluations += walk.evaluations * len(chosen[rows])
    way_out = "set the target's own temperature as config.search.beta"
    if config.search.method in ('svdd', 'refine'):  # which have no target
        way_out = "choose another config.search.method, as 'best_of_n'"
    spread = temperature_of(np.concatenate(rewards), way_out)
    logging.info(
        'the reward of %d samples of each of %d prompts has a spread of %.4g within a prompt '
        '(%d evaluations, outside the budget)',
        SPREAD_SAMPLES,
        len(chosen),
        spread,
        evaluations,
    )
    return spread


def unseen_rewards(session: Checked, prompts: Sequence[Prompt]) -> list[Reward]:
    """The rewards of `eval.panel`, which the search does not choose by; they have checked the
    prompts.

    Raises:
      ValueError: a reward cannot score a prompt, or two scores have one name.
    """
    rewards = panel_rewards(session.config)
    check_names([session.reward, *rewards])
    for reward in rewards:
        reward.check(*columns(prompts))
    return rewards


def _one_batch(
    model, session, policy, base, prompts, keys, rows, rule, budget, latents, panel, embed
) -> list[tuple[dict, tuple]]:
    """[(result of a prompt, arguments of `draw`)] of prompts `rows`."""
    config, chosen = session.config, [prompts[i] for i in rows]
    flow = model.flow(chosen)
    tracker = Tracker(len(rows), flow.steps)
    walk = Walk(
        flow,
        keys[rows],
        guided=budget.guided,
        temperature=rule.temperature,
        record=tracker,
        names=[p.text for p in chosen],
    )
    extra = {}
    if latents is not None:
        extra = {'given': jnp.broadcast_to(latents, (len(rows), *latents.shape))}
    found: Found = METHODS[config.search.method](walk, budget.sizes, rule, **extra)
    if dead := [row for row, curve in enumerate(tracker.curves) if not curve]:
        raise Unscored([p.text for p in chosen], dead, 'no sample of the search has a valid score')
    text = session.conditioning([p.text for p in chosen]), session.negative
    plain, finite = base(session.params, policy, *text, keys[rows])
    plain = np.asarray(session.stop.wait(plain))
    scored = model.scored(chosen, plain[:, None], np.asarray(finite)[:, None])
    final, intact = model.images(found.particles.x)
    best = np.stack([curve[-1][2] for curve in tracker.curves])
    shown = np.concatenate([plain[:, None], best[:, None], final], axis=1)
    usable = np.concatenate(
        [np.asarray(finite)[:, None], np.ones((len(rows), 1), bool), intact], axis=1
    )
    unseen = {
        name: values
        for scorer in panel
        for name, values in model.scored(chosen, shown, usable, scorer).values.items()
    }
    count = final.shape[1]
    kept = []
    for p in range(len(rows)):
        rewards = found.particles.reward[p]
        diversity = float(pairwise_diversity(embed(final[p])[None])[0]) if count > 1 else None
        panel_of = lambda image: {name: json_value(image(v[p])) for name, v in unseen.items()}
        row = {
            'text': chosen[p].text,
            'base': {name: json_value(v[p, 0]) for name, v in scored.values.items()}
            | panel_of(lambda values: values[0]),
            'first': tracker.first[p],
            'drawn': {'total': json_value(rewards[found.drawn[p]])},
            'final': {'total': json_value(finite_mean(rewards))}
            | panel_of(lambda values: finite_mean(values[2:])),
            'best': tracker.curves[p][-1][3] | panel_of(lambda values: values[1]),
            'curve': [[nfe, reward] for nfe, reward, *_ in tracker.curves[p]],
            'diversity': diversity,
            'nfe': walk.evaluations,
            'gradients': walk.gradients,
            'images': walk.images,
            'candidates': tracker.candidates[p],
        }
        score = json_value(scored.values['total'][p, 0])
        kept.append((row, ((plain[p], score), tracker.curves[p], final[p], rewards)))
    return kept
