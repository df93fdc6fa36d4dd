"""Command: learns the direction of D2-Align (arXiv 2512.24146) for a reward with an embedding,
before training.

    python -m densegrpo_jax.direction --config=configs/tiny_scene.py --workdir=runs/scene \\
        --out=runs/scene/direction.npz
    python -m densegrpo_jax.main --config=configs/tiny_scene.py:method=d2_align \\
        --workdir=runs/scene_d2 --config.d2.file=runs/scene/direction.npz

Draws `d2.pictures` with the base model, embeds them and their prompts as the reward does, and fits
one vector b for all prompts that raises the mean guided reward (docs/d2_align.md). Writes an npz
file with b, its reward, the fingerprint of the reward's weights and what the fit reports: |b|, the
objective with and without b, and the shares of the text and of b in the variance of the guided
reward. Exit status as `densegrpo_jax.main`; a stopped command continues.
"""

from __future__ import annotations

import pathlib

from absl import flags

from densegrpo_jax.config.command_line import define_run_flags, run_main, say_start
from densegrpo_jax.config.flag_types import define_output
from densegrpo_jax.runtime.paths import writable

FILE = 'direction.npz'


def main(flag) -> int:
    config = flag.config
    out = writable(flag.out or pathlib.Path(flag.workdir) / FILE)
    say_start('direction', out)

    from densegrpo_jax.calibration.direction import run
    from densegrpo_jax.rewards.directional import read_direction
    from densegrpo_jax.sampling.execution import execute

    if out.exists():
        read_direction(out)  # an error if the command would overwrite another kind of file
    work = lambda workdir, mesh, stop: run(config, workdir, out, mesh, stop)
    return execute(flag, config.eval.batch, work, command='direction')[0]


if __name__ == '__main__':
    define_run_flags(reads='direction')
    define_output('out', None, 'The direction file; default WORKDIR/direction.npz.', '.npz')
    flags.mark_flags_as_required(['config', 'workdir'])
    run_main(main)
