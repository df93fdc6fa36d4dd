"""Images of prompts, from the base model and from a trained policy."""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging

from densegrpo_jax.runtime.images import made_by, save_grid
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.streams import STREAM_EVAL, key_data, stream_key
from densegrpo_jax.sampling.conditioning import warn_of_cut
from densegrpo_jax.sampling.diagnosis import explain
from densegrpo_jax.sampling.loading import find_step, load_policy
from densegrpo_jax.sampling.sampler import make_sampler
from densegrpo_jax.sampling.session import check, load

MAKER = 'densegrpo sample'


def draw(
    config,
    prompts: Sequence[str],
    *,
    workdir=None,
    checkpoint='best',
    copies=1,
    steps=0,
    seed=0,
    compare=False,
    keep: Callable[[int, np.ndarray], object] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """uint8 [N, H, W, 3] and captions; prompt-major, with `compare` each image after the base
    model's. At most `eval.batch` images are drawn together. Images that are not finite are black,
    and a warning counts them.

    keep: called with the number of each image and the image, as soon as its batch is drawn.

    Raises:
      ValueError: no image of a policy is finite, and the base, the policy or the prompts'
        conditioning is the cause.
    """
    mesh = make_mesh({'data': 1, 'fsdp': -1, 'tensor': 1})
    if workdir:
        find_step(pathlib.Path(workdir), checkpoint)  # before the model is opened
    checked = check(config, mesh)
    warn_of_cut(checked.pipeline, prompts, 'sample')
    policies = [] if workdir else [('base', None)]
    if workdir:
        run = pathlib.Path(workdir)
        policy, step = load_policy(
            checked.pipeline, config, mesh, run, checkpoint, checked.base_digest
        )
        policies = [('base', None)] * compare + [(f'step {step}', policy)]
    sampler = make_sampler(checked.pipeline, config, steps or config.eval.steps, mesh)
    session = load(checked, prompts)
    root = stream_key(seed, STREAM_EVAL, 1)
    size = -(-copies // -(-copies // config.eval.batch))  # of batches that are all alike
    images, captions, intact, kept = [], [], [], itertools.count()
    for i, prompt in enumerate(prompts):
        text = session.conditioning([prompt] * size), session.negative
        own = functools.partial(jax.random.fold_in, jax.random.fold_in(root, i))
        for start in range(0, copies, size):
            keys = key_data(jax.vmap(own)(np.arange(start, start + size)))
            drawn = (sampler(session.params, policy, *text, keys) for _, policy in policies)
            wanted = [[np.asarray(a)[: copies - start] for a in pair] for pair in drawn]
            rows, finite = (np.stack(of, axis=1) for of in zip(*wanted))
            images.append(rows.reshape(-1, *rows.shape[2:]))
            for image in images[-1] if keep else ():
                keep(next(kept), image)
            intact.append(finite)
        captions += [f'{name}: {prompt}' for _ in range(copies) for name, _ in policies]
        logging.info('%d of %d prompts', i + 1, len(prompts))
    finite = np.concatenate(intact)  # [images of a policy, policies]
    for (_, policy), any_finite in zip(policies, finite.any(0)):
        if not any_finite:
            explain(session, policy, prompts)
    if lost := int((~finite).sum()):
        logging.warning('%d of %d images are black: they are not finite', lost, finite.size)
    return np.concatenate(images), captions


def write_sheet(out: pathlib.Path, images: np.ndarray, captions: Sequence[str]) -> None:
    """Writes a contact sheet of `draw`."""
    width = images.shape[2]
    columns, scale = max(1, min(len(images), 1536 // max(width, 192))), max(1, 192 // width)
    save_grid(out, images, columns=columns, scale=scale, captions=captions, maker=MAKER)


def write_single(out: pathlib.Path, i: int, image: np.ndarray) -> None:
    """Writes image i of `draw` as a separate PNG beside the sheet."""
    save_grid(single_file(out, i), image[None], columns=1, maker=MAKER)


def single_file(out: pathlib.Path, i: int) -> pathlib.Path:
    """The file of image i beside the sheet."""
    return out.with_name(f'{out.stem}_{i:04d}.png')


def is_drawn(path: pathlib.Path) -> bool:
    """Whether `write_sheet` or `write_single` has written a file."""
    return made_by(path) == MAKER
