"""CLIP rewards against torch: the whole chain from pictures and prompts to scores, gradients,
batches and what missing files say.
"""

import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from densegrpo_jax.rewards import Scorer, build_reward
from densegrpo_jax.rewards.differentiable import (
    has_gradient,
    reward_params,
    shapes,
    text_features,
    without_gradient,
)
from densegrpo_jax.rewards.local.aesthetic import LAYERS, AestheticReward
from densegrpo_jax.rewards.local.clip_rewards import ClipScoreReward, Hpsv2Reward, PickScoreReward
from tests.clip_folder import photo, random_clip

PROMPTS = [
    'A neon sign that says "HELLO"',
    'a red taxi',
    'A neon sign that says "HELLO"',
    'x ' * 40,
    '',
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return random_clip(tmp_path_factory.mktemp('clip'))


@pytest.fixture(scope='module')
def pictures():
    rng = np.random.default_rng(0)
    return np.stack([photo(rng, 64, 48) for _ in PROMPTS])


@pytest.fixture(scope='module')
def clipscore(folder):
    return ClipScoreReward(str(folder), batch_size=3)


@pytest.fixture(scope='module')
def head(folder):
    """The aesthetic head as published: a torch pickle, and its conversion."""
    torch, safetensors = pytest.importorskip('torch'), pytest.importorskip('safetensors.torch')
    torch.manual_seed(1)
    widths = [12, *LAYERS.values()]
    module = torch.nn.Sequential(*(torch.nn.Dropout() for _ in range(8)))
    for place, (wide, out) in zip(LAYERS, zip(widths, widths[1:])):
        module[place] = torch.nn.Linear(wide, out)
    module = torch.nn.ModuleDict({'layers': module}).eval()
    torch.save(module.state_dict(), folder / 'head.pth')
    safetensors.save_file(module.state_dict(), folder / 'head.safetensors')
    return module['layers']


def in_torch(folder, pictures, prompts):
    """(image features, text features), unit length, and exp(logit_scale): Transformers' processor,
    tokenizer and model.
    """
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    text = tokenizer(prompts, padding=True, truncation=True, max_length=24, return_tensors='pt')
    with torch.no_grad():
        pixels = processor(images=[Image.fromarray(p) for p in pictures], return_tensors='pt')
        out = model(**text, **pixels)
        return out.image_embeds, out.text_embeds, model.logit_scale.exp()


def close(ours, theirs):
    theirs = theirs.numpy()
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_scores_equal_torch(folder, pictures, head, clipscore):
    image, text, scale = in_torch(folder, pictures, PROMPTS)
    cosine, nothing = (image * text).sum(-1), [{}] * len(PROMPTS)
    assert cosine.std() > 0.05
    pick = PickScoreReward(str(folder), processor=str(folder), batch_size=4)(
        pictures, PROMPTS, nothing
    )
    assert pick.valid.all()
    close(pick.values['pickscore'], scale * cosine / 26)
    close(pick.values['pickscore_raw'], scale * cosine)
    score = clipscore(pictures, PROMPTS, nothing)
    close(score.values['clipscore'], scale * cosine / 30)
    close(score.values['clipscore_cosine'], cosine)
    aesthetic = AestheticReward(str(folder), head=str(folder / 'head.safetensors'), batch_size=4)(
        pictures, PROMPTS, nothing
    )
    close(aesthetic.values['aesthetic'], head(image)[:, 0].detach())


def test_shapes_are_those_of_the_weights_and_features(folder, head):
    rewards = {
        'clipscore': {'path': str(folder), 'dtype': 'bfloat16'},
        'aesthetic': {'path': str(folder), 'head': str(folder / 'head.safetensors')},
        'pixels': {},
    }
    reward = build_reward(rewards)
    assert has_gradient(reward) and without_gradient(build_reward({'jpeg': {}})) == ['jpeg']
    held = jax.device_get(reward_params(reward)), text_features(reward, PROMPTS)
    shape = lambda tree: jax.tree.map(lambda a: (a.shape, np.dtype(a.dtype)), tree)
    assert shape([*shapes(reward, len(PROMPTS))]) == shape([*held])


def test_hpsv2_shows_the_whole_picture(folder, pictures, clipscore):
    square = np.zeros((len(pictures), 64, 64, 3), np.uint8)
    # black bars before resizing instead of after: the same but for the pixels at the edges
    square[:, :, 8:56] = pictures
    reward = Hpsv2Reward(str(folder), weights=str(folder), batch_size=5)
    ours, near = (reward(p, PROMPTS, [{}] * 5).values['hpsv2'] for p in (pictures, square))
    image, text, _ = in_torch(folder, square, PROMPTS)
    # its filter does not round to 8 bits, as the processor does in between
    assert np.abs(near - (image * text).sum(-1).numpy()).max() < 0.01
    cropped = clipscore(pictures, PROMPTS, [{}] * 5).values['clipscore_cosine']
    assert np.abs(ours - near).max() < 0.2 * np.abs(ours - cropped).max()


def test_hpsv2_cleans_text_as_its_tokenizer_does(folder):
    """basic_clean of OpenCLIP's tokenizer: ftfy, then HTML entities twice."""
    reward = Hpsv2Reward(str(folder), weights=str(folder), batch_size=5)
    dirty = [
        'a shop\u2019s \u201csign\u201d',
        'fish &amp;amp; chips',
        'caf\u00c3\u00a9',
        '\ufb01ne',
    ]
    clean = ['a shop\'s "sign"', 'fish & chips', 'caf\u00e9', 'fine']
    assert list(map(reward.clean, dirty)) == clean
    np.testing.assert_array_equal(reward.text_features(dirty), reward.text_features(clean))


def test_batches_and_devices_do_not_change_scores(folder, pictures, clipscore):
    expected = clipscore(pictures, PROMPTS, [{}] * 5).values['clipscore']
    eight = ClipScoreReward(str(folder), batch_size=8)  # one picture on each of eight devices
    np.testing.assert_allclose(
        eight(pictures, PROMPTS, [{}] * 5).values['clipscore'], expected, atol=1e-6
    )
    few = clipscore(pictures[1:2], PROMPTS[1:2], [{}])
    np.testing.assert_allclose(few.values['clipscore'], expected[1:2], atol=1e-6)
    assert clipscore._score._cache_size() == 1  # a batch that is not full runs the same program
    assert clipscore(pictures[:0], [], []).valid.shape == (0,)


@pytest.mark.parametrize('kind', ['clipscore', 'pickscore', 'hpsv2', 'aesthetic'])
def test_gradients_equal_finite_differences(kind, folder, pictures, head):
    reward = {
        'clipscore': lambda: ClipScoreReward(str(folder)),
        'pickscore': lambda: PickScoreReward(str(folder), processor=str(folder)),
        'hpsv2': lambda: Hpsv2Reward(str(folder), weights=str(folder)),
        'aesthetic': lambda: AestheticReward(str(folder), head=str(folder / 'head.safetensors')),
    }[kind]()
    # away from the ends, where values are clipped
    images = 0.2 + 0.6 * pictures[:2].astype(np.float32) / 255
    text = np.random.default_rng(3).standard_normal((2, 12)).astype(np.float32)
    params = jax.device_put(reward.params(), jax.devices()[0])
    score = jax.jit(lambda images: reward.scores(params, images, text))
    gradient = np.asarray(jax.jit(jax.grad(lambda images: score(images).sum()))(images))
    assert np.isfinite(gradient).all()
    for i in range(2):  # along the gradient of one picture; the other's score stays
        direction = np.zeros_like(images)
        direction[i] = gradient[i] / np.linalg.norm(gradient[i])
        ahead, behind = (np.asarray(score(images + sign * 0.05 * direction)) for sign in (1, -1))
        slope = (ahead - behind) / 0.1
        assert slope[i] == pytest.approx(np.linalg.norm(gradient[i]), rel=0.02)
        assert slope[1 - i] == pytest.approx(0, abs=1e-3 * float(slope[i]))


def test_a_score_that_is_not_finite_is_invalid(clipscore, pictures, monkeypatch):
    monkeypatch.setattr(
        clipscore, '_params', clipscore.params() | {'logit_scale': np.float32(np.inf)}
    )
    scores = clipscore(pictures, PROMPTS, [{}] * 5)
    assert not scores.valid.any() and np.isnan(scores.values['clipscore']).all()


def test_built_from_a_config_before_any_weight_is_read(folder, pictures):
    shipped = runpy.run_path(Path(__file__).parents[2] / 'configs' / 'flux_pickscore.py')[
        'get_config'
    ]().reward
    shipped.pickscore.update(path=str(folder), processor=str(folder), dtype='bfloat16')
    reward = build_reward(
        {**shipped, 'clipscore': {'weight': 0.0, 'path': str(folder), 'batch_size': 5}}
    )
    assert reward.names == ('total', 'pickscore', 'pickscore_raw', 'clipscore', 'clipscore_cosine')
    reward.check(PROMPTS, [{}] * 5)
    parts = [part for part, _ in reward.parts]
    assert all(part._params is None for part in parts)
    scores = reward(pictures, PROMPTS, [{}] * 5)
    assert scores.valid.all()
    np.testing.assert_array_equal(scores.values['total'], scores.values['pickscore'])
    # bfloat16
    np.testing.assert_allclose(
        scores.values['pickscore'] * 26 / 30, scores.values['clipscore'], atol=0.05
    )


def test_options_and_files_are_checked_by_the_constructor(folder, head, tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"reward\.pickscore\.path='/absent/clip' is not a folder.*model\.safetensors",
    ):
        PickScoreReward('/absent/clip')
    with pytest.raises(
        FileNotFoundError, match=r'not on this machine.*--config\.reward\.clipscore\.path=DIR'
    ):
        ClipScoreReward('someone/clip')  # the tests run offline
    with pytest.raises(
        FileNotFoundError,
        match=r"reward\.pickscore\.processor='/absent'.*preprocessor_config\.json",
    ):
        PickScoreReward(str(folder), processor='/absent')
    with pytest.raises(ValueError, match='dtype is'):
        ClipScoreReward(str(folder), dtype='float16')
    with pytest.raises(ValueError, match='batch_size is 0'):
        ClipScoreReward(str(folder), batch_size=0)
    with pytest.raises(FileNotFoundError, match=r'reward\.aesthetic\.head=.*does not exist'):
        AestheticReward(str(folder), head=str(tmp_path / 'absent.safetensors'))
    with pytest.raises(
        ValueError, match=r'(?s)missing.*layers\.0\.weight.*unexpected.*logit_scale'
    ):
        AestheticReward(str(folder), head=str(folder / 'model.safetensors'))
    with pytest.raises(
        ValueError,
        match=r"(?s)reward\.hpsv2\.weights is ''; .*HPS_v2\.1_compressed\.pt.*\['state_dict'\]",
    ):
        Hpsv2Reward(str(folder))


def test_a_pickle_is_refused_with_the_command_that_converts_it(folder, head, tmp_path):
    pickled = tmp_path / 'head.pth'
    pickled.write_bytes((folder / 'head.pth').read_bytes())
    with pytest.raises(ValueError, match='is a pickle') as error:
        AestheticReward(str(folder), head=str(pickled))
    exec(re.search('python -c "(.*)"$', str(error.value))[1], {})
    assert AestheticReward(str(folder), head=str(pickled.with_suffix('.safetensors'))).names == (
        'aesthetic',
    )


def test_worker_threads_share_weights_and_text(folder, pictures, clipscore):
    expected = clipscore(pictures, PROMPTS, [{}] * 5)
    reward = ClipScoreReward(str(folder), batch_size=3)
    with Scorer(reward, workers=3, chunk_size=1) as scorer:
        futures = [scorer.submit(pictures, PROMPTS) for _ in range(3)]
        for future in futures:
            np.testing.assert_allclose(
                future.result().values['clipscore'], expected.values['clipscore'], atol=1e-6
            )
    assert len(reward._texts) == len(set(PROMPTS))
    assert reward.batch_size == 3  # by which a scorer cuts, unless told otherwise
