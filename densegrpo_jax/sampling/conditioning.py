"""The prompt sets that a configuration names, and their conditioning: encoded once, then gathered
by index.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.data.geneval import geneval_prompts
from densegrpo_jax.data.prompts import (
    PromptSet,
    panel_prompts,
    tiny_eval_prompts,
    tiny_train_prompts,
)
from densegrpo_jax.data.scenes import scene_prompts
from densegrpo_jax.data.shapes import shapes_eval_prompts, shapes_train_prompts
from densegrpo_jax.pipelines.base import Conditioning, Pipeline, take_rows
from densegrpo_jax.pipelines.folder import load_params
from densegrpo_jax.runtime.mesh import batch_sharding, batch_shards, replicated
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.sharding import shardings
from densegrpo_jax.sampling.conditioning_cache import TextCache, fingerprint

EVAL_SCENES = 1024  # size of the generated evaluation set


def load_prompts(config, split: str) -> PromptSet:
    """The prompt set `config.data.train` or `.eval`, see `named_prompts`; of the second,
    `data.eval_prompts`.

    Where the OCR reward is used, a text file's lines each hold their target in straight double
    quotes.
    """
    prompts = named_prompts(config, config.data[split], split, quoted_target='ocr' in config.reward)
    return PromptSet(prompts[: config.data.eval_prompts or None]) if split == 'eval' else prompts


def load_panel_prompts(config) -> PromptSet | None:
    """The prompt set `config.eval.panel_prompts`; None where it is empty: the panel then scores the
    evaluation's pictures.
    """
    name = config.eval.panel_prompts
    return (
        named_prompts(config, name, 'eval', quoted_target='ocr' in config.eval.panel)
        if name
        else None
    )


def named_prompts(config, name: str, split: str, *, quoted_target: bool) -> PromptSet:
    """A prompt set by its name.

    'tiny' is the spelling miniature's (train words, or held-out words), 'tiny_shapes' the other
    one's (coloured shapes), 'scenes' the generated OCR scenes (the two splits of each are
    disjoint), 'panel' our own set for what was not trained on, NAME.jsonl a file of GenEval
    prompts, anything else a text file with one prompt a line.

    Raises:
      ValueError, FileNotFoundError: from reading the file; or an empty set.
    """
    if name == 'tiny':
        prompts = tiny_train_prompts() if split == 'train' else tiny_eval_prompts()
    elif name == 'tiny_shapes':
        prompts = shapes_train_prompts() if split == 'train' else shapes_eval_prompts()
    elif name == 'scenes':
        everything = scene_prompts(config.data.scenes + EVAL_SCENES, seed=0)
        prompts = everything[EVAL_SCENES:] if split == 'train' else everything[:EVAL_SCENES]
    elif name == 'panel':
        prompts = panel_prompts()
    elif name.endswith('.jsonl'):
        prompts = geneval_prompts(name)
    else:
        prompts = PromptSet.from_text(pathlib.Path(name), quoted_target=quoted_target)
    return PromptSet(tuple(prompts))


def content_hash(prompts: PromptSet) -> str:
    """A short hash of the prompts' texts and metadata, in their order."""
    return hashlib.sha256(
        json.dumps([[p.text, p.metadata] for p in prompts], sort_keys=True).encode()
    ).hexdigest()[:12]


def negative_conditioning(
    pipeline: Pipeline, config, encoder: Encoder | TextCache
) -> Conditioning | None:
    """The conditioning of the empty prompt, [1, ...], where classifier-free guidance is asked for;
    else None.
    """
    return encoder(['']) if pipeline.takes_negative(config.model.guidance) else None


def place(cache: TextCache, texts: list[str], mesh: Mesh) -> Conditioning:
    """The conditioning of `texts` for a program over the mesh; each process reads the prompts that
    its own devices hold.
    """
    if jax.process_count() == 1:
        return jax.tree.map(jnp.asarray, cache(texts))
    sharding = replicated(mesh) if len(texts) % batch_shards(mesh) else batch_sharding(mesh)

    def placed(name: str, shape: tuple[int, ...]) -> jax.Array:
        part = lambda index: cache(texts[index[0]])[name][(slice(None), *index[1:])]
        return jax.make_array_from_callback((len(texts), *shape), sharding, part)

    return {name: placed(name, a.shape[1:]) for name, a in cache(texts[:1]).items()}


def text_conditioning(
    config,
    workdir: pathlib.Path,
    folder,
    pipeline: Pipeline,
    prompts: Iterable[str],
    mesh: Mesh,
    stop,
) -> TextCache:
    """The cache that holds the conditioning of all `prompts`; what is missing is computed now, by
    encoders that are then let go.

    Args:
      workdir: the cache is WORKDIR/text, or `config.text_cache`.
      folder: of the pipeline.
      mesh: the encoders' weights are split over it.
      stop: StopRequest; a stop between two batches loses nothing.
    """
    dtype, directory = (
        jnp.dtype(config.model.dtype),
        pathlib.Path(config.text_cache or workdir / 'text').expanduser(),
    )
    key, shapes = fingerprint(folder, pipeline, dtype), pipeline.conditioning_shapes(1)
    cache = TextCache(directory, key, shapes)
    prompts = list(dict.fromkeys(prompts))
    here = set(cache.missing(prompts))
    # Processes on one disk miss the same prompts, processes with disks of their own may not; all
    # encode what any of them misses.
    masks = [
        np.frombuffer(mask, bool)
        for mask in stop.communicator.exchange(np.array([p in here for p in prompts]).tobytes())
    ]
    missing = [prompts[i] for i in np.flatnonzero(np.any(masks, axis=0))]
    if missing:
        logging.info('encoding %d prompts into %s', len(missing), directory)
        split = lambda tree: shardings(tree, mesh)
        params = load_params(folder, pipeline, pipeline.text_encoders, dtype=dtype, shardings=split)
        encoder = Encoder(pipeline, params, max_bytes=0, mesh=mesh)
        with ProgressBar(
            len(missing), label='prompts', every_seconds=10, show=stop.hosts.primary
        ) as bar:

            def done(count: int) -> None:
                bar.update(count)
                stop.communicator.exchange()

            cache.fill(missing, encoder, encoder.batch, done)
    return cache


class Encoder:
    """Prompts -> conditioning, in batches of fixed size so that one compiled program serves all of
    them.

    Prompts that were encoded lately are taken from the host's memory, of which `max_bytes` are used
    (T5-XXL states of one prompt of 128 tokens take 2 MiB). In a run of several processes all give
    the same prompts, and the `mesh`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        params: dict,
        batch: int = 32,
        max_bytes: int = 4 << 30,
        mesh: Mesh | None = None,
    ):
        self._pipeline, self._params, self.batch = (
            pipeline,
            {k: params[k] for k in pipeline.text_encoders},
            batch,
        )
        self._encode = jax.jit(
            pipeline.encode, **({'out_shardings': replicated(mesh)} if mesh else {})
        )
        self._cache: dict[str, Conditioning] = {}  # of one prompt each, oldest first
        self._max_bytes = max_bytes

    def __call__(self, texts: list[str]) -> Conditioning:
        """Conditioning of `texts`, numpy arrays [B, ...]."""
        new = [t for t in dict.fromkeys(texts) if t not in self._cache]
        for i in range(0, len(new), self.batch):
            part = new[i : i + self.batch]
            padded = part + [part[-1]] * (self.batch - len(part))
            rows = jax.device_get(self._encode(self._params, *self._pipeline.tokenize(padded)))
            for j, text in enumerate(part):
                self._cache[text] = take_rows(rows, j)
        found = [self._cache[t] for t in texts]
        while len(self._cache) * sum(a.nbytes for a in found[0].values()) > self._max_bytes:
            del self._cache[next(iter(self._cache))]
        return {name: np.stack([row[name] for row in found]) for name in found[0]}
