"""What a guard tells and decides from what it measures, without a run."""

import dataclasses
import json

import numpy as np
import pytest

from densegrpo_jax.evaluation.evaluator import Evaluation, Evaluator
from densegrpo_jax.guard.falls import change
from densegrpo_jax.guard.guard import Guard
from densegrpo_jax.guard.history import History
from densegrpo_jax.guard.verdict import write_verdict
from densegrpo_jax.rewards import JpegReward
from tests.evaluation.drawn import PROMPTS, At, Sampler, session
from tests.fake_hosts import on_hosts


def test_signs_of_collapse_are_told(config, caplog):
    guard = object.__new__(Guard)
    guard._config, config.eval.every, history = config, 1, History()
    config.update_from_flattened_dict({'loss.clip_range': 1e-4, 'guard.ratio': 10.0})
    ratios = {'ratio_deviation': 9e-4, 'ratio_deviation_first': 9e-7}
    fine = {'reward': 0.5, 'zero_spread': np.array([np.nan, 0.5, 1.0]), **ratios}
    guard.watch(1, fine, history)
    assert not caplog.records
    guard.watch(2, fine | {'zero_spread': np.array([np.nan, 1.0, 1.0])}, history)
    assert 'update 2: 100% of the groups have no spread' in caplog.text
    assert 'update 1: ' not in caplog.text
    config.guard.zero_spread = 0.75  # the mean of the transitions that are trained
    guard.watch(1, fine, history)
    assert 'update 1: 75% of the groups have no spread' in caplog.text
    config.guard.zero_spread = 0.76
    for step, ratio in ((3, 1.1e-3), (4, np.nan)):
        guard.watch(step, fine | {'ratio_deviation': ratio}, history)
        assert f'update {step}: the probability ratio is off 1 by {ratio:.2g}' in caplog.text
    told = len(caplog.records)
    for step in (5, 6):  # told once
        guard.watch(step, fine | {'ratio_deviation_first': 2e-6}, history)
    assert len(caplog.records) == told + 1
    assert 'update 5: before anything has changed the probability ratio is off' in caplog.text
    guard.watch(7, fine | {'reward': np.nan}, history)
    assert history.rewards == [[6, 0.5]]
    config.loss.kind = 'list'  # clips no ratio
    guard.watch(8, fine | {'ratio_deviation': 0.5}, history)
    config.loss.kind = 'nft'  # has none
    guard.watch(9, {name: fine[name] for name in ('reward', 'zero_spread')}, history)
    assert len(caplog.records) == told + 1


def test_a_verdict_shows_as_many_pairs_as_asked_for(config, tmp_path, monkeypatch):
    shown, scores = [], {'darkness': np.arange(8, dtype=np.float32)}
    keep = lambda path, images, captions, **_: shown.append((len(images), captions))
    monkeypatch.setattr('densegrpo_jax.guard.verdict.save_grid', keep)
    images = np.zeros((5, 2, 2, 3), np.uint8)
    start, now = (
        Evaluation(of, images, list('abcdefgh'))
        for of in (scores, {'darkness': -scores['darkness']})
    )
    for pairs in (2, 7):
        config.guard.pairs = pairs
        write_verdict(tmp_path, 3, config, {}, {}, ['darkness'], '', start, now, 1)
    assert [count for count, _ in shown] == [2 * 2, 2 * 5]  # of five pictures
    assert [caption[-1] for caption in shown[0][1]] == list('eedd')  # that lost most


def test_a_score_that_falls_while_the_reward_rises_is_told(config, caplog):
    """Against the highest score of before, prompt by prompt: the spread of the prompts, an error of
    0.07, hides no fall of 0.03.
    """
    config.eval.every, rng = 2, np.random.default_rng(0)
    guard, easy = object.__new__(Guard), rng.random(16)
    guard._evaluated = None

    def told(changes, rewards):
        guard._config, history, found = config, History(), []
        for step, (moved, reward) in enumerate(zip(changes, rewards)):
            for update in (2 * step - 1, 2 * step) if step else ():
                guard.watch(update, {'reward': reward}, history)
            history = History(**json.loads(json.dumps(dataclasses.asdict(history))))
            scores = easy + moved + 0.01 * rng.standard_normal(16)
            scores[3] = np.nan if step == 2 else scores[3]
            guard._compare(history, 2 * step, scores.astype(np.float32))
            history.evaluations.append([2 * step, 0.0, 0.0])
            found += [record.message for record in caplog.records]
            caplog.clear()
        return found

    # within the error; far below while the reward has risen; and while it has not
    (alarm,) = told([0, 0.05, 0.05, 0.02, 0.02], [0, 0.1, 0.2, 0.3, 0.1])
    assert 'between updates 2 and 6 the evaluation score fell by 0.03' in alarm
    assert 'the training reward rose from 0.1000 to 0.3000' in alarm
    # from the start on: its reward is that of the first updates
    (alarm,) = told([0, -0.05, -0.05], [0, 0.1, 0.2])
    assert 'between updates 0 and 4' in alarm and 'from 0.1000 to 0.2000' in alarm


def test_a_score_that_goes_nowhere_is_seldom_told(config, caplog):
    """30 evaluations of a score that moves by chance, each compared with the highest before it."""
    config.update_from_flattened_dict({'iterations': 30, 'guard.level': 0.05})
    guard, rng, told = object.__new__(Guard), np.random.default_rng(0), 0
    guard._config, guard._evaluated = config, None
    for _ in range(60):
        history = History()
        for step in range(31):
            history.rewards = [[step, float(step)]]
            guard._compare(history, step, rng.standard_normal(32))
            history.evaluations.append([step, 0.0, 0.0])
        told, _ = told + bool(caplog.records), caplog.clear()
    assert told <= 0.1 * 60


def test_an_evaluation_that_lost_scores_is_told_and_not_the_best(config, caplog):
    guard, start, now = object.__new__(Guard), np.zeros(96), np.zeros(96)
    now[16:] = np.nan
    found = {'a': change(start, now)}
    guard._watch_unjudged(found, ['a'])
    assert 'prompts that had a (16 prompts) at the start lack it now' in caplog.text
    row = {'step': 1, 'fallen': [], 'missing': ['a'], 'action': '', 'brake': 1.0}
    history = History([[0, 0.5, 0.0], [1, 0.9, 0.0]], [row | {'step': 0, 'missing': []}, row])
    assert history.best()[0] == 0 and history.fallen_in_a_row == 0


def test_a_score_of_few_prompts_is_told(config, caplog):
    guard, start = object.__new__(Guard), np.zeros(8)
    guard._watch_unjudged({'a': change(start, start)}, [])
    assert not caplog.records
    guard._watch_unjudged({'a': change(start, start), 'b': change(start, [np.nan] + [0.0] * 7)}, [])
    assert 'fewer than 8 prompts have b at the start and now' in caplog.text


@pytest.mark.parametrize('begun', ['', 'adapters.safetensors'])
def test_the_kl_of_the_start_is_that_of_its_adapters(config, begun):
    config.lora.init_from, start = begun, {'a': np.zeros(1)}
    guard, measured = object.__new__(Guard), []
    guard._config, guard._unseen, guard._texts, guard._record = config, [], None, None
    guard._divergence, guard._psi = lambda policy, *_: measured.append(policy) or np.ones(2), None
    guard._start, history = Evaluation({'total': np.zeros(8)}, np.zeros(0), []), History()
    guard(0, start, history, np.zeros(8))
    assert measured == ([start] if begun else [None]) and history.guarded[0]['kl'] == 1


def test_a_jump_of_the_kl_is_told(config, caplog):
    guard = object.__new__(Guard)
    guard._config, guard._divergence = config, None
    guard._watch_kl(None, None)  # not measured
    guard._divergence, config.guard.kl_jump = 'measured', 10.0
    for earlier, now in ((0.0, 5.0), (None, 5.0), (0.5, 4.9)):
        guard._watch_kl(earlier, now)
    assert not caplog.records
    guard._watch_kl(0.5, 5.1)
    assert 'the KL grew from 0.5 to 5.1 between two evaluations' in caplog.text
    guard._watch_kl(0.5, None)
    assert 'the KL is not finite on any prompt' in caplog.text


class Alike(Sampler):
    """Draws the second picture of a prompt like the first."""

    def __call__(self, params, policy, conditioning, negative, keys):
        images, finite = super().__call__(params, policy, conditioning, negative, keys)
        return (images if policy is None else np.repeat(images[::2], 2, axis=0)), finite


def test_all_processes_decide_alike(config):
    """One of two is blind to the pictures of its own share; it finds the fall all the same."""
    config.guard.level = 0.5

    def decide(hosts):
        opened = session(config, lambda texts: texts, hosts=hosts)
        embed = lambda images: np.ones((len(images), 2))
        if hosts.primary:
            embed = lambda images: images.reshape(len(images), -1).astype(np.float32) - 127.5
        guard, history = object.__new__(Guard), History()
        guard._config, guard._session, guard._record = config, opened, None
        guard._divergence, guard._unseen, guard._folder = None, ['diversity'], None
        guard._texts = guard._evaluated = [prompt.text for prompt in PROMPTS]
        with At(JpegReward(), 1) as scorer:
            guard._evaluator = Evaluator(
                opened, PROMPTS, scorer, group=2, embed=embed, sample=Alike()
            )
            guard._start = guard._evaluator(None)
            scores = guard._start.scores['jpeg']
            told = guard(1, {'a': np.zeros(1)}, history, scores)
        return told, history.guarded

    (first, rows_first), (second, rows_second) = on_hosts(decide)
    assert first == second and rows_first == rows_second
    assert rows_first[0]['fallen'] == ['diversity'] and rows_first[0]['missing'] == []
