"""The folder of a run that was never trained: what the pages read, with known numbers."""

import json

import numpy as np
from PIL import Image

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.core.credit_rules import as_credit_rule
from densegrpo_jax.core.masks import StepMasks
from densegrpo_jax.core.plan_kinds import PLAN_KINDS, Setting
from densegrpo_jax.core.rollout_plan import state_points, trajectory_plan
from densegrpo_jax.viewing.groups import write_groups
from densegrpo_jax.viewing.run_data import RECIPE

EVIL = '<script>document.title = "taken"</script> & "HELLO"'
SAMPLES, STEPS = 4, 3


def plan():
    """Three transitions, the last one silent; all states are completed, the last two alike."""
    stochastic, trained = [True, True, False], [True, True, False]
    masks = StepMasks(np.array(stochastic), np.array(trained))
    return trajectory_plan(masks, state_points(range(STEPS + 1)))


def plan_of(kind, rule, noisy=(0, 1, 2, 3), **options):
    """A plan of five transitions, as a run makes it, whose noisy ones are trained."""
    on = np.isin(np.arange(5), noisy)
    setting = Setting(
        sigmas=np.linspace(1, 0, 6),
        noise_levels=np.ones(5),
        masks=StepMasks(on, on),
        last=4,
        rule=as_credit_rule(rule),
        beside=SAMPLES,
    )
    return PLAN_KINDS[kind].make(setting, **options)


PLANS = {
    'branch': lambda: plan_of('branch', 'branch', (0, 1, 2), strides=(1, 2), merge=(1, 2, 1)),
    'sdpo': lambda: plan_of('trajectory', 'sdpo'),
    'tree': lambda: plan_of('tree', 'sparse', splits=(1, 2)),
    'every 2': lambda: plan_of('trajectory', 'dense', completion_every=2),
    'after': lambda: plan_of('trajectory', 'dense_baseline'),
}


def make_run(folder, *, updates=4, iterations=4, prompt=EVIL, every=2, recipe=False):
    """A run of `iterations` updates, of which `updates` are done. recipe: whether it says that its
    recipe evaluates at other updates.
    """
    folder.mkdir(parents=True)
    config = default_config()
    config.iterations, config.label = iterations, 'made up'
    config.eval.every = every
    config.rollout.prompts, config.rollout.group = 1, SAMPLES
    (folder / 'config.json').write_text(config.to_json_best_effort(indent=2))
    config.eval.every = every + 3  # beside the recipe
    if recipe:
        (folder / RECIPE).write_text(config.to_json_best_effort(indent=2))
    for name in ('samples', 'guard'):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    with open(folder / 'metrics.jsonl', 'w') as file:
        for step in range(updates + 1):
            row = {'step': step}
            if step:
                row |= {'train/reward': 0.5 + 0.01 * step, 'train/kl': 0.001 * step}
                row |= {'train/nfe': 24.0 * step, 'train/seconds': 2.0 * step}
                row |= {'zero_spread/step_0': 0.0, 'zero_spread/step_1': 0.5, 'train/grad_norm': 1}
                row |= {'seconds/sample': 1.5, 'seconds/update': 0.5, 'seconds/iteration': 2.0}
            if step % every == 0:
                row |= {'eval/total': 0.4 + 0.1 * step, 'eval/standard_error': 0.05}
                row |= {'eval/ocr': 0.4 + 0.1 * step, 'eval/seconds': 1.0}
                sheet = rng.integers(0, 255, (60, 100, 3), np.uint8)
                Image.fromarray(sheet).save(folder / 'samples' / f'step_{step:06d}.png')
            file.write(json.dumps(row) + '\n')
    for step in range(every, updates + 1, every):
        make_group(folder, step, prompt)
        Image.new('RGB', (80, 40), 'navy').save(folder / 'guard' / f'verdict_{step:06d}.png')
    if updates == iterations:
        (folder / 'summary.json').write_text(json.dumps({'updates': updates, 'score': 'total'}))
    return folder


def make_group(folder, step, prompt=EVIL):
    """Group 0 of an update; sample b is grey of the value 40 b, its score rises by 0.1 a state."""
    advantages = np.array([[1.5, -1.5, 0.5, np.nan], [0.0, 1.0, -1.0, 0.25]])
    return _write(folder, step, prompt, plan(), advantages, np.array([0.7, 0.3, 0.0]))


def make_group_of(folder, step, rollout):
    """The same with another plan. The transition from grid index k has the advantage k + b / 10."""
    rows = rollout.transitions
    trained = np.array(rows.k_from)[np.array(rows.trained)]
    advantages = trained[:, None] + np.arange(SAMPLES) / 10
    return _write(folder, step, 'a prompt', rollout, advantages, np.where(rows.noisy, 0.5, 0.0))


def _write(folder, step, prompt, rollout, advantages, std):
    images = len(rollout.completions)
    pictures = np.full((images, SAMPLES, 8, 16, 3), 40, np.uint8)
    pictures *= np.arange(SAMPLES, dtype=np.uint8)[:, None, None, None]
    scores = 0.1 * np.arange(images)[:, None] + 0.2 * np.arange(SAMPLES)
    valid = np.ones((images, SAMPLES), bool)
    valid[0, 1] = images == 1
    return write_groups(
        folder / 'groups',
        step,
        rollout,
        [(np.arange(SAMPLES), pictures)],
        [prompt],
        np.zeros(SAMPLES, int),
        {'total': scores, 'ocr': scores / 2},
        valid,
        advantages,
        np.flatnonzero(rollout.transitions.trained).tolist(),
        std,
    )
