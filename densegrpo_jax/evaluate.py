"""Command: scores a base model and any number of checkpoints on a whole prompt set, with the same noise.

    python -m densegrpo_jax.evaluate --config=configs/tiny_ocr.py
    python -m densegrpo_jax.evaluate --config=configs/tiny_ocr.py --workdir=runs/tiny_ocr --checkpoint=best --checkpoint=latest

Writes OUT/scores.csv (one row per prompt and policy), OUT/summary.md and a contact sheet per policy.
"""

from __future__ import annotations

import csv
import pathlib
import sys

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from densegrpo_jax.data.prompts import PromptSet
from densegrpo_jax.parallel.mesh import make_mesh
from densegrpo_jax.parallel.startup import start_devices
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.training import console
from densegrpo_jax.training.defaults import validate
from densegrpo_jax.training.evaluation import Evaluation, Evaluator
from densegrpo_jax.training.loading import load_adapters, load_base
from densegrpo_jax.training.preemption import StopRequest
from densegrpo_jax.training.prompts import Encoder, load_prompts, with_negative


def evaluate(config, workdir: str | None, which: list[str], *, base: bool = True) -> dict[str, Evaluation]:
    """Policy name -> Evaluation: the base model and the checkpoints `which` of a run."""
    validate(config)
    mesh = make_mesh(config.mesh)
    prompts, reward = load_prompts(config, 'eval'), build_reward(config.reward)
    reward.check([p.text for p in prompts], [p.metadata for p in prompts])
    pipeline, params = load_base(config, mesh)
    policies = {'base': None} if base else {}
    for name in which if workdir else ():
        adapters, step = load_adapters(pipeline, config, mesh, pathlib.Path(workdir), name)
        policies[f'step {step}'] = adapters
    results = {}
    with Scorer(reward, config.reward_workers or jax.local_device_count()) as scorer:
        encoder = Encoder(pipeline, params)
        params = with_negative(pipeline, config, params, encoder)
        evaluator = Evaluator(pipeline, config, prompts, encoder, scorer, mesh)
        for name, adapters in policies.items():
            results[name] = evaluator(params, adapters, StopRequest())
            logging.info('%s: %s', name, _line(results[name]))
    return results


def _line(evaluation: Evaluation) -> str:
    return ', '.join(f'{n} {evaluation.mean(n):.4f} +- {evaluation.standard_error(n):.4f}' for n in evaluation.scores)


def write(out: pathlib.Path, config, results: dict[str, Evaluation]) -> None:
    """scores.csv, summary.md and one contact sheet per policy."""
    out.mkdir(parents=True, exist_ok=True)
    prompts = load_prompts(config, 'eval')
    names = list(next(iter(results.values())).scores)
    with open(out / 'scores.csv', 'w', newline='') as file:
        table = csv.writer(file)
        table.writerow(['policy', 'index', 'prompt', *names])
        for policy, result in results.items():
            for i, prompt in enumerate(prompts):
                table.writerow([policy, i, prompt.text, *(f'{result.scores[n][i]:.6f}' for n in names)])
    rows = [f'| {p} | ' + ' | '.join(f'{r.mean(n):.4f} ± {r.standard_error(n):.4f}' for n in names) + ' |' for p, r in results.items()]
    head = [
        f'{len(prompts)} prompts, {config.eval.steps} ODE steps, guidance {config.model.guidance:g}; mean ± standard error over prompts',
        '',
    ]
    head += ['| policy | ' + ' | '.join(names) + ' |', '| --- |' + ' --- |' * len(names)]
    (out / 'summary.md').write_text('\n'.join(head + rows + _by_task(prompts, results)) + '\n')
    for policy, result in results.items():
        result.save_sheet(out / f'{policy.replace(" ", "_")}.png')


def _by_task(prompts: PromptSet, results: dict[str, Evaluation]) -> list[str]:
    """A table of means per GenEval task and of their mean, which is GenEval's overall score; nothing where prompts have no task."""
    tags = np.array([prompt.metadata.get('tag', '') for prompt in prompts])
    tasks = sorted(set(tags) - {''})
    if not tasks:
        return []
    columns = ['policy', 'score', *tasks, 'mean of tasks']
    lines = ['', 'By task:', '', f'| {" | ".join(columns)} |', '|' + ' --- |' * len(columns)]
    for policy, result in results.items():
        for name, values in result.scores.items():
            means = [float(np.nanmean(values[tags == task])) for task in tasks]
            lines.append(f'| {policy} | {name} | ' + ' | '.join(f'{mean:.4f}' for mean in [*means, np.mean(means)]) + ' |')
    return lines


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; settings are given as --config.key=value')
    console.start()
    config, out = flags.FLAGS.config, pathlib.Path(flags.FLAGS.out)
    start_devices(config.eval.batch)
    try:
        write(out, config, evaluate(config, flags.FLAGS.workdir, flags.FLAGS.checkpoint, base=flags.FLAGS.base))
    except (ValueError, FileNotFoundError) as error:
        logging.error('%s', error)
        return 2
    except RewardError as error:
        logging.error('%s', error)
        return 1
    logging.info('made %s', ', '.join(str(p) for p in sorted(out.iterdir())))
    return 0


def define_flags() -> None:
    """Only the command itself has flags: importing this module defines none."""
    config_flags.DEFINE_config_file('config', None, 'Configuration: model, reward, evaluation prompts, ODE steps.', lock_config=True)
    flags.DEFINE_string('workdir', None, 'Training run whose checkpoints are scored besides the base model.')
    flags.DEFINE_multi_string('checkpoint', ['best'], "'best', 'latest' or a step; may be given more than once.")
    flags.DEFINE_bool('base', True, 'Score the base model.')
    flags.DEFINE_string('out', 'runs/evaluation', 'Folder for the results.')


if __name__ == '__main__':
    define_flags()
    flags.mark_flag_as_required('config')
    app.run(lambda argv: sys.exit(main(argv)))
