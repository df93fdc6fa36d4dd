"""Seeded evaluation: the plain ODE sampler on a fixed prompt list with fixed noise, scored by the training reward."""

from __future__ import annotations

import dataclasses
import io
import pathlib

import jax
import numpy as np
from jax.sharding import Mesh

from densegrpo_jax.data.prompts import PromptSet
from densegrpo_jax.models.pipeline import Pipeline
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.training.pictures import save_grid
from densegrpo_jax.training.preemption import StopRequest
from densegrpo_jax.training.prompts import Encoder
from densegrpo_jax.training.sampling import STREAM_EVAL, key_data, make_sampler, stream_key
from densegrpo_jax.training.text_cache import TextCache


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one evaluation: name -> float32 [N] (NaN where a picture could not be scored), and the first pictures."""

    scores: dict[str, np.ndarray]
    images: np.ndarray  # uint8 [shown, H, W, 3]
    prompts: list[str]

    def mean(self, name: str = 'total') -> float:
        return float(np.nanmean(self.scores[name]))

    def standard_error(self, name: str = 'total') -> float:
        """Of the mean over prompts: sample standard deviation / sqrt(N)."""
        values = self.scores[name][np.isfinite(self.scores[name])]
        return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float('nan')

    def save_sheet(self, path: pathlib.Path) -> None:
        """The pictures with score and prompt, as one PNG."""
        width = self.images.shape[2]
        captions = [f'{s:.2f} {p}' for s, p in zip(self.scores['total'], self.prompts)]
        save_grid(path, self.images, columns=max(1, min(6, 1152 // width)), scale=max(1, 192 // width), captions=captions)


def merge_scores(stop: StopRequest, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of equal shapes in all processes, NaN where another process has the value -> the whole arrays, in every process."""
    if stop.hosts.count == 1:
        stop.check()
        return scores
    file = io.BytesIO()
    np.savez(file, **scores)
    for given in stop.gather(file.getvalue()):
        with np.load(io.BytesIO(given), allow_pickle=False) as other:
            for name, values in scores.items():
                np.copyto(values, other[name], where=np.isnan(values))
    return scores


class Evaluator:
    """Samples and scores every prompt of a list once.

    Prompt i always gets the noise of key fold_in(seed's evaluation stream, i): the same pictures are compared before and after, on
    any number of devices and in any batch.
    """

    def __init__(self, pipeline: Pipeline, config, prompts: PromptSet, encoder: Encoder | TextCache, scorer: Scorer, mesh: Mesh):
        self._prompts, self._encoder, self._scorer, self._shown = prompts, encoder, scorer, config.eval.shown
        self._batch = min(config.eval.batch, len(prompts))
        self._sample = make_sampler(pipeline, config, config.eval.steps, mesh)
        key = stream_key(config.seed, STREAM_EVAL, 0)
        self._keys = key_data(jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(len(prompts))))

    def __call__(self, params: dict, adapters: dict | None, stop: StopRequest) -> Evaluation:
        """Evaluates the adapters (None: the base model). Every process scores its share of each batch. Raises Preempted."""
        futures, shown, hosts = [], [], stop.hosts
        for start in range(0, len(self._prompts), self._batch):
            # The last batch is filled up with the prompts before it, so that one compiled shape serves all.
            rows = np.arange(start, start + self._batch) % len(self._prompts)
            new = min(self._batch, len(self._prompts) - start)
            texts = [self._prompts[int(i)].text for i in rows]
            images, finite = stop.wait(self._sample(params, adapters, self._encoder(texts), self._keys[rows]))
            images, finite = np.asarray(images)[:new], np.asarray(finite)[:new]
            shown.extend(images[: max(0, self._shown - len(shown))])
            mine = np.arange(hosts.index, new, hosts.count)
            if len(mine):
                chosen = [self._prompts[int(rows[i])] for i in mine]
                future = self._scorer.submit(images[mine], [p.text for p in chosen], [p.metadata for p in chosen])
                futures.append((start + mine, finite[mine], future))
        scores = {name: np.full(len(self._prompts), np.nan, np.float32) for name in self._scorer.names}
        for rows, finite, future in futures:
            result = stop.wait(future)
            for name, values in result.values.items():
                scores[name][rows] = np.where(finite & result.valid, values, np.nan)
        scores = merge_scores(stop, scores)
        return Evaluation(scores, np.stack(shown), [p.text for p in self._prompts[: len(shown)]])
