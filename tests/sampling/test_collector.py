"""Scoring beside sampling, proved by who waits for whom: the device and the reward of this test
wait for each other's other batch.
"""

import threading
import types
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.data.prompts import Prompt
from densegrpo_jax.rewards import Scorer, Scores
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.collector import Collector
from tests.meshes import one_device

BATCHES, PER_BATCH, GROUP, STATES = 4, 2, 3, 2
PATIENCE = 2  # seconds after which one that waits for another gives up


def session():
    """What a collector asks of one, with empty conditioning."""
    return types.SimpleNamespace(
        mesh=one_device(),
        stop=StopRequest(),
        params=None,
        conditioning=lambda texts: {'context': np.zeros((len(texts), 1), np.float32)},
        negative=None,
    )


class Events:
    """One event per batch of prompts."""

    def __init__(self):
        self._events = [threading.Event() for _ in range(BATCHES)]

    def set(self, batch: int) -> None:
        self._events[batch].set()

    def wait(self, batch: int, what: str) -> None:
        assert self._events[batch].wait(PATIENCE), (
            f'{what} of batch {batch} did not happen meanwhile'
        )


class Device:
    """Computes batches one after the other. It finishes one only when the next is queued and the
    one before has been scored.
    """

    def __init__(self, scored: Events):
        self._thread, self._queued, self._scored = ThreadPoolExecutor(1), Events(), scored

    def rollout(
        self, params, policy, conditioning, negative, key, places, noise_levels
    ) -> tuple[int, Future, Future]:
        batch = int(places[0]) // PER_BATCH
        self._queued.set(batch)
        done = self._thread.submit(self._compute, batch, places)
        finite = Future()
        finite.set_result(jnp.ones((STATES, PER_BATCH * GROUP), bool))
        return batch, done, finite

    def _compute(self, batch: int, places: np.ndarray) -> jax.Array:
        if batch + 1 < BATCHES:
            # else the device would stand still while the host fetches pictures
            self._queued.wait(batch + 1, 'dispatch')
        if batch:
            self._scored.wait(batch - 1, 'scoring')
        pixel = (
            16 * np.repeat(places, GROUP)
            + 4 * np.tile(np.arange(GROUP), len(places))
            + np.arange(STATES)[:, None]
        )
        return jnp.broadcast_to(
            jnp.asarray(pixel, jnp.uint8)[..., None, None, None], (*pixel.shape, 8, 8, 3)
        )


class Pixel:
    """Scores a picture by its first pixel and tells when all of a batch have been scored."""

    name, names, range, device, needs_metadata = 'pixel', ('pixel',), (0.0, 255.0), 'host', False

    def __init__(self, scored: Events):
        self._scored, self._left, self._lock = (
            scored,
            [STATES * PER_BATCH * GROUP] * BATCHES,
            threading.Lock(),
        )

    def check(self, prompts, metadata):
        pass

    def __call__(self, images, prompts, metadata):
        for prompt in prompts:
            batch = int(prompt) // PER_BATCH
            with self._lock:
                self._left[batch] -= 1
                done = not self._left[batch]
            if done:
                self._scored.set(batch)
        return Scores({'pixel': images[:, 0, 0, 0].astype(np.float32)}, np.ones(len(images), bool))


class Valid(Pixel):
    """A reward whose score has the name of the mask."""

    name, names = 'valid', ('valid', 'finite')

    def __init__(self):
        pass

    def __call__(self, images, prompts, metadata):
        values = 0.25 * images[:, 0, 0, 0].astype(np.float32)
        return Scores({'valid': values, 'finite': -values}, images[:, 0, 0, 0] != 4)


def test_a_score_may_have_any_name_the_mask_is_not_among_them():
    images = np.arange(6, dtype=np.uint8).reshape(1, 6, 1, 1, 1).repeat(3, -1)
    rollout = lambda *_: (None, jnp.asarray(images), jnp.ones((1, 6), bool).at[0, 1].set(False))
    prompts = [Prompt('one'), Prompt('two')]
    with Scorer(Valid(), 1) as scorer:
        collector = Collector(session(), scorer, 3, 2)
        _, pending, *_ = collector.sample(
            rollout, None, prompts, np.zeros(2, np.uint32), np.zeros(1)
        )
        values, valid = collector.scores(pending, 6)
    assert valid.dtype == bool and valid.tolist() == [[True, False, True, True, False, True]]
    # 0 where there is none
    np.testing.assert_array_equal(values['valid'], [[0, 0, 0.5, 0.75, 0, 1.25]])
    np.testing.assert_array_equal(values['finite'], -values['valid'])


def test_images_without_a_score_are_left_out_unless_there_is_no_other():
    """A process, or a batch, may have no other; the samples of an iteration are many."""
    images = np.uint8([[4, 4, 4, 1, 2, 3]]).reshape(1, 6, 1, 1, 1).repeat(3, -1)
    made = iter(np.split(images, 2, axis=1))
    rollout = lambda *_: (None, jnp.asarray(next(made)), jnp.ones((1, 3), bool))
    prompts = [Prompt('one'), Prompt('two')]
    with Scorer(Valid(), 1) as scorer:
        collector = Collector(session(), scorer, 3, 1)
        given = prompts, np.zeros(2, np.uint32), np.zeros(1)
        _, pending, *_ = collector.sample(rollout, None, *given)
        _, valid = collector.scores(pending, 6)
        assert valid.tolist() == [[False] * 3 + [True] * 3]
        made = iter([images[:, :3]] * 2)
        _, pending, *_ = collector.sample(rollout, None, *given)
        with pytest.raises(RewardError, match='none of the 6 images could be scored'):
            collector.scores(pending, 6)


@pytest.mark.parametrize('workers', [1, 3])
def test_a_batch_is_scored_while_the_next_is_sampled_and_the_device_never_waits(workers):
    scored = Events()
    device = Device(scored)
    prompts = [Prompt(str(i)) for i in range(BATCHES * PER_BATCH)]
    with Scorer(Pixel(scored), workers) as scorer:
        collector = Collector(session(), scorer, GROUP, PER_BATCH)
        rollouts, pending, _, group_ids = collector.sample(
            device.rollout, None, prompts, np.zeros(2, np.uint32), np.zeros(1)
        )
        values, valid = collector.scores(pending, len(prompts) * GROUP)
    assert rollouts == list(range(BATCHES)) and valid.all()
    np.testing.assert_array_equal(group_ids, np.repeat(np.arange(len(prompts)), GROUP))
    # Every score stands where its picture belongs: [state, prompt-major sample].
    expected = [
        [16 * p + 4 * g + state for p in range(len(prompts)) for g in range(GROUP)]
        for state in range(STATES)
    ]
    np.testing.assert_array_equal(values['pixel'], expected)


class Rollout:
    """Notes what each batch is sampled with, and answers pictures that tell prompt and state."""

    def __init__(self, group):
        self.group, self.given = group, []

    def __call__(self, params, policy, conditioning, negative, key, places, noise_levels):
        texts = np.asarray(conditioning['context'])[:, 0].tolist()
        self.given.append((params, policy, texts, negative, key, places.tolist(), noise_levels))
        pixel = np.repeat(np.uint8(texts), self.group) + 100 * np.arange(STATES)[:, None]
        images = np.broadcast_to(pixel[..., None, None, None], (*pixel.shape, 8, 8, 3))
        return len(self.given), jnp.asarray(images, jnp.uint8), jnp.ones(pixel.shape, bool)


class OfPrompt(Pixel):
    """A picture's score is its pixel, less the number that its prompt names."""

    def __init__(self):
        pass

    def __call__(self, images, prompts, metadata):
        values = images[:, 0, 0, 0] - np.array(prompts, np.float32)
        return Scores({'pixel': values}, np.ones(len(images), bool))


def numbered():
    """A session whose conditioning is the number that the prompt names."""
    own = session()
    own.params, own.negative = 'the base', 'of the empty prompt'
    own.conditioning = lambda texts: {'context': np.array([[int(t)] for t in texts], np.float32)}
    return own


def test_every_batch_is_sampled_with_what_belongs_to_it():
    prompts, places = [Prompt(str(7 + i)) for i in range(4)], [20, 3, 5, 11]
    rollouts, key, levels = {2: Rollout(2), 3: Rollout(3)}, np.zeros(2, np.uint32), np.zeros(1)
    with Scorer(OfPrompt(), 1) as scorer:
        collector = Collector(numbered(), scorer, group=99, prompts_per_batch=4)
        given = dict(sizes=[2, 2, 3, 3], places=places, batch=2)
        made, pending, conditioning, group_ids = collector.sample(
            rollouts, 'a policy', prompts, key, levels, **given
        )
        values, _ = collector.scores(pending, 10)
    assert made == [1, 1]  # one batch of each size
    of_batch = lambda i: ([7.0 + i, 8.0 + i], places[i : i + 2])
    for size, i in ((2, 0), (3, 2)):
        (found,) = rollouts[size].given
        texts, there = of_batch(i)
        assert found == ('the base', 'a policy', texts, 'of the empty prompt', key, there, levels)
    np.testing.assert_array_equal(conditioning['context'][:, 0], [7, 8, 9, 10])
    np.testing.assert_array_equal(group_ids, [0, 0, 1, 1, 2, 2, 2, 3, 3, 3])
    # each picture is scored for the prompt that it shows, in both states
    np.testing.assert_array_equal(values['pixel'], [[0] * 10, [100] * 10])
