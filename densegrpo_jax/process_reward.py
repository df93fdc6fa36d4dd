"""Command: fits a process reward, a reward of noisy latents, for rollouts that drift along its
gradient (Euphonium, arXiv 2602.04928), before training.

    python -m densegrpo_jax.process_reward --config=configs/tiny_ocr.py:method=euphonium \\
        --workdir=runs/process --out=runs/process/process.npz
    python -m densegrpo_jax.main --config=configs/tiny_ocr.py:method=euphonium \\
        --workdir=runs/tiny_euphonium --config.guide.file=runs/process/process.npz

Samples `guide.samples` rollouts of the base model with the configuration's noise, scores their
images, and fits the reward by ridge regression on the base network's last hidden states at every
state of the rollouts (docs/euphonium.md). Any reward will do. Prints R^2 at every noise level, on
prompts that were held out, over all samples and within a prompt. Writes an npz file with the
weights of the regression, a fingerprint of the base, the reward and the grid that they belong to,
and these numbers. Exit status as `densegrpo_jax.main`; a stopped fit continues.
"""

from __future__ import annotations

import pathlib

from absl import flags

from densegrpo_jax.config.command_line import define_run_flags, run_main, say_start
from densegrpo_jax.config.flag_types import define_output
from densegrpo_jax.runtime.paths import writable

FILE = 'process.npz'


def main(flag) -> int:
    r = flag.config.rollout
    out = writable(flag.out or pathlib.Path(flag.workdir) / FILE)
    say_start('process-reward', out)

    from densegrpo_jax.calibration.process_reward import run
    from densegrpo_jax.sampling.execution import execute
    from densegrpo_jax.sampling.process_reward import read_probe

    if out.exists():
        read_probe(out, '--out')  # an error if the command would overwrite another kind of file
    work = lambda workdir, mesh, stop: run(flag.config, workdir, out, mesh, stop)
    return execute(flag, r.prompts_per_batch * r.group, work, command='process-reward')[0]


if __name__ == '__main__':
    define_run_flags(reads='process_reward')
    define_output('out', None, 'The file; default WORKDIR/process.npz.', '.npz')
    flags.mark_flags_as_required(['config', 'workdir'])
    run_main(main)
