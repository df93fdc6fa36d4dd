"""Command: pictures from a base model, or from what a training run made of it.

    python -m densegrpo_jax.sample --config=configs/tiny_ocr.py \\
        --prompt='A neon sign that says "HELLO"' --out=hello.png
    python -m densegrpo_jax.sample --config=configs/tiny_ocr.py --workdir=runs/tiny_ocr \\
        --prompts=prompts.txt --copies=4

With --workdir the sheet shows the run's adapters; add --compare to see the base model's pictures
from the same noise beside them.
"""

from __future__ import annotations

import pathlib

import jax
import numpy as np
from absl import app, flags, logging

from densegrpo_jax.config.command_line import define_config, define_folder, run_main
from densegrpo_jax.data.prompts import PromptSet
from densegrpo_jax.runtime import console
from densegrpo_jax.runtime.images import save_grid
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.streams import STREAM_EVAL, key_data, stream_key
from densegrpo_jax.sampling.loading import load_policy
from densegrpo_jax.sampling.sampler import make_sampler
from densegrpo_jax.sampling.session import check, load


def sample(
    config,
    prompts: list[str],
    *,
    workdir=None,
    checkpoint='best',
    copies=1,
    steps=0,
    seed=0,
    compare=False,
) -> tuple[np.ndarray, list[str]]:
    """uint8 [N, H, W, 3] and captions; prompt-major, with `compare` each picture after the base
    model's.
    """
    mesh = make_mesh({'data': 1, 'fsdp': -1, 'tensor': 1})
    checked = check(config, mesh)
    policies = [] if workdir else [('base', None)]
    if workdir:
        run = pathlib.Path(workdir)
        policy, step = load_policy(checked.pipeline, config, mesh, run, checkpoint)
        policies = [('base', None)] * compare + [(f'step {step}', policy)]
    session = load(checked, prompts)
    sampler = make_sampler(session.pipeline, config, steps or config.eval.steps, mesh)
    root = stream_key(seed, STREAM_EVAL, 1)
    images, captions = [], []
    for i, prompt in enumerate(prompts):
        keys = jax.vmap(lambda c: jax.random.fold_in(jax.random.fold_in(root, i), c))(
            np.arange(copies)
        )
        text = session.conditioning([prompt] * copies), session.negative
        rows = [
            np.asarray(sampler(session.params, policy, *text, key_data(keys))[0])
            for _, policy in policies
        ]
        images.append(np.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:]))
        captions += [f'{name}: {prompt}' for _ in range(copies) for name, _ in policies]
        logging.info('%d of %d prompts', i + 1, len(prompts))
    return np.concatenate(images), captions


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; give prompts as --prompt="..."')
    console.start()
    try:
        prompts = list(flags.FLAGS.prompt)
        if flags.FLAGS.prompts:
            prompts += [
                p.text for p in PromptSet.from_text(flags.FLAGS.prompts, quoted_target=False)
            ]
        if not prompts:
            raise ValueError('nothing to draw: give --prompt="..." or --prompts=FILE')
        images, captions = sample(
            flags.FLAGS.config,
            prompts,
            workdir=flags.FLAGS.workdir,
            checkpoint=flags.FLAGS.checkpoint,
            copies=flags.FLAGS.copies,
            steps=flags.FLAGS.steps,
            seed=flags.FLAGS.seed,
            compare=flags.FLAGS.compare,
        )
    except (ValueError, FileNotFoundError) as error:
        logging.error('%s', error)
        return 2
    out, width = pathlib.Path(flags.FLAGS.out), images.shape[2]
    save_grid(
        out,
        images,
        columns=max(1, min(len(images), 1536 // max(width, 192))),
        scale=max(1, 192 // width),
        captions=captions,
    )
    if flags.FLAGS.single:
        for i, image in enumerate(images):
            save_grid(out.with_name(f'{out.stem}_{i:04d}.png'), image[None], columns=1)
    logging.info('made %s: %d pictures', out, len(images))
    return 0


def define_flags() -> None:
    """Only the command itself has flags: importing this module defines none."""
    define_config('Configuration: model, size, guidance and, with --workdir, the adapters.')
    define_folder('workdir', None, 'Training run whose adapters are used; none: the base model.')
    flags.DEFINE_string('checkpoint', 'best', "'best', 'latest' or a step of that run.")
    flags.DEFINE_multi_string('prompt', [], 'A prompt; may be given more than once.')
    flags.DEFINE_string('prompts', None, 'Text file with one prompt a line.')
    flags.DEFINE_integer('copies', 1, 'Pictures per prompt.', lower_bound=1)
    flags.DEFINE_integer('steps', 0, 'ODE steps; 0 = config.eval.steps.', lower_bound=0)
    flags.DEFINE_integer(
        'seed', 0, 'Seed of the noise: picture c of prompt i depends on (seed, i, c) alone.'
    )
    flags.DEFINE_bool(
        'compare', False, 'With --workdir: also the base model, same noise, each pair side by side.'
    )
    define_folder(
        'out', 'samples.png', 'Contact sheet to write; --single also writes every picture.'
    )
    flags.DEFINE_bool(
        'single', False, 'Also write every picture as a PNG of its own, next to --out.'
    )


if __name__ == '__main__':
    define_flags()
    flags.mark_flag_as_required('config')
    run_main(main)
