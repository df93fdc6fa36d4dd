"""Command: images from a base model, or from a trained policy.

    python -m densegrpo_jax.sample --config=configs/tiny_ocr.py \\
        --prompt='A neon sign that says "HELLO"' --out=hello.png
    python -m densegrpo_jax.sample --workdir=runs/tiny_ocr --prompts=prompts.txt --copies=4

With --workdir the sheet shows the run's policy, in the run's own configuration unless --config
names another; add --compare to see the base model's images from the same noise beside them.
"""

from __future__ import annotations

import functools
import pathlib

from absl import flags, logging

from densegrpo_jax.config.command_line import (
    define_config,
    define_policy_flags,
    goes_with,
    run_main,
    say_start,
)
from densegrpo_jax.config.flag_types import define_output, define_whole
from densegrpo_jax.data.prompts import check_text
from densegrpo_jax.runtime.paths import foreign, writable


def main(flag) -> None:
    out, prompts = writable(flag.out), [check_text(p, '--prompt') for p in flag.prompt]
    if flag.prompts:
        from densegrpo_jax.data.prompt_files import prompts_from

        prompts += [p.text for p in prompts_from(flag.prompts, quoted_target=False)]
    if not prompts:
        raise ValueError('nothing to draw: give --prompt="..." or --prompts=FILE')
    say_start('sample', flag.out)

    from densegrpo_jax.sampling.draw import draw, is_drawn, single_file, write_sheet, write_single

    if flag.single:
        for i in range(len(prompts) * flag.copies * (1 + flag.compare)):
            if problem := foreign(single_file(out, i), is_drawn):
                raise ValueError(f'--single: {problem}')
    images, captions = draw(
        flag.config,
        prompts,
        workdir=flag.workdir,
        checkpoint=flag.checkpoint,
        copies=flag.copies,
        steps=flag.steps,
        seed=flag.seed,
        compare=flag.compare,
        keep=functools.partial(write_single, out) if flag.single else None,
    )
    write_sheet(out, images, captions)
    logging.info('made %s: %d images', flag.out, len(images))


def _is_drawn(path: pathlib.Path) -> bool:
    from densegrpo_jax.sampling.draw import is_drawn

    return is_drawn(path)


if __name__ == '__main__':
    what = 'Configuration: model, size, guidance, policy; without it that of the run in --workdir.'
    define_config(what, reads='sample', of_run=True)
    define_policy_flags('drawn')
    define_whole('copies', 1, 'Images per prompt.', 1, 10_000)
    define_whole('steps', 0, 'ODE steps; 0 = config.eval.steps.', 0, 1000)
    seeded = 'Seed of the noise: image c of prompt i depends on (seed, i, c) alone.'
    define_whole('seed', 0, seeded, 0, 2**32 - 1)
    flags.DEFINE_bool(
        'compare', False, 'With --workdir: also the base model, same noise, each pair side by side.'
    )
    sheet = 'Contact sheet to write; --single also writes every image.'
    define_output('out', 'samples.png', sheet, '.png', _is_drawn)
    goes_with('compare', 'workdir')
    flags.DEFINE_bool('single', False, 'Also write every image as a separate PNG, next to --out.')
    flags.mark_flag_as_required('config')
    run_main(main)
