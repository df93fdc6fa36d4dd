"""Command: images from a base model, or from a trained policy.

    python -m densegrpo_jax.sample --config=configs/tiny_ocr.py \\
        --prompt='A neon sign that says "HELLO"' --out=hello.png
    python -m densegrpo_jax.sample --config=configs/tiny_ocr.py --workdir=runs/tiny_ocr \\
        --prompts=prompts.txt --copies=4

With --workdir the sheet shows the run's policy; add --compare to see the base model's images
from the same noise beside them.
"""

from __future__ import annotations

import pathlib

from absl import flags, logging

from densegrpo_jax.config.command_line import (
    define_config,
    define_folder,
    define_policy_flags,
    goes_with,
    run_main,
)
from densegrpo_jax.data.prompts import PromptSet
from densegrpo_jax.sampling.draw import draw, write_sheet


def main(flag) -> None:
    prompts = list(flag.prompt)
    if flag.prompts:
        prompts += [p.text for p in PromptSet.from_text(flag.prompts, quoted_target=False)]
    if not prompts:
        raise ValueError('nothing to draw: give --prompt="..." or --prompts=FILE')
    images, captions = draw(
        flag.config,
        prompts,
        workdir=flag.workdir,
        checkpoint=flag.checkpoint,
        copies=flag.copies,
        steps=flag.steps,
        seed=flag.seed,
        compare=flag.compare,
    )
    write_sheet(pathlib.Path(flag.out), images, captions, single=flag.single)
    logging.info('made %s: %d images', flag.out, len(images))


def define_flags() -> None:
    """Defines the flags; importing this module defines none."""
    define_config('Configuration: model, size, guidance and, with --workdir, the policy.')
    define_policy_flags('drawn')
    flags.DEFINE_integer('copies', 1, 'Images per prompt.', lower_bound=1)
    flags.DEFINE_integer('steps', 0, 'ODE steps; 0 = config.eval.steps.', lower_bound=0)
    flags.DEFINE_integer(
        'seed', 0, 'Seed of the noise: image c of prompt i depends on (seed, i, c) alone.'
    )
    flags.DEFINE_bool(
        'compare', False, 'With --workdir: also the base model, same noise, each pair side by side.'
    )
    define_folder('out', 'samples.png', 'Contact sheet to write; --single also writes every image.')
    goes_with('compare', 'workdir')
    flags.DEFINE_bool('single', False, 'Also write every image as a separate PNG, next to --out.')


if __name__ == '__main__':
    define_flags()
    flags.mark_flag_as_required('config')
    run_main(main)
