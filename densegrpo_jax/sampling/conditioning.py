"""The prompt sets that a configuration names, and their conditioning: encoded once, then gathered
by index.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.data.prompt_files import prompts_from
from densegrpo_jax.data.prompts import (
    Prompt,
    PromptSet,
    check_text,
    panel_prompts,
    tiny_eval_prompts,
    tiny_train_prompts,
)
from densegrpo_jax.data.scenes import scene_prompts
from densegrpo_jax.data.shapes import shapes_eval_prompts, shapes_train_prompts
from densegrpo_jax.pipelines.base import Conditioning, Pipeline, take_rows
from densegrpo_jax.pipelines.folder import load_params
from densegrpo_jax.rewards.build import reads_targets
from densegrpo_jax.rewards.local.ocr import normalise
from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.mesh import batch_sharding, batch_shards, replicated
from densegrpo_jax.runtime.outputs import is_shared
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.reading import shown
from densegrpo_jax.runtime.sharding import shardings
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.conditioning_cache import TextCache, fingerprint

EVAL_SCENES = 1024  # size of the generated evaluation set
BATCH = 32  # prompts of a call of the text encoders


def load_prompts(config, split: str) -> PromptSet:
    """The prompt set `config.data.train`, or the first `data.eval_prompts` of `.eval`; see
    `named_prompts`.

    If the OCR reward is used, under any key, each line of a text file holds its target in straight
    double quotes.
    """
    quoted = reads_targets(config.reward)
    prompts = named_prompts(config, config.data[split], split, quoted_target=quoted)
    return PromptSet(prompts[: config.data.eval_prompts or None]) if split == 'eval' else prompts


def load_panel_prompts(config) -> PromptSet | None:
    """The prompt set `config.eval.panel_prompts`; None if it is empty: then the panel scores the
    evaluation's images.
    """
    name = config.eval.panel_prompts
    return (
        named_prompts(config, name, 'eval', quoted_target=reads_targets(config.eval.panel))
        if name
        else None
    )


def named_prompts(config, name: str, split: str, *, quoted_target: bool) -> PromptSet:
    """A prompt set by its name.

    'tiny' is the set of the miniature that spells (training words, or held-out words),
    'tiny_shapes' that of the miniature that draws coloured shapes, 'scenes' the generated OCR
    scenes (the two splits of each are disjoint), 'panel' our own set that measures what was not
    trained on. Anything else is a file or a data set of the Hub, see `prompts_from`.

    Raises:
      ValueError, FileNotFoundError: the file cannot be read, or the set is empty.
      ModuleNotFoundError: a Parquet file needs pyarrow.
    """
    if not name.strip():
        raise ValueError(
            f"there are no prompts to {split} on: data.{split}={name!r}; name a file, or 'scenes', "
            "'tiny' or 'tiny_shapes'"
        )
    prompts = own_prompts(config, name, split)
    if prompts is None:
        prompts = prompts_from(name, split, quoted_target=quoted_target)
    return PromptSet(tuple(prompts))


def own_prompts(config, name: str, split: str) -> Sequence[Prompt] | None:
    """Those of `named_prompts` that come with the package; None for others."""
    if name == 'tiny':
        return tiny_train_prompts() if split == 'train' else tiny_eval_prompts()
    if name == 'tiny_shapes':
        return shapes_train_prompts() if split == 'train' else shapes_eval_prompts()
    if name == 'scenes':
        if split == 'train':
            return scene_prompts(config.data.scenes + EVAL_SCENES, seed=0)[EVAL_SCENES:]
        return scene_prompts(EVAL_SCENES, seed=0)  # with which the longer set begins
    return panel_prompts() if name == 'panel' else None


def evaluated_prompts(config) -> int | None:
    """Number of prompts of an evaluation, without making scenes; None if only a file that is not
    read knows it.
    """
    name, asked = config.data.eval, config.data.eval_prompts
    if name == 'scenes':
        there = EVAL_SCENES
    elif (own := own_prompts(config, name, 'eval')) is not None:
        there = len(own)
    else:
        return asked or None
    return min(asked or there, there)


def cut_prompts(pipeline: Pipeline, texts: Sequence[str]) -> list[int]:
    """Indices of the prompts [N] that no text encoder reads to their end."""
    distinct = list(dict.fromkeys(texts))
    read = dict(zip(distinct, pipeline.reads(distinct)))
    return [i for i, text in enumerate(texts) if not read[text]]


def unread_targets(pipeline: Pipeline, prompts: PromptSet, cut: Iterable[int]) -> list[int]:
    """Indices of the prompts whose target ends beyond the tokens that the text encoders read: the
    model never learns what it should write. cut: `cut_prompts`; the others' targets are read.
    """
    until = {
        i: p.text[: p.text.index(p.target) + len(p.target)]
        for i, p in ((i, prompts[i]) for i in cut)
        if p.target and p.target in p.text
    }
    if not until:
        return []
    return [i for i, read in zip(until, pipeline.reads([*until.values()])) if not read]


def warn_of_cut(
    pipeline: Pipeline, texts: Sequence[str], key: str, cut: Sequence[int] | None = None
) -> None:
    """Warns of the prompts [N] that `key` names which no text encoder reads to their end. cut:
    their indices; None: `cut_prompts`.
    """
    if cut is None:
        cut = cut_prompts(pipeline, texts)
    if cut:
        logging.warning(
            '%s: %d of %d prompts are longer than the %s that the text encoders read, so the model '
            'never sees their ends. The first is prompt %d, %s: %s',
            *(key, len(cut), len(texts), _lengths(pipeline), cut[0] + 1),
            *(shown(texts[cut[0]], 60), _shorter(pipeline)),
        )


def _lengths(pipeline: Pipeline) -> str:
    return f'{" and ".join(map(str, pipeline.token_lengths))} tokens'


def _shorter(pipeline: Pipeline) -> str:
    """What to do about prompts that are too long."""
    if any(encoder.chosen_length for encoder in pipeline.TEXT_ENCODERS):
        return f'shorten them, or raise model.t5_length={pipeline.text_length}'
    return 'shorten them'


def check_prompts(pipeline: Pipeline, prompts: PromptSet, key: str) -> None:
    """Warns, in the prompts that `key` names, of targets that do not occur in their prompt, of
    `unread_targets`, and of other prompts that are too long; ValueError if all targets are unread.
    """
    absent = [
        i
        for i, p in enumerate(prompts)
        if p.target and p.target not in p.text and normalise(p.target) not in normalise(p.text)
    ]
    if absent:
        first = prompts[absent[0]]
        logging.warning(
            '%s: the targets of %d of %d prompts do not occur in their prompt, so the model cannot '
            'know them. The first is prompt %d, %s, with the target %s',
            *(key, len(absent), len(prompts), absent[0] + 1),
            *(shown(first.text, 60), shown(first.target, 60)),
        )
    texts = [prompt.text for prompt in prompts]
    cut = cut_prompts(pipeline, texts)
    if found := unread_targets(pipeline, prompts, cut):
        said = (
            f'{key}: the targets of {len(found)} of {len(prompts)} prompts lie beyond the '
            f'{_lengths(pipeline)} that the text encoders read, so the model cannot know them. The '
            f'first is prompt {found[0] + 1}, {shown(prompts[found[0]].text, 60)}: '
            f'{_shorter(pipeline)}'
        )
        if len(found) == len(prompts):
            raise ValueError(said)
        logging.warning('%s', said)
    told = {*found}
    warn_of_cut(pipeline, texts, key, [i for i in cut if i not in told])


def content_hash(prompts: PromptSet) -> str:
    """A short hash of the prompts' texts and metadata, in their order."""
    return hashlib.sha256(
        json.dumps([[p.text, p.metadata] for p in prompts], sort_keys=True).encode()
    ).hexdigest()[:12]


def place(cache: TextCache, texts: list[str], mesh: Mesh) -> Conditioning:
    """The conditioning of `texts` for a program over the mesh; each process reads the prompts of
    its own devices.
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
    folder: pathlib.Path,
    pipeline: Pipeline,
    prompts: Iterable[str],
    mesh: Mesh,
    stop: StopRequest,
    directory: pathlib.Path | None = None,
) -> TextCache:
    """The cache that holds the conditioning of all `prompts`. Missing prompts are encoded now, and
    the encoders' memory is then freed.

    Args:
      folder: of the pipeline.
      mesh: the encoders' weights are split over it.
      stop: a stop between two batches loses nothing.
      directory: of the cache, unless `config.text_cache` names one; None: in memory, for a single
        process only.

    Raises:
      ValueError: a prompt cannot be used, or other processes of the run have other prompts.
      Preempted: a stop was requested.
    """
    dtype = jnp.dtype(config.model.dtype)
    if config.text_cache:
        directory = pathlib.Path(config.text_cache).expanduser()
    key = '' if directory is None else fingerprint(folder, pipeline, dtype)
    cache = TextCache(directory, key, pipeline.conditioning_shapes(1))
    prompts = list(dict.fromkeys(prompts))
    for text in prompts:
        check_text(text, 'prompt')
    hosts, exchange = stop.communicator.hosts, stop.communicator.exchange
    asked = hashlib.sha256('\n'.join(prompts).encode()).digest()
    if any(other != asked for other in exchange(asked)):
        raise ValueError(
            'the processes of the run were given different prompts: start all with the same '
            'command, on equal files'
        )
    several = directory is not None and hosts.count > 1
    shared = several and is_shared(directory, stop.communicator)
    writer = (hosts.index, hosts.count) if shared else (0, 1)
    missing, anew = _missing(cache, prompts, stop.communicator, *writer)
    if missing:
        named = hashlib.sha256('\n'.join(missing).encode()).hexdigest()[:16]
        with Agreement(hosts, f'text/{named}').alike():
            cache.check_room(missing)
        logging.info('encoding %d prompts into %s', len(missing), directory or 'memory')
        split = lambda tree: shardings(tree, mesh, pipeline.sharding_rules)
        params = load_params(folder, pipeline, pipeline.text_encoders, dtype=dtype, shardings=split)
        encode = compiled_encode(pipeline, mesh)

        def encoded(texts: list[str]) -> Conditioning:
            """Filled up to BATCH, so that one compiled program serves all numbers."""
            padded = [*texts, *texts[-1:] * (BATCH - len(texts))]
            rows = jax.device_get(encode(params, *pipeline.tokenize(padded)))
            return take_rows(rows, slice(len(texts)))

        with ProgressBar(
            len(missing), label='prompts', every_seconds=10, show=hosts.primary, unit='prompt'
        ) as bar:

            def done(count: int) -> None:
                bar.update(count)
                exchange()

            cache.fill(missing, encoded, BATCH, done, anew, writer)
    return cache


def _missing(
    cache: TextCache, prompts: list[str], communicator: Communicator, index: int, count: int
) -> tuple[list[str], set[str]]:
    """The prompts that are to be encoded, alike in all processes, and those of them that replace
    what is stored.

    count: of processes that share the folder; each, as this one, looks for its part of the prompts.
    1: each looks for all.
    """
    here = list(cache.stored(prompts[index::count]).values())
    if count > 1:
        found = np.full(len(prompts), np.nan, np.float32)
        found[index::count] = [bool(says) for says in here]
        found = communicator.merge(found)
        return [prompt for prompt, there in zip(prompts, found) if not there], set()
    # On separate disks some may miss a prompt, or have it of another run, whose devices rounded
    # otherwise. Then all encode it, and store the same.
    first = communicator.of_primary(here)
    unlike = [1 if a != b else np.nan for a, b in zip(here, first, strict=True)]
    anew = communicator.merge(np.array(unlike, np.float32)) == 1
    of = lambda mask: [prompt for prompt, yes in zip(prompts, mask) if yes]
    return of(anew | np.array([not says for says in first], bool)), set(of(anew))


def compiled_encode(pipeline: Pipeline, mesh: Mesh) -> Callable[..., Conditioning]:
    """`pipeline.encode` as one program, whose result every device has."""
    return jax.jit(pipeline.encode, out_shardings=replicated(mesh))
