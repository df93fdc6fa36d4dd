"""Seeded evaluation: the plain ODE sampler on a fixed prompt list with fixed noise, scored by the
training reward and, if asked, others.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from densegrpo_jax.data.prompts import PromptSet, columns
from densegrpo_jax.evaluation.diversity import Embed, pairwise_diversity
from densegrpo_jax.evaluation.record import Record
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.images import save_grid
from densegrpo_jax.runtime.mesh import batch_shards
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.streams import STREAM_EVAL, key_data, stream_key
from densegrpo_jax.sampling.sampler import make_sampler
from densegrpo_jax.sampling.session import Session

DIVERSITY = 'diversity'
STRIP_SIDE = 512  # pixels: every evaluation keeps its strips on disk


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one evaluation: name -> float32 [N] (NaN where a prompt has no score), and the
    first images.

    With several images per prompt a score is their mean.
    """

    scores: dict[str, np.ndarray]
    # uint8 [shown, H, W, 3], the first image of each prompt, or `strip` of them; complete in the
    # primary process
    images: np.ndarray
    prompts: list[str]
    group: int = 1  # images per prompt
    seconds: float = 0.0  # duration

    def mean(self, name: str = 'total') -> float:
        return finite_mean(self.scores[name])

    def scored(self, name: str = 'total') -> int:
        """Prompts that have the score."""
        return int(np.isfinite(self.scores[name]).sum())

    def standard_error(self, name: str = 'total') -> float:
        """Standard error of the mean over prompts: sample standard deviation / sqrt(N)."""
        return standard_error(self.scores[name])

    def change(self, base: Evaluation, name: str = 'total') -> tuple[float, float]:
        """Mean difference to another evaluation of the same prompts, and its standard error, over
        the prompts that have scores in both.
        """
        difference = self.scores[name] - base.scores[name]
        return finite_mean(difference), standard_error(difference)

    @property
    def over_group(self) -> str:
        """The addition to a single prompt's score in a caption."""
        return f' (mean of {self.group})' if self.group > 1 else ''

    def save_sheet(self, path: pathlib.Path) -> None:
        """The images with their first score and prompt, as one PNG."""
        width, (first, *_) = self.images.shape[2], self.scores.values()
        captions = [f'{s:.2f}{self.over_group} {p}' for s, p in zip(first, self.prompts)]
        save_grid(
            path,
            self.images,
            columns=max(1, min(6, 1152 // width)),
            scale=max(1, 192 // width),
            captions=captions,
        )


def finite_mean(values: np.ndarray) -> float:
    """Mean of the values that are numbers; NaN if none is."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float('nan')


def standard_error(values: np.ndarray) -> float:
    """Of the mean of the values that are numbers; NaN of fewer than two."""
    values = values[np.isfinite(values)]
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float('nan')


class Sampled(NamedTuple):
    """A batch of prompts whose images are being scored; this process scores `mine`."""

    prompts: np.ndarray  # int [n]
    mine: np.ndarray  # int [m], indices in the batch
    finite: np.ndarray  # bool [n, G]
    futures: list[Future]  # Scores of m * G images, one of each scorer
    diversity: np.ndarray | None  # float32 [n]
    images: np.ndarray  # uint8 [n, H, W, 3], the first image of each prompt, or `strip` of them


def strip(images: np.ndarray) -> np.ndarray:
    """The images of a prompt, uint8 [G, H, W, 3], as one picture [h, about G w, 3], with gaps, in
    which none is higher or wider than STRIP_SIDE.
    """
    smaller = -(-max(images.shape[1:3]) // STRIP_SIDE)
    first, *others = [np.asarray(Image.fromarray(image).reduce(smaller)) for image in images]
    gap = np.full_like(first[:, : max(1, first.shape[1] // 64)], 255)
    return np.concatenate([first, *(part for image in others for part in (gap, image))], axis=1)


def check_group(group: int, config, key: str) -> None:
    """Raises ValueError if the images of a prompt, which `key` names, are more than are sampled
    together.
    """
    if group > config.eval.batch:
        raise ValueError(
            f'{key}={group}: all images of a prompt are sampled in one call, and '
            f'eval.batch={config.eval.batch} holds fewer: set eval.batch to at least {group}'
        )


def prompts_together(config, count: int, group: int, shards: int) -> int:
    """Prompts of each batch of an evaluation of `count` prompts with `group` images each: as many
    as `eval.batch` images hold and as divide over the shards, or if no number does both, the fewest
    that divide. All `count` prompts if they are fewer; the sampler then splits them all the same.
    """
    unit = shards // math.gcd(group, shards)
    most = min(config.eval.batch // group, count)
    return min(count, max(unit, most // unit * unit))


class Evaluator:
    """Samples and scores every prompt of a list.

    Prompt i always gets the noise of key fold_in(seed's evaluation stream, i), and its further
    images g = 1, 2, ... that key folded with g. So images before and after training have the same
    noise, on any number of devices and in any batch.

    Args:
      session: holds the prompts' conditioning.
      scorers: of the training reward, and of other rewards; an image without a score from one of
        them may have scores from the others.
      group: images per prompt.
      embed: the embedding for the diversity of at least two images, see `diversity.make_embedding`.
      name: of the prompt set, for records.
      strips: keep all images of a shown prompt, as a `strip`, instead of its first.
      sample: `make_sampler(pipeline, config, config.eval.steps, mesh)`, for several evaluators that
        share one compiled program.
    """

    def __init__(
        self,
        session: Session,
        prompts: PromptSet,
        scorers: Scorer | Sequence[Scorer],
        *,
        group: int = 1,
        embed: Embed | None = None,
        name: str = 'eval',
        strips: bool = False,
        sample: Callable | None = None,
    ):
        self._session, self._stop, config = session, session.stop, session.config
        self._scorers = [scorers] if isinstance(scorers, Scorer) else list(scorers)
        self._prompts, self._shown = prompts, min(config.eval.shown, len(prompts))
        self._group, self._embed, self._name, self._strips = group, embed, name, strips
        self._batch = prompts_together(config, len(prompts), group, batch_shards(session.mesh))
        self._sample = sample or make_sampler(
            session.pipeline, config, config.eval.steps, session.mesh
        )
        self.names = tuple(name for scorer in self._scorers for name in scorer.names) + (
            (DIVERSITY,) if group > 1 else ()
        )
        key = stream_key(config.seed, STREAM_EVAL, 0)
        first = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(len(prompts)))
        more = [jax.vmap(lambda k: jax.random.fold_in(k, g))(first) for g in range(1, group)]
        # uint32 [N, G, 2]
        self._keys = np.stack([key_data(keys) for keys in (first, *more)], axis=1)

    def __call__(
        self, policy: dict | None, record: Record | None = None, key: str = ''
    ) -> Evaluation:
        """Evaluates a policy (None: the base model). Every process scores its share of each batch.

        Args:
          record: in the primary process it stores scores as they come, under the policy's `key`;
            None in other processes. Prompts that it holds are not sampled again, unless it has a
            score of none of them, as after a reward that failed. Progress is shown.

        Raises:
          Preempted: a stop was requested.
        """
        communicator, began = self._stop.communicator, time.monotonic()
        count, shown = len(self._prompts), {}
        scores = {name: np.full(count, np.nan, np.float32) for name in self.names}
        done = np.zeros(count, bool)
        if record is not None:
            known = [record.get(key, self._name, i) for i in range(count)]
            shown = {
                i: image
                for i in range(self._shown)
                if (image := record.image(key, self._name, i)) is not None
            }
            finite = lambda name: any(np.isfinite(row.get(name, np.nan)) for row in known)
            scored = set(filter(finite, self.names))
            done = np.array(
                [
                    set(self.names) <= scored & set(row) and (i in shown or i >= self._shown)
                    for i, row in enumerate(known)
                ],
                bool,
            )
            for i in np.flatnonzero(done):
                for name in self.names:
                    scores[name][i] = known[i][name]
        scores = communicator.merge(scores)
        todo = np.flatnonzero(~np.frombuffer(communicator.exchange(done.tobytes())[0], bool))

        def keep(batch: Sampled) -> None:
            found = communicator.merge(self._scores(batch))
            for name in self.names:
                scores[name][batch.prompts] = found[name]
            for j, i in enumerate(batch.prompts if record is not None else ()):
                image = batch.images[j] if i < self._shown else None
                record.put(
                    key, self._name, int(i), {name: found[name][j] for name in self.names}, image
                )

        def ready() -> bool:
            # All processes exchange their scores after the same batches: none waits for a program
            # that another has not started.
            return (
                len(waiting) > 2
                if communicator.hosts.count > 1
                else all(future.done() for future in waiting[0].futures)
            )

        waiting, label = collections.deque(), f'{self._name} prompts'
        with ProgressBar(
            count, start=count - len(todo), label=label, every_seconds=10, show=record is not None
        ) as bar:
            for start in range(0, len(todo), self._batch):
                new = todo[start : start + self._batch]
                waiting.append(self._sampled(policy, new))
                shown |= {
                    int(i): image for i, image in zip(new, waiting[-1].images) if i < self._shown
                }
                while waiting and ready():
                    keep(waiting.popleft())
                bar.update(count - len(todo) + start + len(new))
            for batch in waiting:
                keep(batch)
        images = np.array([shown[i] for i in sorted(shown)])
        texts = [p.text for p in self._prompts[: self._shown]]
        return Evaluation(scores, images, texts, self._group, time.monotonic() - began)

    def _sampled(self, policy: dict | None, new: np.ndarray) -> Sampled:
        """Samples the prompts `new`, and sends this process's share of them to the scorers."""
        # A smaller batch is filled up with other prompts, so that all batches have one compiled
        # shape.
        rows = np.concatenate(
            [new, (new[-1] + 1 + np.arange(self._batch - len(new))) % len(self._prompts)]
        )
        s, texts = self._session, [self._prompts[int(i)].text for i in rows]
        conditioning = s.conditioning([text for text in texts for _ in range(self._group)])
        keys = self._keys[rows].reshape(-1, 2)
        images, finite = self._stop.wait(
            self._sample(s.params, policy, conditioning, s.negative, keys)
        )
        images, finite = (
            np.asarray(a).reshape(-1, self._group, *a.shape[1:]) for a in (images, finite)
        )
        diversity = None
        if self._group > 1:
            embeddings = self._embed(images.reshape(-1, *images.shape[2:])).reshape(
                *images.shape[:2], -1
            )
            diversity = np.where(finite.all(1), pairwise_diversity(embeddings), np.nan)[: len(new)]
        images, finite = images[: len(new)], finite[: len(new)]
        mine = np.arange(s.hosts.index, len(new), s.hosts.count)
        futures = []
        if len(mine):
            chosen = [self._prompts[int(new[i])] for i in mine for _ in range(self._group)]
            pictures = images[mine].reshape(-1, *images.shape[2:])
            # A last batch may be one image that cannot be scored: the caller checks at the end
            # whether any image has a score.
            how = dict(some_valid=False, while_waiting=self._stop.check)
            futures = [scorer.submit(pictures, *columns(chosen), **how) for scorer in self._scorers]
        shown = np.stack([strip(group) for group in images]) if self._strips else images[:, 0]
        return Sampled(new, mine, finite, futures, diversity, shown)

    def _scores(self, batch: Sampled) -> dict[str, np.ndarray]:
        """name -> float32 [n], means over the images of a prompt that have a score; NaN if none
        has, or if the prompt is not in `mine`.
        """
        found = {name: np.full(len(batch.prompts), np.nan, np.float32) for name in self.names}
        if batch.diversity is not None:
            # as the scores: embeddings may round otherwise elsewhere, and all must judge alike
            found[DIVERSITY][batch.mine] = batch.diversity[batch.mine]
        finite = batch.finite[batch.mine]
        for future in batch.futures:
            result = self._stop.wait(future)
            valid = result.valid.reshape(finite.shape) & finite
            for name, values in result.values.items():
                values = values.reshape(valid.shape)
                known = valid & np.isfinite(values)  # a score that is only logged may be missing
                mean = np.where(known, values, 0).sum(1) / np.maximum(known.sum(1), 1)
                found[name][batch.mine] = np.where(known.any(1), mean, np.nan)
        return found
