"""Evaluations that are stopped and continue, alone and by several processes, the diversity of a
group, and the KL.
"""

import concurrent.futures
import functools
import io
import shutil
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.evaluation.divergence import Divergence
from densegrpo_jax.evaluation.diversity import make_embedding, pairwise_diversity
from densegrpo_jax.evaluation.evaluator import Evaluator, prompts_together, strip
from densegrpo_jax.evaluation.record import Record
from densegrpo_jax.rewards import JpegReward, Scorer
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.stop import Preempted
from densegrpo_jax.sampling import noise
from tests.clip_folder import random_clip
from tests.evaluation.drawn import PROMPTS, At, Sampler, session
from tests.fake_hosts import on_hosts

CONFIG = types.SimpleNamespace(seed=3, eval=types.SimpleNamespace(batch=8, steps=2, shown=3))


def test_diversity_by_hand():
    right, left, up = [1.0, 0.0], [-3.0, 0.0], [0.0, 2.0]
    groups = np.array([[right, left, up], [right, right, right], [right, right, up]])
    np.testing.assert_allclose(
        pairwise_diversity(groups), [(2 + 1 + 1) / 3, 0, (0 + 1 + 1) / 3], atol=1e-7
    )
    np.testing.assert_allclose(pairwise_diversity(groups[:, 1:]), [1, 0, 1], atol=1e-7)
    with pytest.raises(ValueError, match='groups of 1'):
        pairwise_diversity(groups[:, :1])


def test_embeddings_tell_pictures_apart():
    black, white, grey = (np.full((32, 48, 3), value, np.uint8) for value in (0, 255, 120))
    features = make_embedding('pixels')(np.stack([black, white, grey]))
    assert features.shape == (3, 16 * 16 * 3)
    np.testing.assert_allclose(pairwise_diversity(features[None, :2]), 2)  # opposite
    # both darker than mid-grey
    np.testing.assert_allclose(pairwise_diversity(features[None, ::2]), 0, atol=1e-6)
    with pytest.raises(FileNotFoundError, match="eval.embedding='nowhere'"):
        make_embedding('nowhere')


def test_a_clip_folder_as_embedding(tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    random_clip(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
    found = pairwise_diversity(make_embedding(str(tmp_path))(images)[None])
    inputs = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path)(
        list(images), return_tensors='pt'
    )
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(**inputs).pooler_output).numpy()
    np.testing.assert_allclose(found, pairwise_diversity(features[None]), atol=1e-5)


def run(sampler, record, group=2, hosts=None, scorer=At, **options):
    opened = session(CONFIG, lambda texts: texts, hosts=hosts)
    options = {'embed': make_embedding('pixels'), **options}
    with scorer(JpegReward(), 1) as scorer:
        return Evaluator(opened, PROMPTS, scorer, group=group, sample=sampler, **options)(
            None, record, 'base'
        )


def test_a_stopped_evaluation_continues_where_it_was(tmp_path, capsys):
    whole, first, second = Sampler(), Sampler(fail=3), Sampler()
    expected = run(whole, Record(tmp_path / 'whole', {}))
    # 4 prompts of 2 pictures a batch, the last one filled up
    assert whole.calls == 3 and len(set(whole.drawn)) == 20
    with pytest.raises(KeyboardInterrupt):
        run(first, Record(tmp_path / 'part', {}))
    found = run(second, Record(tmp_path / 'part', {}))
    assert second.calls == 1 and second.drawn[:4] == whole.drawn[16:20]
    assert 'eval prompts 10/10' in capsys.readouterr().err
    for name, values in expected.scores.items():
        np.testing.assert_array_equal(found.scores[name], values)
    assert (
        list(expected.scores) == ['jpeg', 'diversity']
        and np.isfinite(expected.scores['diversity']).all()
    )
    # the three shown come from the disk
    np.testing.assert_array_equal(found.images, expected.images)
    third = Sampler()
    run(third, Record(tmp_path / 'part', {}))
    assert not third.calls


@pytest.mark.parametrize(
    'batch, count, group, devices, expected',
    [
        (8, 10, 2, 1, 4),
        (24, 512, 1, 16, 16),
        (24, 512, 3, 16, 16),  # 48 images, three on a device: of 8 prompts each would draw all 24
        (8, 512, 1, 16, 16),  # one on a device, as with any fewer
        (64, 10, 1, 16, 10),  # all there are; the sampler splits them
        (192, 512, 1, 64, 192),
    ],
)
def test_an_evaluations_batches_divide_over_the_devices(batch, count, group, devices, expected):
    config = types.SimpleNamespace(eval=types.SimpleNamespace(batch=batch))
    assert prompts_together(config, count, group, devices) == expected


class Fails(At):
    """Has no score for any image."""

    def submit(self, *batch, **how):
        future = super().submit(*batch, **how)
        found, future = future.result(), concurrent.futures.Future()
        future.set_result(found._replace(valid=np.zeros_like(found.valid)))
        return future


def test_a_score_that_no_prompt_has_is_tried_again(tmp_path):
    """A null for every prompt would be refused at every further start."""
    assert np.isnan(run(Sampler(), Record(tmp_path, {}), scorer=Fails).scores['jpeg']).all()
    second, third = Sampler(), Sampler()
    found = run(second, Record(tmp_path, {}))
    assert second.calls == 3 and np.isfinite(found.scores['jpeg']).all()
    run(third, Record(tmp_path, {}))
    assert not third.calls


def test_a_kill_while_a_picture_is_saved_leaves_none(tmp_path, monkeypatch):
    """Half of one would stop every later evaluation in that folder."""
    write = Image.Image.save

    def killed(self, target, **options):
        if options['format'] != 'PNG':  # the reward's
            return write(self, target, **options)
        write(self, png := io.BytesIO(), **options)
        half = png.getvalue()[: png.tell() // 2]
        target.write(half) if hasattr(target, 'write') else target.write_bytes(half)
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, 'save', killed)
    with pytest.raises(KeyboardInterrupt):
        run(Sampler(), Record(tmp_path, {}))
    monkeypatch.undo()
    found = run(Sampler(), Record(tmp_path, {}))
    assert len(found.images) == 3 and len(list((tmp_path / 'images' / 'base').iterdir())) == 3


class Share(Scorer):
    """Scores, and counts the pictures."""

    def __init__(self, *args, counted):
        super().__init__(*args)
        self._counted = counted

    def submit(self, images, *rest, **how):
        self._counted.append(len(images))
        return super().submit(images, *rest, **how)


def test_several_processes_share_an_evaluation_and_its_record(tmp_path):
    """Each scores a part of every batch; the first one keeps all of it, and what it has none of
    them draws again.
    """
    expected = run(Sampler(), Record(tmp_path / 'one', {}))
    lines = (tmp_path / 'one' / 'scores.jsonl').read_text().splitlines(keepends=True)
    # of all, of five and of no prompts
    for begun, calls in ((lines[:1], 3), (lines[:6], 2), (lines, 0)):
        folder = tmp_path / f'of {len(begun)}'
        shutil.copytree(tmp_path / 'one', folder)
        (folder / 'scores.jsonl').write_text(''.join(begun))
        samplers, counted = [Sampler() for _ in range(3)], [[] for _ in range(3)]

        def evaluate(hosts):
            scorer = functools.partial(Share, counted=counted[hosts.index])
            return run(
                samplers[hosts.index],
                Record(folder, {}) if hosts.primary else None,
                hosts=hosts,
                scorer=scorer,
            )

        results = on_hosts(evaluate, 3)
        assert [sampler.calls for sampler in samplers] == [calls] * 3
        assert sum(map(sum, counted)) == 2 * (len(lines) - len(begun)) and (
            not calls or all(counted)
        )
        for result in results:
            for name, values in expected.scores.items():
                np.testing.assert_array_equal(result.scores[name], values)
        np.testing.assert_array_equal(results[0].images, expected.images)
        assert sorted((folder / 'scores.jsonl').read_text().splitlines()) == sorted(
            ''.join(lines).splitlines()
        )


def test_all_processes_have_one_diversity_whatever_their_embeddings():
    embed = lambda hosts: lambda images: make_embedding('pixels')(images) + 100 * hosts.index
    first, second = on_hosts(lambda hosts: run(Sampler(), None, hosts=hosts, embed=embed(hosts)))
    np.testing.assert_array_equal(first.scores['diversity'], second.scores['diversity'])
    assert np.isfinite(first.scores['diversity']).all()


def test_a_single_picture_per_prompt_is_the_first_of_a_group(tmp_path):
    single, pairs = Sampler(), Sampler()
    run(single, Record(tmp_path / 'single', {}), group=1)
    run(pairs, Record(tmp_path / 'pairs', {}))
    assert single.drawn[:10] == pairs.drawn[:20:2]


def test_all_pictures_of_a_prompt_are_kept_in_a_strip(tmp_path):
    first = run(Sampler(), Record(tmp_path, {}), strips=True)
    single = run(Sampler(), None)
    assert first.images.shape == (3, 16, 16 + 1 + 16, 3)
    np.testing.assert_array_equal(first.images[:, :, :16], single.images)
    assert (first.images[:, :, 17:] != single.images).any((1, 2, 3)).all()
    again = run(Sampler(fail=1), Record(tmp_path, {}), strips=True)  # from the disk
    np.testing.assert_array_equal(again.images, first.images)
    large = np.repeat(np.uint8([[[[7] * 3]], [[[9] * 3]]]), 1025, axis=1)
    found = strip(np.repeat(large, 600, axis=2))
    row = [7] * 200 + [255] * 3 + [9] * 200
    assert found.shape == (342, len(row), 3) and (found[0, :, 0] == row).all()


class Line:
    """A pipeline whose policy differs from the base by a velocity that is constant in x and s:
    policy * pooled.
    """

    end_scale = 1.0
    initial_scale = staticmethod(lambda sigmas: 1.0)
    sigmas = staticmethod(lambda steps, height, width: SIGMAS)
    latent_shape = staticmethod(lambda height, width: (4,))
    decode = staticmethod(
        lambda params, z, height, width: (
            jnp.zeros((len(z), 8, 8, 3), jnp.uint8),
            jnp.ones(len(z), bool),
        )
    )

    def velocity_fn(
        self, base, policy, conditioning, guidance, height, width, *, negative=None, both=False
    ):
        assert negative is None
        return lambda x, s: (
            0.3 * x + s[:, None] + (0 if policy is None else policy) * conditioning['pooled']
        )


SIGMAS = np.float32([1, 0.9, 0.6, 0.3, 0])


def test_kl_in_closed_form(tmp_path):
    """A velocity that moves by dv moves a step's mean by (1 + a^2 (1 - s) / (2 s)) dv dt
    (Flow-GRPO's Eq. 9); its std is a sqrt(dt).
    """
    config = default_config()
    config.rollout.update(steps=4, kernel='sde', noise='constant', level=0.7, first=1)
    config.eval.batch, batches = 9, []

    def encoder(texts):
        batches.append(len(texts))
        return {'pooled': np.float32([[1 + int(t.split()[1])] for t in texts])}

    divergence = Divergence(session(config, encoder, 8, Line()), PROMPTS, 9)
    record = Record(tmp_path, {})
    found = divergence(np.float32(0.2), record, 'x')
    # the last transition, into clean latents, is not trained
    s, dt = SIGMAS[1:3], np.diff(SIGMAS)[1:3]
    per_velocity = np.mean(np.square((1 + 0.7**2 * (1 - s) / (2 * s)) * dt) / (2 * 0.7**2 * -dt))
    np.testing.assert_allclose(
        found[:9], per_velocity * np.square(0.2 * (1 + np.arange(9))), rtol=1e-4
    )
    assert np.isnan(found[9]) and batches == [8, 8]  # they divide over the devices
    # from the record
    np.testing.assert_array_equal(divergence(np.float32(0.2), record, 'x'), found)
    assert not divergence(None, record, 'base')[:9].any()
    # A run that calibrated first: its own trajectories have its psi, here at k = 1 and 2.
    masks, psi = step_masks(SIGMAS, first=1), np.array([0.9, 0.4])
    document = {
        'finished': True,
        'history': [],
        'psi': [0.7, *psi, 0.7],
        'geometry': noise.geometry(config, SIGMAS, masks),
    }
    noise.write(tmp_path / 'psi.json', document)
    found = divergence(np.float32(0.2), record, 'y', psi=tmp_path / 'psi.json')
    per_velocity = np.mean(np.square((1 + psi**2 * (1 - s) / (2 * s)) * dt) / (2 * psi**2 * -dt))
    np.testing.assert_allclose(
        found[:9], per_velocity * np.square(0.2 * (1 + np.arange(9))), rtol=1e-4
    )


def test_a_stop_in_the_last_wait_for_the_kl_ends_all_processes(monkeypatch):
    """What comes next may wait without a limit."""
    monkeypatch.setattr(Communicator, 'POLL_SECONDS', 1e9)
    monkeypatch.setattr(
        Communicator, 'leave', functools.partialmethod(Communicator.leave, seconds=60)
    )
    config = default_config()
    config.rollout.update(steps=4, kernel='sde', noise='constant', level=0.7, first=1)
    encoder = lambda texts: {'pooled': np.ones((len(texts), 1), np.float32)}

    def measured(hosts):
        here = session(config, encoder, 8, Line(), hosts)
        divergence = Divergence(here, PROMPTS, 8)
        if hosts.primary:
            divergence._divergence = lambda *_: setattr(here.stop, 'signal_name', 'SIGTERM')
        return divergence(np.float32(0.2), None, 'x')

    assert [type(end) for end in on_hosts(measured)] == [Preempted, Preempted]
