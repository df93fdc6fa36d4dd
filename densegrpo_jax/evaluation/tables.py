"""The output of an evaluation of policies: tables in Markdown and CSV, and contact sheets."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from densegrpo_jax.data.prompts import PromptSet
from densegrpo_jax.evaluation.divergence import KL
from densegrpo_jax.evaluation.evaluator import DIVERSITY, Evaluation
from densegrpo_jax.runtime.images import comparison, save
from densegrpo_jax.runtime.markdown import table

NOTES = {
    DIVERSITY: (
        'diversity: mean of 1 - cosine over the pairs of images of a prompt, in the embedding '
        '{embedding!r}'
    ),
    KL: (
        'kl: of the policy from the base, per element of the latent and trained transition, along '
        'noisy trajectories as in training'
    ),
}


def files(sets: Iterable[str], policies: Sequence[str]) -> list[str]:
    """What `write` writes, for the names of prompt sets and policies."""
    kinds = ['scores.csv', 'side_by_side.png', *map(_sheet, policies)]
    return ['summary.md', *(_prefix(name) + kind for name in sets for kind in kinds)]


def write(
    out: pathlib.Path, config, sets: dict[str, PromptSet], results: dict[str, dict[str, Evaluation]]
) -> None:
    """Writes summary.md; and for every prompt set, prefixed by its name unless that is 'eval':
    scores.csv, a sheet per policy, side_by_side.png.
    """
    out.mkdir(parents=True, exist_ok=True)
    pages = []
    for name, policies in results.items():
        prompts, prefix = sets[name], _prefix(name)
        write_csv(out / f'{prefix}scores.csv', prompts, policies)
        pages.append(summary(config, name, prompts, policies))
        for policy, result in policies.items():
            result.save_sheet(out / (prefix + _sheet(policy)))
        side_by_side(out / f'{prefix}side_by_side.png', policies)
    (out / 'summary.md').write_text('\n\n'.join(pages) + '\n', encoding='utf-8')


def _prefix(prompt_set: str) -> str:
    return '' if prompt_set == 'eval' else f'{prompt_set}_'


def _sheet(policy: str) -> str:
    return policy.replace(' ', '_').replace('/', '_') + '.png'


def write_csv(path: pathlib.Path, prompts: PromptSet, policies: dict[str, Evaluation]) -> None:
    """A row per policy and prompt: every score, 'nan' where there is none."""
    names = list(next(iter(policies.values())).scores)
    with open(path, 'w', newline='', encoding='utf-8') as file:
        lines = csv.writer(file)
        lines.writerow(['policy', 'index', 'prompt', *names])
        for policy, result in policies.items():
            for i, prompt in enumerate(prompts):
                lines.writerow(
                    [policy, i, prompt.text, *(f'{result.scores[n][i]:.6f}' for n in names)]
                )


def summary(config, name: str, prompts: PromptSet, policies: dict[str, Evaluation]) -> str:
    """Markdown: means with standard errors, paired differences to the base by prompt, and means by
    task if prompts have tasks.
    """
    which, e = config.data.eval if name == 'eval' else config.eval.panel_prompts, config.eval
    first = next(iter(policies.values()))
    names, group = list(first.scores), first.group
    of_each = f', {group} images of each' if group > 1 else ''
    lines = [
        f'{len(prompts)} prompts ({which}){of_each}, {e.steps} ODE steps, guidance '
        f'{config.model.guidance:g}, seed {config.seed}; '
        'mean ± standard error over prompts.',
        *(NOTES[n].format(embedding=e.embedding) for n in names if n in NOTES),
    ]
    tables = [
        '  \n'.join(lines),
        table(
            ['policy', *names], [[p, *(_cell(r, n) for n in names)] for p, r in policies.items()]
        ),
    ]
    base, *others = policies
    if base == 'base' and others:
        compared = [n for n in names if n != KL]
        change = lambda policy, n: '{:+.4f} ± {:.4f}'.format(
            *policies[policy].change(policies[base], n)
        )
        tables += [
            'Difference to the base, of the same prompts and noise (± standard error of the '
            'paired difference):',
            table(['policy', *compared], [[p, *(change(p, n) for n in compared)] for p in others]),
        ]
    return '\n\n'.join([*tables, *_by_task(prompts, policies)])


def side_by_side(path: pathlib.Path, policies: dict[str, Evaluation]) -> None:
    """A sheet with a row per prompt and a column per policy, each image with its first score."""
    results = list(policies.values())
    images = np.stack([result.images for result in results], axis=1)
    name, rows = next(iter(results[0].scores)), range(len(images))
    captions = [
        [f'{name} {result.scores[name][i]:.3f}{result.over_group}' for result in results]
        for i in rows
    ]
    scale = max(1, 192 // images.shape[3])
    save(
        path,
        comparison(
            images, titles=list(policies), captions=captions, rows=results[0].prompts, scale=scale
        ),
    )


def _cell(result: Evaluation, name: str) -> str:
    values = result.scores[name]
    known = int(np.isfinite(values).sum())
    return f'{result.mean(name):.4f} ± {result.standard_error(name):.4f}' + (
        f' ({known} of {len(values)})' if known < len(values) else ''
    )


def _task(tag: object) -> str:
    """A prompt's tag as a task: text or a number, as a CSV file has it; of a column of anything
    else, such as lists, ''.
    """
    return str(tag) if isinstance(tag, str | int | float) else ''


def _by_task(prompts: PromptSet, policies: dict[str, Evaluation]) -> list[str]:
    """Means by the prompts' tag (GenEval's task, the panel's category) and their mean, which is
    GenEval's overall score.
    """
    tags = np.array([_task(prompt.metadata.get('tag')) for prompt in prompts])
    tasks = sorted({*tags} - {''})
    if not tasks:
        return []
    rows = []
    for policy, result in policies.items():
        for name, values in result.scores.items():
            if name != KL:
                means = [
                    Evaluation({name: values[tags == task]}, result.images, []).mean(name)
                    for task in tasks
                ]
                rows.append([policy, name, *(f'{mean:.4f}' for mean in [*means, np.mean(means)])])
    return ['By task:', table(['policy', 'score', *tasks, 'mean of tasks'], rows)]
