"""The guard in runs of seconds: a reward that is trained on, and one that pays for the opposite."""

import dataclasses
import json
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from densegrpo_jax.evaluation.evaluator import Evaluation, Evaluator
from densegrpo_jax.guard.check import check_guard, planned, unseen_of
from densegrpo_jax.guard.falls import change
from densegrpo_jax.guard.guard import Guard
from densegrpo_jax.guard.history import History
from densegrpo_jax.rewards import JpegReward
from densegrpo_jax.rewards.base import Scores
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.rewards.remote.service import RewardService
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.sampling.session import Checked, check
from densegrpo_jax.training import run as run_module
from densegrpo_jax.training.run import run
from tests.evaluation.drawn import PROMPTS, At, Sampler, session
from tests.fake_hosts import on_hosts
from tests.programs import shared_programs  # noqa: F401
from tests.rewards.loopback import serving
from tests.training.one_update import START, one_iteration
from tests.training.small_run import Brightness, equal, final_state, make_config, one_device, rows

pytestmark = pytest.mark.usefixtures('exact_runs', 'shared_programs')


class Darkness(Brightness):
    """Falls whenever brightness rises."""

    name, names, range = 'darkness', ('darkness',), (-1.0, 0.0)

    def __call__(self, images, prompts, metadata):
        bright = super().__call__(images, prompts, metadata).values['brightness']
        return Scores({'darkness': -bright}, np.ones(len(images), bool))


class Same(Brightness):
    """Never changes."""

    name, names, range = 'same', ('same',), (0.0, 1.0)

    def __call__(self, images, prompts, metadata):
        return Scores({'same': np.ones(len(images), np.float32)}, np.ones(len(images), bool))


class Chance(Brightness):
    """Changes with every pixel, and means nothing."""

    name, names, range = 'chance', ('chance',), (0.0, 1.0)

    def __call__(self, images, prompts, metadata):
        found = [zlib.crc32(image.tobytes()) / 2**32 for image in images]
        return Scores({'chance': np.array(found, np.float32)}, np.ones(len(images), bool))


@pytest.fixture
def config(folder, monkeypatch):
    """Five updates on brightness with large steps, each evaluated and saved. Darkness has fallen
    from the third one on.
    """
    monkeypatch.setitem(REWARDS, 'darkness', Darkness)
    monkeypatch.setitem(REWARDS, 'same', Same)
    monkeypatch.setitem(REWARDS, 'chance', Chance)
    found = make_config(
        folder,
        iterations=5,
        **{
            'eval.every': 1,
            'eval.report': False,
            'eval.groups': 0,
            'checkpoint.keep': 10,
            'optim.learning_rate': 0.03,
            'optim.decay': 'linear',
            'ema.every': 1,
            'ema.decay': 0.0,
            'reward_workers': 1,
            'guard.on': True,
            'guard.level': 0.01,
            'guard.prompts': 8,
            'guard.images': 2,
            'guard.kl_prompts': 0,
        },
    )
    found.reward = {'brightness': {'weight': 1.0}}
    found.eval.panel = {'darkness': {}}
    return found


def trained(config, workdir):
    return run(config, workdir, one_device(), StopRequest())


def test_a_fallen_score_keeps_a_checkpoint_from_being_the_best(config, tmp_path, caplog):
    """Warns, and leaves the training as it is without a guard."""
    config.guard.update(kl_prompts=2, kl_jump=1.0)
    summary = trained(config, tmp_path / 'run')
    of = summary['guard']['evaluations']
    assert [row['step'] for row in of] == [0, 1, 2, 3, 4, 5]
    assert of[0]['fallen'] == [] and of[-1]['fallen'] == ['darkness'] and of[-1]['kl'] > 0
    assert summary['after']['mean'] > summary['before']['mean']
    down = {row['step'] for row in of if row['fallen']}
    order = [step for step, *_ in sorted(summary['evaluations'], key=lambda e: e[1])]
    best = [step for step in order if step not in down][-1]
    assert order[-1] in down and 0 < best < order[-1]  # the highest is a fallen one
    checkpoints = Checkpoints(tmp_path / 'run' / 'checkpoints', read_only=True)
    assert summary['best']['step'] == checkpoints.best_step() == best
    last = [row for row in rows(tmp_path / 'run') if row['step'] == 5][0]
    assert last['guard/fallen'] == 1 and last['guard/darkness'] == pytest.approx(
        of[-1]['scores']['darkness'][0]
    )
    assert 'the KL grew from' in caplog.text
    page = sorted((tmp_path / 'run' / 'guard').glob('verdict_*.html'))[-1]
    assert 'darkness fell below the start' in page.read_text() and page.with_suffix('.png').exists()
    # four of eight prompts are shown, two pictures each, at the start and now
    assert 'All 2 pictures of each prompt' in page.read_text()
    strips = [np.asarray(Image.open(p)).shape for p in (page.parent / 'images').glob('*/*.png')]
    assert strips == [(16, 32 + 1 + 32, 3)] * 4 * 6
    config.guard.on = False
    trained(config, tmp_path / 'plain')
    equal(final_state(tmp_path / 'run')[1], final_state(tmp_path / 'plain')[1])


@pytest.mark.slow
def test_nothing_falls_where_nothing_is_lost(config, tmp_path):
    config.eval.panel = {'chance': {}}
    config.guard.images, config.guard.action, config.guard.level = 1, 'stop', 0.01
    summary = trained(config, tmp_path)
    of = summary['guard']['evaluations']
    assert [row['fallen'] for row in of] == [[]] * 6
    # the test has seen scores that move, and could have found a fall
    assert all(0 < p < 1 for row in of[1:] for _, _, _, p, _ in [row['scores']['chance']])
    assert summary['best']['step'] == max(summary['evaluations'], key=lambda e: e[1])[0]
    assert not list((tmp_path / 'guard').glob('verdict_*'))


def test_stop_ends_the_run_and_warn_continues_it(config, tmp_path, caplog):
    config.guard.action = 'stop'
    summary = trained(config, tmp_path)
    stopped = summary['updates']
    assert stopped < 5 and summary['guard']['stopped']
    assert len([row for row in summary['guard']['evaluations'] if row['fallen']]) == 2
    assert trained(config, tmp_path)['updates'] == stopped
    config.guard.action = 'warn'
    assert trained(config, tmp_path)['updates'] == 5


def test_the_brake_continues_bit_for_bit(config, tmp_path):
    """From a stop between the two falls that let it act, and without what it had measured."""
    config.guard.action = 'brake'
    summary = trained(config, tmp_path / 'whole')
    of = summary['guard']['evaluations']
    first, second, *_ = [row['step'] for row in of if row['fallen']]
    assert [row['step'] for row in of if row['action'] == 'brake'] == [second]
    assert second == first + 1 < 5 and summary['guard']['brake'] == 0.5
    shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
    shutil.rmtree(tmp_path / 'cut' / 'guard')
    for step in range(second, 6):
        shutil.rmtree(tmp_path / 'cut' / 'checkpoints' / str(step))
    assert trained(config, tmp_path / 'cut')['guard'] == summary['guard']
    equal(final_state(tmp_path / 'cut')[1], final_state(tmp_path / 'whole')[1])


@pytest.mark.parametrize(('kind', 'beta'), [('rate', 0.0), ('beta', 0.5)])
def test_the_brake_in_an_update(kind, beta):
    """Half the step; twice the weight of the KL."""

    def moved_by(beta, brake=None):
        on = {'guard.on': True, 'guard.action': 'brake', 'guard.brake': kind}
        further = () if brake is None else (np.float32(brake),)
        changes = {'loss.beta': beta, **(on if further else {})}
        *_, state, _ = one_iteration(further=further, **changes)
        return np.asarray(state.policy['a']) - START

    moved = {'plain': moved_by(beta), 'one': moved_by(beta, 1.0), 'half': moved_by(beta, 0.5)}
    doubled = moved_by(2 * beta)
    np.testing.assert_allclose(moved['one'], moved['plain'], rtol=1e-6)
    if kind == 'rate':
        np.testing.assert_allclose(moved['half'], 0.5 * moved['plain'], rtol=1e-6)
    else:
        assert np.abs(moved['half'] - moved['plain']).max() > 1e-6
        np.testing.assert_allclose(moved['half'], doubled, rtol=1e-6)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'guard.images': 1}, 'has nothing to measure: name rewards .* in eval.panel'),
        ({'guard.prompts': 7}, 'on 7 different prompts, and on .* raise guard.prompts=7'),
        (
            {'data.eval_prompts': 7},
            'on 7 different prompts, and .* finds no fall: give it more by data.eval and',
        ),
        ({'guard.images': 9}, 'guard.images=9 of a prompt .*raise eval.batch=8'),
        ({'guard.action': 'brake', 'guard.brake': 'beta'}, "use guard.brake='rate'"),
        ({'guard.level': 1.0}, 'guard.level=1.0: expected a finite number above 0 and below 1'),
        ({'eval.embedding': 'nowhere'}, "eval.embedding='nowhere'"),
    ],
)
def test_what_a_guard_cannot_do_is_said_first(config, changes, message):
    config.eval.panel = {}
    config.update_from_flattened_dict(changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_guard(check(config, one_device(), needs=('test',)))


def test_a_score_that_is_only_logged_is_unseen(config):
    config.eval.panel, config.guard.images = {}, 1
    config.reward = {'brightness': {'weight': 1.0}, 'darkness': {'weight': 0.0}}
    checked = check(config, one_device(), needs=('test',))
    check_guard(checked)
    assert unseen_of(checked.reward) == ['darkness']


class Choosy(Brightness):
    """Scores no prompt of the panel."""

    def check(self, prompts, metadata):
        if not all('"' in prompt for prompt in prompts):
            raise ValueError('no word in quotes')


def test_on_the_panels_prompts_the_training_reward_is_measured_too(config, monkeypatch, caplog):
    """And what of it is only logged; if it cannot be, that is said or refused."""
    config.eval.panel_prompts = 'panel'
    config.reward = {'brightness': {'weight': 1.0}, 'same': {'weight': 0.0}}

    def guarded():
        checked = check(config, one_device(), needs=('test',))
        return check_guard(checked), checked

    part, checked = guarded()
    assert [reward.name for reward in part.rewards] == ['composite', 'darkness']
    assert part.rewards[0] is checked.reward and len(part.prompts) == 8
    config.eval.panel = {'same': {}}  # the panel's alone
    part, _ = guarded()
    assert [reward.name for reward in part.rewards] == ['same']
    assert "(eval.panel has ['same'] too)" in caplog.text
    monkeypatch.setitem(REWARDS, 'brightness', Choosy)
    config.eval.panel = {'darkness': {}}
    with pytest.raises(
        ValueError, match=r'watches same, of weight 0 .*no word in quotes.*eval.panel'
    ):
        guarded()
    config.reward = {'brightness': {'weight': 1.0}}
    part, _ = guarded()
    assert [reward.name for reward in part.rewards] == ['darkness']
    assert 'the trained score is not measured' in caplog.text and 'no word' in caplog.text


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


def test_the_evaluations_of_a_run_are_counted(config):
    config.update_from_flattened_dict({'iterations': 60, 'eval.every': 10, 'guard.every': 1})
    assert planned(config) == 6
    config.update_from_flattened_dict({'iterations': 61, 'guard.every': 2})
    assert planned(config) == 4
    guard = object.__new__(Guard)
    guard._config = config
    assert [step for step in (0, 10, 20, 30, 40, 50, 60, 61) if guard.due(step)] == [
        0,
        20,
        40,
        60,
        61,
    ]


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


def test_a_stop_while_the_guard_measures_is_made_up_for(config, tmp_path, monkeypatch):
    config.guard.kl_prompts, config.iterations = 2, 2
    stop, measured = StopRequest(), Guard._kl

    def stopped(self, policy, key):
        stop.signal_name = 'SIGTERM'
        stop.check()

    monkeypatch.setattr(Guard, '_kl', stopped)
    with pytest.raises(Preempted):
        run(config, tmp_path, one_device(), stop)
    monkeypatch.setattr(Guard, '_kl', measured)
    summary = trained(config, tmp_path)
    assert [row['step'] for row in summary['guard']['evaluations']] == [0, 1, 2]
    assert [step for step, *_ in summary['evaluations']] == [0, 1, 2]


@pytest.mark.slow
def test_a_policy_that_was_trained_anew_is_measured_anew(config, tmp_path):
    config.iterations = 1
    first = trained(config, tmp_path)['guard']['evaluations'][-1]['scores']
    shutil.rmtree(tmp_path / 'checkpoints')
    config.optim.learning_rate = 0.3
    again = trained(config, tmp_path)['guard']['evaluations'][-1]['scores']
    assert again['darkness'][0] != first['darkness'][0]


def test_the_start_is_measured_anew_if_the_base_is_another(config, tmp_path, monkeypatch):
    """With a record of an earlier version, which does not tell the weights of the base."""
    config.iterations = 1
    trained(config, tmp_path)
    shutil.rmtree(tmp_path / 'checkpoints')
    scores = tmp_path / 'guard' / 'scores.jsonl'
    first, _, rest = scores.read_text().partition('\n')
    settings = json.loads(first)['settings']
    del settings['weights of the base']
    scores.write_text(json.dumps({'settings': settings}) + '\n' + rest)
    monkeypatch.setattr(Checked, 'base_digest', 'other')
    trained(config, tmp_path)
    lines = scores.read_text().splitlines()
    policies = {json.loads(line).get('policy', '') for line in lines}
    assert len([name for name in policies if name.startswith('start ')]) == 2


def test_evaluations_without_a_guard_may_be_the_best():
    row = lambda step, *fallen, **more: {
        'step': step,
        'fallen': [*fallen],
        'action': '',
        'brake': 1.0,
        **more,
    }
    history = History([[s, 0.5 + s / 10, 0.0] for s in range(5)])
    history.guarded, history.passed_over = [row(0), row(2, 'a')], [1]
    assert [history.competes(s) for s in range(5)] == [True, False, False, True, True]
    assert history.best()[0] == 4
    history.pass_over_unguarded()  # on again: it has seen neither 3 nor 4
    assert [history.competes(s) for s in range(5)] == [True, False, False, False, False]
    assert history.passed_over == [1, 3, 4] and history.best()[0] == 0
    history.passed_over.append(0)
    assert history.best() is None


def test_what_no_guard_has_seen_competes_no_more(config, tmp_path):
    """Each update is worse than the one before; the guard begins with the second, and what it
    measures comes from a server.
    """
    config.reward = {'brightness': {'weight': 1.0}, 'darkness': {'weight': 1e-9}}
    config.eval.best, config.eval.panel = 'darkness', {}
    config.iterations, config.guard.on, config.guard.images = 1, False, 1
    trained(config, tmp_path)
    kept = lambda: Checkpoints(tmp_path / 'checkpoints', read_only=True)
    assert kept().best_step() == 1
    config.guard.on = True
    with serving(RewardService(Same(), 'f00', '0').app) as urls:
        remote = {'urls': urls, 'names': ('same',), 'range': (0.0, 1.0)}
        config.eval.panel = {'remote': remote}
        trained(config, tmp_path)  # nothing is left to measure, and nothing is withdrawn
        assert kept().best_step() == 1
        config.iterations = 2
        summary = trained(config, tmp_path)
    scores = [score for _, score, _ in summary['evaluations']]
    assert scores[0] > scores[1] > scores[2]
    (row,) = summary['guard']['evaluations']
    assert row['step'] == 2 and row['scores']['same'][:2] == [1.0, 0.0]
    assert summary['best']['step'] == kept().best_step() == 2
    assert kept().meta(1)['evaluations'] == summary['evaluations'][:2]  # amended, not lost


def test_what_the_rows_say_of_the_past():
    row = lambda *fallen, action='', brake=1.0: {
        'step': 0, 'fallen': [*fallen], 'action': action, 'brake': brake,
    }  # fmt: skip
    of = lambda *rows: History(guarded=[*rows])
    assert (of().fallen_in_a_row, of().brake, of().stopped_by_guard) == (0, 1.0, False)
    assert of(row('a'), row(), row('a'), row('b')).fallen_in_a_row == 2
    unknown = row() | {'missing': ['a']}  # neither counts nor ends what fell before
    assert of(row('a'), unknown, row('a'), unknown).fallen_in_a_row == 2
    braked = of(row('a'), row('a', action='brake', brake=0.5), row('a', brake=0.5))
    assert braked.fallen_in_a_row == 1 and braked.brake == 0.5
    assert of(row('a', action='stop')).stopped_by_guard
    assert not of(row('a', action='stop'), row('a')).stopped_by_guard


def test_a_record_that_cannot_be_used_is_refused_before_anything_is_loaded(
    config, tmp_path, monkeypatch
):
    def load(*given):
        raise NotImplementedError('loaded')

    monkeypatch.setattr(run_module, 'load', load)
    with pytest.raises(NotImplementedError, match='loaded'):
        trained(config, tmp_path)
    config.eval.panel = {'same': {}}
    with pytest.raises(ValueError, match='darkness.* go back to those, or remove .*guard'):
        trained(config, tmp_path)
    (tmp_path / 'guard' / 'scores.jsonl').write_text('{}\n')
    with pytest.raises(ValueError, match=r'scores.jsonl:1 is damaged .*; remove .*guard: then'):
        trained(config, tmp_path)
