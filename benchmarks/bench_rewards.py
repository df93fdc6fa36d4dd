"""What scoring costs, and how much of it sampling hides: python -m benchmarks.bench_rewards --config=configs/tiny_ocr.py [--repeat=3]

Takes the pictures of a real iteration (all completed states of all its samples) and prints, as medians over `repeat` runs after one that
compiles and loads: distinct pictures scored per second and processor time per picture, duplicates that were not scored, and three walls:
sampling without scoring, scoring alone, and both as training does them. Hidden is the share of the scoring's wall that does not show,
(sampling + scoring - both) / scoring. Scoring of the last batch has no sampling to hide behind, so that the share is at most 1 minus the
last batch's: use several batches (rollout.prompts_per_batch). Where sampling and scoring compete for the same processor cores, nothing
can be hidden; on a machine that is busy with other work only processor time is meaningful.
"""

import statistics
import time
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory

from absl import app, flags
import jax
from ml_collections import config_flags
import numpy as np

from densegrpo_jax.data.sampler import prompt_indices_for_step
from densegrpo_jax.parallel.mesh import make_mesh
from densegrpo_jax.parallel.startup import start_devices
from densegrpo_jax.rewards.base import Scores
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.training.defaults import validate
from densegrpo_jax.training.loading import load_components, open_base
from densegrpo_jax.training.preemption import StopRequest
from densegrpo_jax.training.prompts import load_prompts, text_conditioning, with_negative
from densegrpo_jax.training.run import Phases
from densegrpo_jax.training.sampling import make_rollout, make_schedule
from densegrpo_jax.training.state import init_state, optimiser

CONFIG = config_flags.DEFINE_config_file('config', 'configs/tiny_ocr.py', 'Configuration.', lock_config=True)
REPEAT = flags.DEFINE_integer('repeat', 3, 'Runs of each kind.')


class Recorder:
    """A scorer that answers at once and remembers what it was given."""

    def __init__(self, names: tuple[str, ...]):
        self.names, self.batches = names, []

    def submit(self, images, prompts, metadata) -> Future:
        self.batches.append((images, prompts, metadata))
        future = Future()
        future.set_result(Scores({name: np.zeros(len(images), np.float32) for name in self.names}, np.ones(len(images), bool)))
        return future


def iteration(config, mesh):
    """`scorer -> seconds` of sampling and scoring one iteration with it, as `training.run` does."""
    stop, train = StopRequest(), load_prompts(config, 'train')
    folder, pipeline = open_base(config, mesh)
    chosen = [train[int(i)].text for i in prompt_indices_for_step(len(train), config.rollout.prompts, 0, config.seed)]
    with TemporaryDirectory() as texts:
        encoder = text_conditioning(config, folder, pipeline, ['', *chosen], Path(texts), mesh, stop)
        encoder(['', *chosen])  # into memory
    params = with_negative(pipeline, config, load_components(config, folder, pipeline, mesh, ('transformer', 'vae')), encoder)
    adapters = jax.jit(lambda base: init_state(pipeline, optimiser(config), jax.random.key(0), base).policy)(params['transformer'])
    schedule = make_schedule(pipeline, config)
    rollout_fn = make_rollout(pipeline, config, schedule, mesh)

    def timed(scorer) -> float:
        phases = Phases(config, None, mesh, train, None, scorer, None, stop, None)
        start = time.perf_counter()
        _, scores, _ = phases.sample(rollout_fn, params, adapters, encoder, 0, schedule.noise_levels)
        phases.gather(scores)
        return time.perf_counter() - start

    return timed


def main(argv) -> None:
    config, repeat = CONFIG.value, REPEAT.value
    validate(config)
    start_devices(config.rollout.prompts_per_batch * config.rollout.group)
    mesh = make_mesh(config.mesh)
    timed = iteration(config, mesh)
    with Scorer(build_reward(config.reward), config.reward_workers) as scorer:

        def score(batches) -> float:
            start = time.perf_counter()
            for future in [scorer.submit(*batch) for batch in batches]:
                future.result()
            return time.perf_counter() - start

        median = lambda function: statistics.median(function() for _ in range(repeat))
        recorder = Recorder(scorer.names)
        timed(recorder)  # compiles
        batches = tuple(recorder.batches)
        score(batches)  # loads the models
        sampling = median(lambda: timed(Recorder(scorer.names)))
        before = scorer.counts
        scoring = median(lambda: score(batches))
        images, scored, invalid, cpu = ((b - a) / repeat for a, b in zip(before, scorer.counts))
        last = median(lambda: score(batches[-1:]))
        both = median(lambda: timed(scorer))
    size = batches[0][0].shape[1:3]
    print(f'{jax.device_count()} x {jax.devices()[0].device_kind}; reward {", ".join(config.reward)}, {scorer.workers} scoring threads')
    print(
        f'{len(batches)} batches, {images:.0f} pictures of {size[1]} x {size[0]} px; {images - scored:.0f} duplicates, {invalid:.0f} invalid'
    )
    print(f'scoring alone: {scored / scoring:.1f} distinct pictures/s, {1000 * cpu / scored:.2f} CPU-ms of the threads per picture')
    print(f'wall: sampling {sampling:.3f} s + scoring {scoring:.3f} s = {sampling + scoring:.3f} s; overlapped {both:.3f} s')
    print(
        f'hidden: {(sampling + scoring - both) / scoring:.0%} of the scoring; at most {1 - last / scoring:.0%} in {len(batches)} batches '
        f'(the last batch alone takes {last:.3f} s)'
    )


if __name__ == '__main__':
    app.run(main)
