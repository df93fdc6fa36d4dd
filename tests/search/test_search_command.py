"""The search of prompts with a real pipeline: what is kept, how it continues, what is refused."""

import dataclasses
import functools
import json
import types
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from densegrpo_jax.config.method import search_kernel_of
from densegrpo_jax.config.validation import validate
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.rewards.local.pixels import PixelsReward
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.images import save
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.sampling import noise
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import check, load
from densegrpo_jax.search import model, run
from densegrpo_jax.search.__main__ import given_images, with_noise_of
from densegrpo_jax.search.model import Model, temperature_of
from densegrpo_jax.search.record import FILE
from tests.clip_folder import random_clip
from tests.fake_hosts import on_hosts
from tests.programs import shared_programs  # noqa: F401
from tests.search.small_search import EVEN, PROMPTS, changed, searched

pytestmark = pytest.mark.usefixtures('shared_programs')


def test_a_search_keeps_what_it_finds_and_continues_where_it_stopped(
    session, tmp_path, monkeypatch
):
    whole = searched(session, EVEN, tmp_path / 'whole')
    row = whole[0]
    assert (row['nfe'], row['images'], row['gradients']) == (15, 15, 0)
    assert len(row['candidates']) == 15 and row['candidates'][-1][3] == 15
    samples = [r for _, k, _, _, r in row['candidates'] if k == 3]
    assert row['best']['total'] == max(samples)
    assert [point[1] for point in row['curve']] == sorted(point[1] for point in row['curve'])
    assert 0 < row['diversity'] < 1
    made = sorted(path.name for path in (tmp_path / 'whole/images').iterdir())
    assert made == [f'0000{i}{end}.png' for i in range(4) for end in ('', '_best')]
    assert '| `total` |' in (tmp_path / 'whole/summary.md').read_text()

    # stopped after the first two prompts, and a line half written
    stops, original = iter([True]), run.ProgressBar.update

    def update(self, *given):
        original(self, *given)
        if next(stops, False):
            raise Preempted('stopped')

    monkeypatch.setattr(run.ProgressBar, 'update', update)
    with pytest.raises(Preempted):
        searched(session, EVEN, tmp_path / 'parts')
    written = (tmp_path / 'parts' / FILE).read_text()
    assert written.count('"images"') == 2
    (tmp_path / 'parts' / FILE).write_text(written + '{"prompt": 2, "te')
    again = searched(session, EVEN, tmp_path / 'parts')
    without_time = lambda rows: {
        i: {k: v for k, v in row.items() if k != 'seconds'} for i, row in rows.items()
    }
    assert without_time(again) == without_time(whole)
    assert len(list((tmp_path / 'parts/images').iterdir())) == 8
    lines = (tmp_path / 'parts' / FILE).read_text().splitlines()
    assert [set(json.loads(line)) & {'settings', 'spread', 'prompt'} for line in lines] == [
        {'settings'},
        {'spread'},
        *[{'prompt'}] * 4,
    ]

    # other settings are not mixed in
    with pytest.raises(ValueError, match=r'search of other settings \(search.nfe: 18, now 21'):
        searched(changed(session, nfe=21), EVEN, tmp_path / 'parts')
    scenes = [dataclasses.replace(prompt, metadata={'tag': 'counting'}) for prompt in EVEN]
    with pytest.raises(ValueError, match='content of the prompts'):
        searched(session, scenes, tmp_path / 'parts')
    with monkeypatch.context() as patch:
        patch.setitem(vars(session), 'base_digest', 'other')
        with pytest.raises(ValueError, match="weights of the base: .*, now 'other'"):
            searched(session, EVEN, tmp_path / 'parts')


def test_a_prompt_without_its_pictures_is_not_on_record(session, tmp_path, monkeypatch):
    def full(*args):
        raise OSError('no space left')

    with monkeypatch.context() as patch:
        patch.setattr(run, 'draw', full)
        with pytest.raises(OSError, match='no space left'):
            searched(session, EVEN, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [[*line] for line in lines] == [['settings'], ['spread']]
    # measured with as many prompts at a time as are searched, and otherwise the same
    alone = changed(session, prompts=1)
    opened = lambda of: Model(of, None, None, run.search_kernel_of(of.config))
    flows = []
    monkeypatch.setattr(Model, 'flow', lambda self, prompts: flows.append(len(prompts)))
    monkeypatch.setattr(run, 'Walk', lambda flow, keys: types.SimpleNamespace(evaluations=3))
    found = iter(np.float32([[[0.1, 0.3]], [[0.2, 0.6]], [[0.5, 0.5]]]))
    particles = lambda: types.SimpleNamespace(reward=next(found))
    best = lambda *args: types.SimpleNamespace(particles=particles())
    monkeypatch.setattr(run, 'best_of_n', best)
    spread = run._measure_spread(opened(alone), PROMPTS, alone.config)
    assert flows == [1, 1, 1]
    assert spread == temperature_of(np.float32([[0.1, 0.3], [0.2, 0.6], [0.5, 0.5]]), '')


def test_one_prompt_without_scores_does_not_stop_the_others(session, tmp_path, monkeypatch):
    original, dead = Model.scored, {'a red sign', 'a blue sign'}

    def scored(self, prompts, images, *args):
        found = original(self, prompts, images, *args)
        reward = found.reward.copy()
        reward[[p.text in dead for p in prompts]] = -np.inf
        reward[:, 1:2] = -np.inf  # nor has one image of the others a score
        return found._replace(reward=reward)

    monkeypatch.setattr(Model, 'scored', scored)
    chosen = changed(session, method='best_of_n', nfe=9, particles=0)
    with pytest.raises(RewardError, match="2 of 3 prompts have no result.*first 'a red sign'; the"):
        searched(chosen, PROMPTS, tmp_path)
    dead.clear()
    found = searched(chosen, PROMPTS, tmp_path)
    assert sorted(found) == [0, 1, 2]
    for row in found.values():  # of those with a score
        (first, none, last) = (r for *_, r in row['candidates'])
        assert none is None and row['final']['total'] == pytest.approx((first + last) / 2)


def test_a_stop_after_the_last_batch_ends_all_processes(session, tmp_path, monkeypatch):
    """One may have looked for it before another is asked to stop."""
    monkeypatch.setattr(Communicator, 'POLL_SECONDS', 1e9)
    bounded = functools.partialmethod(Communicator.leave, seconds=60)
    monkeypatch.setattr(Communicator, 'leave', bounded)
    chosen = changed(session, method='best_of_n', nfe=9, particles=0)

    def search(hosts):
        here = dataclasses.replace(chosen, stop=StopRequest(Communicator(hosts)))
        stopping = lambda *_: setattr(here.stop, 'signal_name', 'SIGTERM')
        if hosts.primary:
            monkeypatch.setattr(run.Results, 'put', stopping)
        return searched(here, PROMPTS[:2], tmp_path)

    assert [type(end) for end in on_hosts(search)] == [Preempted, Preempted]


def test_a_stop_ends_the_wait_for_a_gradient(session):
    """Of a program that another process has not begun."""
    here = dataclasses.replace(session, stop=StopRequest())
    endless = Model(here, None, None, search_kernel_of(session.config))
    endless._guide = lambda *_: Future()
    flow, here.stop.signal_name = endless.flow(PROMPTS[:2]), 'SIGTERM'
    with pytest.raises(Preempted):
        flow.guide(np.zeros((2, 1, *flow.shape), np.float32), 0)


# The gradient is compared below, the guided laws are in test_laws.py.
@pytest.mark.slow
def test_following_the_gradient_gets_nearer_to_the_colour(session, tmp_path):
    found = {}
    for gradient in (False, True):
        options = dict(method='smc', gradient=gradient, nfe=24, particles=0, beta=1e-3)
        out = tmp_path / str(gradient)
        found[gradient] = searched(changed(session, **options), PROMPTS, out)
    assert found[True][0]['gradients'] == found[True][0]['nfe'] == 24
    best = {
        g: np.mean([row['final']['total'] for row in rows.values()]) for g, rows in found.items()
    }
    assert best[True] > best[False], best


def test_the_gradient_of_a_clip_reward_is_its_slope(session, tmp_path, monkeypatch):
    """Through network, decoder and image tower, an image at a time: against differences along
    random directions.
    """
    monkeypatch.setattr(model, 'PIXELS_WITH_GRADIENT', 16 * 32)
    config = session.config.copy_and_resolve_references()
    with config.unlocked():
        config.reward = {'clipscore': {'path': str(random_clip(tmp_path / 'clip'))}}
    checked = check(config, session.mesh, needs=('schedule', 'reward'))
    clip = load(checked, [p.text for p in PROMPTS[:1]])
    with Scorer(clip.reward, 1) as scorer:
        flow = Model(clip, None, scorer, search_kernel_of(config)).flow(PROMPTS[:1])
        rng = np.random.default_rng(0)
        x = rng.normal(size=(1, 2, *flow.shape)).astype(np.float32)
        v, reward, gradient = flow.guide(x, 1)
        # up to the rounding of products of other sizes
        np.testing.assert_allclose(v, flow.velocity(x, 1), atol=2e-6 * np.abs(v).max())
        # what is scored is rounded to 8 bits
        scored = flow.score(np.asarray(x - flow.sigmas[1] * v)).reward
        np.testing.assert_allclose(reward, scored, atol=2e-2 * np.abs(scored).max())
        gradient, h = np.asarray(gradient), 0.1
        size = np.linalg.norm(gradient)
        assert size > 1e-3
        for direction in (gradient, *rng.normal(size=(2, *x.shape)).astype(np.float32)):
            direction = direction / np.linalg.norm(direction)
            up, down = (np.asarray(flow.guide(x + d * direction, 1)[1]) for d in (h, -h))
            slope = (gradient * direction).reshape(1, 2, -1).sum(-1)
            np.testing.assert_allclose((up - down) / (2 * h), slope, atol=0.03 * size)


# The best of n is run above, a refinement below.
slow = lambda method: pytest.param(method, marks=pytest.mark.slow)


@pytest.mark.parametrize('method', [slow('best_of_n'), 'svdd', slow('refine'), 'psi'])
def test_every_method_runs_on_a_pipeline(session, tmp_path, method):
    options = dict(method=method, nfe=24, particles=0, candidates=2, beta=0.01)
    found = searched(changed(session, **options), PROMPTS[:2], tmp_path)
    assert 0.6 * 24 <= found[0]['nfe'] <= 24
    assert all(np.isfinite(row['best']['total']) for row in found.values())


def test_refinement_begins_with_given_images(session, tmp_path):
    """They are encoded and scored first. Images of another size are refused."""
    z = np.random.default_rng(1).normal(size=(2, 2, 4, 16)).astype(np.float32)
    packed = session.pipeline.from_spatial(z, 16, 32)
    np.testing.assert_array_equal(session.pipeline.spatial(packed, 16, 32), z)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 3), np.uint8)
    for i, image in enumerate(images):
        save(tmp_path / 'given' / f'{i}.png', image)
    given = given_images(session.config, str(tmp_path / 'given'))
    np.testing.assert_array_equal(given, images)
    chosen = changed(session, method='refine', nfe=20, candidates=2, beta=0.01)
    found = searched(chosen, PROMPTS[:2], tmp_path / 'out', given=given)
    assert found[0]['candidates'][0][1:4] == [3, 0, 0]  # the given are scored before anything runs
    assert 10 <= found[0]['nfe'] <= 20
    save(tmp_path / 'given' / '2.png', images[0, :8])
    with pytest.raises(ValueError, match='2.png has 32 x 8 pixels; the model draws 32 x 16'):
        given_images(session.config, str(tmp_path / 'given'))
    with pytest.raises(ValueError, match="--from is for search.method='refine'"):
        run.make_budget(changed(session, method='pg'), given=2)


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 2])
def test_many_particles_go_through_the_network_a_few_at_a_time(session, devices):
    mesh = make_mesh(session.config.mesh, jax.devices()[:devices])
    found = []
    for batch in (12, 5):  # all of twelve rows together; in three parts
        config = session.config.copy_and_resolve_references()
        config.eval.batch = batch
        config.mesh.data = devices
        here = load(check(config, mesh, needs=('schedule', 'reward')), [p.text for p in EVEN])
        flow = Model(here, None, None, search_kernel_of(config)).flow(EVEN)
        x = jax.random.normal(jax.random.key(0), (4, 3, *flow.shape))
        found.append(np.asarray(flow.velocity(x, 0)))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6 * np.abs(found[0]).max())


def test_eight_devices_find_what_one_finds(session, tmp_path):
    one = searched(session, PROMPTS[:2], tmp_path / 'one')
    mesh = make_mesh({'data': 4, 'fsdp': 2, 'tensor': 1})
    checked = check(session.config, mesh, needs=('schedule', 'reward'))
    split = load(checked, [p.text for p in PROMPTS])
    eight = searched(split, PROMPTS[:2], tmp_path / 'eight')
    for i in one:
        ours, theirs = (np.array(rows[i]['candidates'], float) for rows in (one, eight))
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_what_does_not_fit_is_refused_before_anything_runs(session):
    for options, message in (
        (dict(method='pg', gradient=True), 'follows no gradient; use one of'),
        (dict(method='pg', kernel='ode'), "never separate; use it with search.method='best_of_n'"),
        (dict(method='pg', nfe=5), 'search.nfe=5 is too small for pg.*takes 9 evaluations'),
        (dict(method='refine', from_level=0.0), 'changes nothing'),
        (dict(kernel='cps'), "search.kernel='cps' takes noise levels of the kind 'eta', and rollo"),
    ):
        with pytest.raises(ValueError, match=message):
            run.make_budget(changed(session, **options))
    for options, message in (
        (dict(method='beam'), "search.method='beam'"),
        (dict(temperature=0.0), 'search.temperature=0'),
        (dict(step_size=5.0), 'search.step_size=5'),
    ):
        with pytest.raises(ValueError, match=message):
            validate(changed(session, **options).config)


@pytest.mark.parametrize(
    ('method', 'name', 'value'),
    [
        ('pg', 'particles', 5),
        ('psi', 'particles', 5),
        ('psi', 'chains', 2),
        ('svdd', 'candidates', 2),
        ('refine', 'candidates', 2),
        ('refine', 'designs', 3),
    ],
)
def test_a_size_that_is_given_is_the_searchs(session, method, name, value):
    given = {'method': method, 'nfe': 400}
    plain = run.make_budget(changed(session, **given)).sizes
    sizes = run.make_budget(changed(session, **given, **{name: value})).sizes
    assert getattr(sizes, name) == value != getattr(plain, name)


def test_transitions_without_a_noise_level_cost_no_candidates(session):
    levels = session.schedule.noise_levels * np.array([1, 0, 1])
    noisy = changed(session, method='svdd', nfe=24)
    silent = session.schedule._replace(noise_levels=levels)
    silent = types.SimpleNamespace(config=noisy.config, schedule=silent)
    found = [run.make_budget(each) for each in (noisy, silent)]
    assert found[0].sizes.designs < found[1].sizes.designs


def test_a_reward_that_cannot_tell_samples_apart_has_no_unit():
    with pytest.raises(RewardError, match='have no unit: do this, or use a smoother reward'):
        temperature_of(np.zeros((3, 4)), 'do this')
    with pytest.raises(RewardError, match='all have the same reward'):
        temperature_of(np.array([[1.0, -np.inf], [2.0, -np.inf]]), '')
    rewards = np.array([[0.0, 2.0, -np.inf], [5.0, 9.0, 7.0]])
    assert temperature_of(rewards, '') == pytest.approx(np.sqrt((2 + 4) / 2))


def test_the_pixels_reward():
    red = np.zeros((2, 4, 4, 3), np.uint8)
    red[0, ..., 0] = 255
    reward = PixelsReward((1.0, 0.0, 0.0))
    scores = reward(red, ['', ''], [{}, {}])
    np.testing.assert_allclose(scores.values['pixels'], [0, -1])
    slope = jax.grad(lambda x: reward.scores({}, x, None).sum())(np.float32(red) / 255)
    np.testing.assert_allclose(slope[1, 0, 0], [2 / 16, 0, 0], rtol=1e-6)
    with pytest.raises(ValueError, match='pixels.colour'):
        PixelsReward((2.0, 0.0, 0.0))


def test_a_run_that_calibrated_is_searched_with_its_noise(session, tmp_path):
    plain, config = session.config, session.config.copy_and_resolve_references()
    assert with_noise_of(tmp_path, plain) is plain
    config.noise.calibrate = True
    with pytest.raises(ValueError, match='noise.calibrate=True: a search calibrates nothing'):
        with_noise_of(None, config)
    before = make_schedule(session.pipeline, config)
    psi = [round(2 * float(level), 3) for level in before.noise_levels]
    geometry = noise.geometry(config, before.sigmas, before.masks)
    document = {'finished': True, 'history': [], 'psi': psi, 'geometry': geometry}
    noise.write(tmp_path / noise.FILE, document)
    found = with_noise_of(tmp_path, config)
    validate(found)
    np.testing.assert_allclose(make_schedule(session.pipeline, found).noise_levels, psi, rtol=1e-6)
