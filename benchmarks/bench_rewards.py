"""Measures the cost of scoring, and how much of it sampling hides: python -m
benchmarks.bench_rewards --config=configs/tiny_ocr.py [--repeat=3]

    python -m benchmarks.bench_rewards --config=configs/flux_ocr.py --random \\
        --config.rollout.group=4 --config.rollout.prompts=12 \\
        --config.rollout.prompts_per_batch=1    # an accelerator, no checkpoint

Takes the images of a real iteration (all completed states of all its samples) and prints, as
medians over `repeat` runs after one that compiles and loads: distinct images scored per second
and processor time per image, duplicates that were not scored, and three wall times: sampling
without scoring, scoring alone, and both as in training. "Hidden" is the share of the scoring's wall
time that overlaps with sampling, (sampling + scoring - both) / scoring. Nothing overlaps with the
scoring of the last batch, so the share is at most 1 minus the last batch's: use several batches
(rollout.prompts_per_batch). "Waited" is the time from the last batch's images to the last score. If
sampling and scoring compete for the same processor cores, nothing can be hidden; on a busy machine
only processor time is meaningful.

With --random the released model has random weights. Its images are noise without text for an OCR
engine, so rendered scenes with signs are scored instead. With --stand_in=SECONDS as well, no
network runs: a batch's images appear after that many seconds, in which the processor is free, as
beside an accelerator. This measures only the host's part, on a machine without an accelerator.
"""

import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from benchmarks.bases import random_session
from densegrpo_jax.config.validation import validate
from densegrpo_jax.data.sampler import prompts_for_step
from densegrpo_jax.data.scenes import scene_prompts
from densegrpo_jax.rewards.base import Scores
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.startup import start_devices
from densegrpo_jax.runtime.streams import STREAM_ROLLOUT, key_data, stream_key
from densegrpo_jax.sampling.collector import Collector
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.session import check, load
from densegrpo_jax.sampling.state import init_state, optimiser
from tools.make_miniature.render import render_scene

CONFIG = config_flags.DEFINE_config_file(
    'config', 'configs/tiny_ocr.py', 'Configuration.', lock_config=True
)
WORKERS = flags.DEFINE_list(
    'workers', [], 'Numbers of scoring threads to try; default config.reward_workers.'
)
REPEAT = flags.DEFINE_integer('repeat', 3, 'Runs of each kind.')
RANDOM = flags.DEFINE_bool(
    'random', False, 'Random weights of the released model; rendered scenes are scored.'
)
STAND_IN = flags.DEFINE_float(
    'stand_in',
    0.0,
    'Seconds a batch takes on a device that is only waited for; with --random.',
    lower_bound=0.0,
)
RANDOM_SIZE = flags.DEFINE_enum(
    'size',
    'released',
    ['released', 'small'],
    'Of random weights; small: FLUX with a few million parameters.',
)


class Recorder:
    """A scorer that answers at once and records its inputs."""

    def __init__(self, names: tuple[str, ...]):
        self.names, self.batches = names, []

    def submit(self, images, prompts, metadata, **how) -> Future:
        self.batches.append((images, prompts, metadata))
        future = Future()
        future.set_result(
            Scores(
                {name: np.zeros(len(images), np.float32) for name in self.names},
                np.ones(len(images), bool),
            )
        )
        return future


class Watched:
    """A scorer that records the time of its last call; `scenes`: images that replace its inputs."""

    def __init__(self, scorer: Scorer, scenes: np.ndarray | None):
        self.scorer, self.scenes, self.names, self.asked = scorer, scenes, scorer.names, 0.0

    def submit(self, images, prompts, metadata, **how) -> Future:
        self.asked = time.perf_counter()
        return self.scorer.submit(
            images if self.scenes is None else self.scenes[: len(images)], prompts, metadata, **how
        )


class StandIn:
    """Replaces a rollout: zeros of its shapes, and each batch's images after that many seconds."""

    def __init__(self, rollout_fn, seconds: float):
        self._rollout_fn, self._seconds, self._device, self._result = (
            rollout_fn,
            seconds,
            ThreadPoolExecutor(1),
            None,
        )

    def __call__(self, *inputs):
        if self._result is None:
            self._result = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
                jax.eval_shape(self._rollout_fn, *inputs),
            )
        rollout, images, finite = self._result
        return rollout, self._device.submit(lambda: time.sleep(self._seconds) or images), finite


def scenes(count: int, side: int) -> np.ndarray:
    """Rendered scenes with a sign, uint8 [count, side, side, 3]."""
    rng = np.random.default_rng(0)
    return np.stack(
        [render_scene(prompt.target, rng, side=side) for prompt in scene_prompts(count, 0)]
    )


def iteration(config, mesh):
    """`scorer -> seconds` of sampling and scoring one iteration with it, as `training.run` does."""
    r, key = config.rollout, key_data(stream_key(config.seed, STREAM_ROLLOUT, 0))
    of_iteration = lambda train: prompts_for_step(train, r.prompts, 0, config.seed)
    if RANDOM.value:
        session = random_session(config, mesh, RANDOM_SIZE.value == 'small')
    else:
        checked = check(config, mesh, needs=('train', 'schedule'))
        session = load(checked, [p.text for p in of_iteration(checked.train)])
    pipeline, schedule, chosen = session.pipeline, session.schedule, of_iteration(session.train)
    tx = optimiser(config, pipeline.transformer)
    policy = jax.jit(lambda base: init_state(pipeline, tx, jax.random.key(0), base).policy)(
        session.params['transformer']
    )
    rollout_fn = make_rollout(pipeline, config, schedule, mesh)
    if STAND_IN.value:
        rollout_fn = StandIn(rollout_fn, STAND_IN.value)

    def timed(scorer) -> float:
        collector = Collector(session, scorer, r.group, r.prompts_per_batch)
        start = time.perf_counter()
        _, pending, *_ = collector.sample(rollout_fn, policy, chosen, key, schedule.noise_levels)
        collector.scores(pending, r.prompts * r.group)
        return time.perf_counter() - start

    return timed


class Measured(NamedTuple):
    """Counts and medians over the repeats, walls in seconds."""

    images: float  # of an iteration
    scored: float  # of these, distinct
    invalid: float
    cpu: float  # of the scoring threads
    scoring: float
    last: float  # the last batch alone
    both: float
    waited: float


def measure(scorer: Scorer, batches, pictures: np.ndarray | None, timed, repeat: int) -> Measured:
    """Scoring alone and together with sampling."""

    def score(batches) -> float:
        start = time.perf_counter()
        for future in [scorer.submit(*batch) for batch in batches]:
            future.result()
        return time.perf_counter() - start

    watched = Watched(scorer, pictures)

    def overlapped() -> tuple[float, float]:
        seconds = timed(watched)
        return seconds, time.perf_counter() - watched.asked

    median = lambda function: statistics.median(function() for _ in range(repeat))
    score(batches)  # loads the models
    before = scorer.counts
    scoring = median(lambda: score(batches))
    images, scored, invalid, cpu = ((b - a) / repeat for a, b in zip(before, scorer.counts))
    last = median(lambda: score(batches[-1:]))
    both, waited = (
        statistics.median(column) for column in zip(*(overlapped() for _ in range(repeat)))
    )
    return Measured(images, scored, invalid, cpu, scoring, last, both, waited)


def main(argv) -> None:
    config, repeat = CONFIG.value, REPEAT.value
    validate(config)
    if STAND_IN.value and not RANDOM.value:
        raise app.UsageError(
            '--stand_in samples nothing that could be scored: give --random too, which scores '
            'rendered scenes'
        )
    start_devices(config.rollout.prompts_per_batch * config.rollout.group)
    mesh = make_mesh(config.mesh)
    start = time.perf_counter()
    timed, reward = iteration(config, mesh), build_reward(config.reward)
    recorder = Recorder(reward.names)
    device = (
        f'a stand-in, {STAND_IN.value:g} s a batch'
        if STAND_IN.value
        else f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    )
    print(
        f'{device}; reward {", ".join(config.reward)}; weights in '
        f'{time.perf_counter() - start:.1f} s',
        flush=True,
    )
    print(f'first iteration, with compilation: {timed(recorder):.1f} s', flush=True)
    sampling = statistics.median(timed(Recorder(reward.names)) for _ in range(repeat))
    height, width = recorder.batches[0][0].shape[1:3]
    print(
        f'sampling alone: {sampling:.3f} s in {len(recorder.batches)} batches of {width} x '
        f'{height} px',
        flush=True,
    )
    pictures = (
        scenes(max(len(images) for images, *_ in recorder.batches), config.model.height)
        if RANDOM.value
        else None
    )
    batches = [
        (images if pictures is None else pictures[: len(images)], *rest)
        for images, *rest in recorder.batches
    ]
    for workers in map(int, WORKERS.value or [config.reward_workers]):
        with Scorer(reward, workers) as scorer:
            m = measure(scorer, batches, pictures, timed, repeat)
        print(
            f'{scorer.workers} scoring threads, {m.images:.0f} images, '
            f'{m.images - m.scored:.0f} duplicates, {m.invalid:.0f} invalid: alone '
            f'{m.scored / m.scoring:.1f} distinct images/s, {1000 * m.cpu / m.scored:.2f} '
            'CPU-ms of the threads per image\n'
            f'wall: sampling {sampling:.3f} s + scoring {m.scoring:.3f} s = '
            f'{sampling + m.scoring:.3f} s; overlapped {m.both:.3f} s, of which {m.waited:.3f} s '
            'after the last batch was sampled\n'
            f'hidden: {(sampling + m.scoring - m.both) / m.scoring:.0%} of the scoring; at most '
            f'{1 - m.last / m.scoring:.0%} in {len(batches)} batches (the last batch alone takes '
            f'{m.last:.3f} s)',
            flush=True,
        )


if __name__ == '__main__':
    app.run(main)
