"""Command: measures before training: does this reward teach this model, what does each credit tell
at what price, what will a run cost?

    python -m densegrpo_jax.preflight --config=configs/tiny_ocr.py --workdir=runs/preflight

Samples a group for each of --prompts training prompts with the configuration's model, noise and
reward. Every state of every sample gets a twin, which goes on from there with other noise, and
completions (docs/preflight.md). Prints what decides the reward, the signal of each credit and its
price, and what a run costs. Writes WORKDIR/preflight.json, and index.html with the pictures
behind the numbers. After a stop, the same command continues. Exit status as `densegrpo_jax.main`.
"""

from __future__ import annotations

from absl import flags

from densegrpo_jax.config.command_line import define_run_flags, run_main, say_start
from densegrpo_jax.config.flag_types import define_whole
from densegrpo_jax.preflight import COARSE


def main(flag) -> int:
    say_start('preflight', flag.workdir)

    from densegrpo_jax.preflight.run import run
    from densegrpo_jax.sampling.execution import execute

    work = lambda workdir, mesh, stop: run(
        flag.config,
        workdir,
        mesh,
        stop,
        prompts=flag.prompts,
        group=flag.group,
        coarse=[int(n) for n in flag.completions],
    )
    return execute(flag, flag.group, work, command='preflight')[0]


if __name__ == '__main__':
    define_run_flags(reads='preflight')
    define_whole('prompts', 32, 'Training prompts to measure.', 4, 100_000)
    define_whole('group', 8, 'Samples of each.', 2, 1000)
    flags.DEFINE_list(
        'completions',
        [*map(str, COARSE)],
        'Steps of the completions measured beside those of all steps.',
    )
    flags.register_validator(
        'completions',
        lambda given: all(n.isascii() and n.isdigit() and int(n) for n in given),
        'expected whole numbers from 1, such as 1,3',
    )
    flags.mark_flags_as_required(['config', 'workdir'])
    run_main(main)
