"""The threaded scorer: order, de-duplication, threads, errors, limits."""

import os
import re
import threading

import numpy as np
import pytest

from densegrpo_jax.rewards import (
    CompositeReward,
    JpegReward,
    OcrReward,
    RewardError,
    Scorer,
    Scores,
)
from densegrpo_jax.rewards.local.geneval import GenevalReward
from densegrpo_jax.rewards.remote.client import RemoteReward


class Pixel:
    """Scores a picture by its first pixel plus the length of its prompt; remembers its calls."""

    name, names, range = 'pixel', ('pixel',), (0.0, 999.0)

    def __init__(self, hook=None):
        self.calls, self.threads, self._hook = [], set(), hook

    def check(self, prompts, metadata):
        if 'bad' in prompts:
            raise ValueError('prompt bad')

    def __call__(self, images, prompts, metadata):
        self.calls.append(len(images))
        self.threads.add(threading.get_ident())
        if self._hook:
            self._hook(images)
        values = [
            int(image[0, 0, 0]) + len(prompt) + extra.get('plus', 0)
            for image, prompt, extra in zip(images, prompts, metadata)
        ]
        return Scores(
            {'pixel': np.array(values, np.float32)},
            np.array([image[0, 0, 0] != 255 for image in images]),
        )


def pictures(*pixels):
    images = np.zeros((len(pixels), 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = pixels
    return images


@pytest.mark.parametrize('workers', [1, 3])
@pytest.mark.parametrize('chunk_size', [1, 4, 100])
def test_scores_come_back_in_order_and_once_per_distinct_pair(workers, chunk_size):
    rng = np.random.default_rng(0)
    pixels, prompts = rng.integers(0, 9, 60), ['x' * n for n in rng.integers(1, 4, 60)]
    reward = Pixel()
    with Scorer(reward, workers, chunk_size=chunk_size) as scorer:
        scores = scorer.submit(pictures(*pixels), prompts).result(10)
    assert scores.values['pixel'].tolist() == [
        pixel + len(prompt) for pixel, prompt in zip(pixels, prompts)
    ]
    assert scores.valid.all()
    distinct = len(set(zip(pixels.tolist(), prompts)))
    assert sum(reward.calls) == distinct < 60
    assert max(reward.calls) <= chunk_size
    counts = scorer.counts
    assert (counts.images, counts.scored, counts.invalid) == (60, distinct, 0)
    assert counts.cpu_seconds > 0


def test_metadata_tells_pictures_apart():
    with Scorer(Pixel()) as scorer:
        scores = scorer.submit(pictures(1, 1, 1), ['a'] * 3, [{}, {'plus': 5}, {}]).result(10)
    assert scores.values['pixel'].tolist() == [2, 7, 2]
    assert scorer.counts.scored == 2


def test_invalid_pictures_keep_their_place_and_are_counted():
    with Scorer(Pixel()) as scorer:
        scores = scorer.submit(pictures(1, 255, 2, 255), ['a'] * 4).result(10)
        assert scores.valid.tolist() == [True, False, True, False]
        assert scorer.counts.invalid == 2
        with pytest.raises(RewardError, match='could not score any of 2'):
            scorer.submit(pictures(255, 255), ['a'] * 2).result(10)


def test_chunks_are_scored_by_all_workers_at_once():
    # passes only if two threads are inside the reward together
    barrier = threading.Barrier(2, timeout=10)
    reward = Pixel(lambda images: barrier.wait())
    with Scorer(reward, 2) as scorer:
        scorer.submit(pictures(1, 2), ['a'] * 2).result(10)
    assert len(reward.threads) == 2


def in_batches(size):
    reward = Pixel()
    reward.batch_size = size
    return reward


@pytest.mark.parametrize(
    ('reward', 'workers', 'calls'),
    [
        (in_batches(8), 64, [8] * 5),  # on a machine of many cores the last call is not of one
        (in_batches(32), 64, [20] * 2),
        (in_batches(8), 1, [8] * 5),
        (CompositeReward([(in_batches(8), 1.0), (JpegReward(), 0.1)]), 64, [8] * 5),
        (Pixel(), 64, [1] * 40),
        (Pixel(), 8, [5] * 8),
        (Pixel(), 1, [14, 13, 13]),
    ],
)
def test_a_reward_with_batches_of_its_own_gets_them_whole(reward, workers, calls):
    with Scorer(reward, workers) as scorer:
        scorer.submit(pictures(*range(40)), ['a'] * 40).result(10)
    pixel = reward.parts[0][0] if hasattr(reward, 'parts') else reward
    assert sorted(pixel.calls, reverse=True) == calls


def test_a_size_below_one_is_refused():
    for sizes in ({'chunk_size': 0}, {'chunk_size': -1}, {'max_pending': 0}, {'workers': -1}):
        with pytest.raises(ValueError, match=[*sizes][0]):
            Scorer(Pixel(), **sizes)


def test_rewards_of_a_device_declare_their_batches():
    detector = lambda: lambda images, metadata: [[] for _ in images]
    assert GenevalReward(batch_size=5, make_detector=detector).batch_size == 5
    assert RemoteReward('http://a:1', ('pixel',), batch_size=3).batch_size == 3
    both = [(JpegReward(), 1.0), (RemoteReward('http://a:1', ('pixel',)), 1.0)]
    assert CompositeReward(both).batch_size == 16
    assert CompositeReward(both[:1]).batch_size is None


def test_there_is_a_thread_for_every_core_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1, 5})
    with Scorer(Pixel()) as scorer, Scorer(Pixel(), 2) as two:
        assert (scorer.workers, two.workers) == (3, 2)


def test_submit_returns_before_the_scores_are_there():
    gate = threading.Event()
    with Scorer(Pixel(lambda images: gate.wait(10)), 1) as scorer:
        future = scorer.submit(pictures(1), ['a'])
        assert not future.done()
        gate.set()
        assert future.result(10).values['pixel'].tolist() == [2]


def test_an_exception_reaches_the_caller_and_later_batches_still_work():
    def fail(images):
        if (images[:, 0, 0, 0] == 13).any():
            raise OSError('disk on fire')

    with Scorer(Pixel(fail), 2, chunk_size=1) as scorer:
        future = scorer.submit(pictures(*range(40)), ['a'] * 40)
        with pytest.raises(RewardError, match="'pixel' failed: OSError: disk on fire") as caught:
            future.result(10)
        assert isinstance(caught.value.__cause__, OSError)
        assert re.search(
            r"test_scorer.py:\d+: raise OSError\('disk on fire'\)\)$", str(caught.value)
        )
        assert scorer.submit(pictures(1), ['a']).result(10).valid.all()


def test_after_a_failure_the_rest_of_the_batch_is_skipped():
    def fail(images):
        raise OSError('down')

    reward = Pixel(fail)
    with Scorer(reward, 1, chunk_size=1) as scorer, pytest.raises(RewardError, match='down'):
        scorer.submit(pictures(*range(40)), ['a'] * 40).result(10)
    assert reward.calls == [1]


def test_a_reward_that_breaks_its_word_is_an_error():
    class Short(Pixel):
        def __call__(self, images, prompts, metadata):
            return Scores({'pixel': np.zeros(1, np.float32)}, np.ones(1, bool))

    with Scorer(Short(), 1) as scorer, pytest.raises(RewardError, match='expected bool'):
        scorer.submit(pictures(1, 2), ['a'] * 2).result(10)


def test_submit_refuses_what_cannot_be_scored():
    with Scorer(Pixel()) as scorer:
        with pytest.raises(ValueError, match='prompt bad'):
            scorer.submit(pictures(1), ['bad'])
        with pytest.raises(ValueError, match='equal numbers'):
            scorer.submit(pictures(1), ['a', 'b'])
        with pytest.raises(ValueError, match='no images'):
            scorer.submit(pictures(), [])
        with pytest.raises(TypeError, match='uint8'):
            scorer.submit(pictures(1).astype(np.float32), ['a'])
    with pytest.raises(ValueError, match='workers'):
        Scorer(Pixel(), -1)


def test_unfinished_batches_are_bounded():
    gate, waiting = threading.Event(), threading.Event()
    with Scorer(Pixel(lambda images: gate.wait(10)), 1, max_pending=2) as scorer:
        first = [scorer.submit(pictures(i), ['a']) for i in range(2)]
        third = []
        late = lambda: third.append(scorer.submit(pictures(9), ['a'], while_waiting=waiting.set))
        thread = threading.Thread(target=late)
        thread.start()
        assert waiting.wait(10) and not third
        gate.set()
        thread.join(10)
        assert [future.result(10).values['pixel'][0] for future in first + third] == [1, 2, 10]


def test_waiting_for_a_place_can_be_given_up():
    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    gate = threading.Event()
    with Scorer(Pixel(lambda images: gate.wait(10)), 1, max_pending=1) as scorer:
        # has a place: nothing to give up
        first = scorer.submit(pictures(0), ['a'], while_waiting=stop)
        with pytest.raises(Stopped):
            scorer.submit(pictures(1), ['a'], while_waiting=stop)
        gate.set()
        assert (
            first.result(10).valid.all()
            and scorer.submit(pictures(2), ['a']).result(10).values['pixel'][0] == 3
        )


def test_a_batch_without_a_valid_score_is_an_error_unless_told_otherwise():
    with Scorer(Pixel(), 1) as scorer:
        with pytest.raises(RewardError, match='could not score any of 1 images'):
            scorer.submit(pictures(255), ['a']).result(10)
        assert not scorer.submit(pictures(255), ['a'], some_valid=False).result(10).valid.any()


def test_close_waits_or_cancels():
    gate, inside = threading.Event(), threading.Event()
    scorer = Scorer(Pixel(lambda images: (inside.set(), gate.wait(10))), 1)
    running, waiting = scorer.submit(pictures(1), ['a']), scorer.submit(pictures(2), ['a'])
    assert inside.wait(10)
    waiting.add_done_callback(lambda _: gate.set())  # by the cancellation: the only thread is busy
    scorer.close(cancel=True)
    assert running.result(10).valid.all()
    with pytest.raises(RewardError, match='closed'):
        waiting.result(10)
    for _ in range(9):  # more than max_pending: a refused batch must give its place back
        with pytest.raises(RuntimeError, match='shutdown'):
            scorer.submit(pictures(1), ['a'])
    scorer = Scorer(Pixel(), 1)
    futures = [scorer.submit(pictures(i), ['a']) for i in range(3)]
    scorer.close()
    assert all(future.done() for future in futures)


def test_every_worker_thread_makes_its_own_reader():
    made, barrier = [], threading.Barrier(3, timeout=10)

    def make_reader():
        owner = threading.get_ident()
        made.append(owner)

        def read(images):
            assert threading.get_ident() == owner
            barrier.wait()
            return [[] for _ in images]

        return read

    with Scorer(OcrReward(make_reader=make_reader), 3) as scorer:
        for _ in range(2):
            scorer.submit(pictures(1, 2, 3), ['"A"'] * 3).result(10)
    assert len(made) == len(set(made)) == 3
