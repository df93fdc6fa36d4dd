"""Direction files and guided rewards: what a file holds, which reward takes it, what is refused."""

import dataclasses
import inspect

import numpy as np
import pytest

from configs import tiny_scene
from densegrpo_jax.config import identity
from densegrpo_jax.core.direction import guided_text
from densegrpo_jax.data.shapes import Object, draw
from densegrpo_jax.rewards import directional, facts
from densegrpo_jax.rewards.build import REWARDS, build_reward, resolve
from densegrpo_jax.rewards.directional import EMBEDDING_REWARDS, Direction
from densegrpo_jax.rewards.local.scene_embedding import DIMENSIONS, SceneEmbeddingReward
from densegrpo_jax.sampling.session import Checked
from tests.clip_folder import photo, random_clip

PROMPTS = ['a photo of a red circle', 'a photo of two blue stars', 'a photo of three crosses']


def scene(*objects, ground=(250, 250, 248)):
    return np.asarray(draw([Object(*o) for o in objects], ground))


def pictures():
    return np.stack(
        [
            scene(('circle', 'red', 24, 24, 9, 0)),
            scene(('star', 'blue', 12, 12, 9, 0), ('star', 'blue', 36, 36, 9, 0)),
            scene(('square', 'green', 24, 24, 9, 0)),
        ]
    )


def direction(reward, vector, **changes):
    return dataclasses.replace(
        Direction(
            np.float32(vector),
            1.5,
            False,
            reward.name,
            reward.weights_fingerprint(),
            np.float32([0.1, 0.2]),
            {'norm': 0.5},
        ),
        **changes,
    )


@pytest.fixture
def plain():
    return SceneEmbeddingReward()


@pytest.fixture
def saved(tmp_path, plain):
    """A direction file for the scene embedding."""
    rng = np.random.default_rng(0)
    made = direction(plain, 0.3 * rng.standard_normal(len(DIMENSIONS)))
    path = tmp_path / 'new' / 'direction.npz'
    directional.write_direction(path, made)
    return str(path), made


def test_what_a_scene_is_like(plain):
    text, images = plain.plain_text(PROMPTS), plain.embeddings(pictures())
    for rows in (text, images):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert [[d for d, x in zip(DIMENSIONS, row) if x] for row in text] == [
        ['circle', 'red', 'contrast', 'darkness'],
        ['star', 'blue', 'contrast', 'darkness'],
        ['cross', 'contrast', 'darkness'],
    ]
    match = images @ text.T  # each picture with each prompt
    assert match[0].argmax() == 0 and match[1].argmax() == 1
    assert min(match[0, 0], match[1, 1]) > 0.75 > 0.6 > match[0, 1]
    flat = plain.embeddings(np.full((1, 48, 48, 3), 255, np.uint8))
    np.testing.assert_allclose(flat, 0, atol=1e-4)
    with pytest.raises(ValueError, match=r"prompt 1 \('a cat'\) names no shape and no colour"):
        plain.check([PROMPTS[0], 'a cat'], [{}, {}])


def test_style_alone_raises_the_score_of_any_picture(plain):
    """Darker paper and stronger contrast, whatever was asked for: the planted bias."""
    light = [scene(('circle', 'red', 24, 24, 9, 0), ground=(g, g, g)) for g in (250, 200, 150)]
    found = plain(np.stack(light), PROMPTS[:1] * 3, [{}] * 3).values['scene_embedding']
    assert found[0] < found[1] < found[2]


def test_a_file_comes_back(saved, plain):
    path, made = saved
    found = directional.read_direction(directional.pathlib.Path(path))
    np.testing.assert_array_equal(found.vector, made.vector)
    np.testing.assert_array_equal(found.history, made.history)
    assert dataclasses.replace(found, vector=0, history=0) == dataclasses.replace(
        made, vector=0, history=0
    )


def test_a_guided_reward_replaces_the_text_alone(saved, plain):
    path, made = saved
    guided = SceneEmbeddingReward(direction=path)
    scores = guided(pictures(), PROMPTS, [{}] * 3).values
    text = np.asarray(guided_text(plain.plain_text(PROMPTS), made.vector, 1.5))
    np.testing.assert_allclose(
        scores['scene_embedding'], (plain.embeddings(pictures()) * text).sum(1), atol=1e-6
    )
    unguided = plain(pictures(), PROMPTS, [{}] * 3).values['scene_embedding']
    np.testing.assert_array_equal(scores['scene_embedding_unguided'], unguided)
    other = SceneEmbeddingReward(direction=path, omega=0.0)(pictures(), PROMPTS, [{}] * 3).values
    assert np.abs(other['scene_embedding'] - scores['scene_embedding']).min() > 1e-3


def test_no_direction_is_exactly_the_plain_reward(tmp_path, plain):
    path = tmp_path / 'zero.npz'
    directional.write_direction(path, direction(plain, np.zeros(len(DIMENSIONS))))
    guided = SceneEmbeddingReward(direction=str(path))(pictures(), PROMPTS, [{}] * 3).values
    expected = plain(pictures(), PROMPTS, [{}] * 3).values['scene_embedding']
    np.testing.assert_array_equal(guided['scene_embedding'], expected)


def test_clip_rewards_are_guided_too(tmp_path):
    folder, path = str(random_clip(tmp_path / 'clip')), tmp_path / 'b.npz'
    images = np.stack([photo(np.random.default_rng(0), 40, 40) for _ in PROMPTS])
    make = lambda **more: resolve('pickscore')(folder, processor=folder, batch_size=4, **more)
    plain = make()
    rows, text = plain.embeddings(images), plain.plain_text(PROMPTS)
    before = plain(images, PROMPTS, [{}] * 3).values['pickscore']
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    scale = before / (rows * text).sum(1)  # kappa
    np.testing.assert_allclose(scale, scale[0], rtol=1e-4)
    directional.write_direction(path, direction(plain, np.random.default_rng(1).random(12)))
    guided = make(direction=str(path))
    after = guided(images, PROMPTS, [{}] * 3).values
    np.testing.assert_array_equal(after['pickscore_unguided'], before)
    moved = np.asarray(guided_text(text, guided.direction.vector, 1.5))
    np.testing.assert_allclose(
        after['pickscore'], scale[0] * (rows * moved).sum(1), rtol=1e-4, atol=1e-5
    )
    # what follows the reward's gradient follows the guided one
    np.testing.assert_array_equal(guided.text_features(PROMPTS), moved)
    for name, options in {'clipscore': {}, 'hpsv2': {'weights': folder}}.items():
        other = resolve(name)(folder, **options)
        directional.write_direction(path, direction(other, np.ones(12)))
        guided = resolve(name)(folder, direction=str(path), **options)
        assert guided.names == (*other.names, f'{name}_unguided')


def test_every_reward_with_an_embedding_takes_a_direction():
    takes = [k for k in REWARDS if 'direction' in inspect.signature(resolve(k)).parameters]
    # 'jpeg' has a direction of its own, up or down
    assert set(takes) - {'jpeg'} == set(EMBEDDING_REWARDS)


def test_what_a_file_is_refused_for(saved, plain, tmp_path):
    path, made = saved
    for changes, message in (
        ({'reward': 'pickscore'}, "learned for the reward 'pickscore', and this reward has 'scene"),
        ({'weights': 'others'}, "learned for the weights 'others', and this reward has 'scene 1"),
    ):
        other = tmp_path / 'other.npz'
        directional.write_direction(other, dataclasses.replace(made, **changes))
        with pytest.raises(ValueError, match=message):
            SceneEmbeddingReward(direction=str(other))
    with pytest.raises(FileNotFoundError, match='there is no file .*densegrpo_jax.direction mak'):
        SceneEmbeddingReward(direction=str(tmp_path / 'none.npz'))
    for content in (b'', b'no zip', (tmp_path / 'other.npz').read_bytes()[:200]):
        (tmp_path / 'bad.npz').write_bytes(content)
        with pytest.raises(ValueError, match=r'bad\.npz cannot be read .*make it anew'):
            SceneEmbeddingReward(direction=str(tmp_path / 'bad.npz'))
    np.savez(tmp_path / 'foreign.npz', weights=np.ones(3))
    with pytest.raises(
        ValueError, match='not of format 1: expected a file of densegrpo_jax.direction'
    ):
        SceneEmbeddingReward(direction=str(tmp_path / 'foreign.npz'))
    np.savez(tmp_path / 'pickled.npz', format=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match='cannot be read'):
        SceneEmbeddingReward(direction=str(tmp_path / 'pickled.npz'))
    directional.write_direction(
        tmp_path / 'nan.npz', dataclasses.replace(made, vector=np.float32([np.nan]))
    )
    with pytest.raises(ValueError, match='vector is float32 .*must be finite numbers'):
        SceneEmbeddingReward(direction=str(tmp_path / 'nan.npz'))
    with pytest.raises(ValueError, match='omega=1.5 is of a direction'):
        SceneEmbeddingReward(omega=1.5)


def test_which_reward_of_a_configuration_is_guided(saved):
    path, _ = saved
    spec = {'scene_embedding': {}, 'jpeg': {'weight': 0.1}}
    guided = build_reward(directional.with_direction(spec, path, 1.5, False))
    assert guided.names == ('total', 'scene_embedding', 'scene_embedding_unguided', 'jpeg')
    assert list(facts.directions([guided])) == ['scene_embedding']
    assert facts.directions([build_reward(spec)]) == {}
    for spec, message in (
        ({'ocr': {}}, r"none of \['ocr'\] has an embedding: expected one of clipscore, picksc"),
        ({'scene_embedding': {'weight': 0.0}, 'jpeg': {}}, 'none of'),
        ({'pickscore': {}, 'b': {'kind': 'hpsv2'}}, r'give reward\.pickscore\.direction instead'),
    ):
        with pytest.raises(ValueError, match=message):
            directional.with_direction(spec, path, 1.5, False)
    with pytest.raises(ValueError, match="'ocr' has no embedding, so no direction can guide it"):
        build_reward({'ocr': {'direction': path}})


def test_a_configuration_says_what_its_direction_was_learned_with(saved):
    path, _ = saved
    config = tiny_scene.get_config('method=d2_align')
    config.d2.file = path
    checked = Checked(config, None, None, None, None)
    assert [*facts.directions([checked.reward])] == ['scene_embedding']
    for key, value, message in (
        ('omega', 1.2, 'learned with d2.omega=1.5, and d2.omega=1.2 is set: set d2.omega=1.5'),
        ('renormalise', True, 'learned with d2.renormalise=False, and d2.renormalise=True'),
    ):
        changed = config.copy_and_resolve_references()
        changed.d2[key] = value
        with pytest.raises(ValueError, match=message):
            _ = Checked(changed, None, None, None, None).reward
    assert identity.differences(
        'evaluation',
        identity.record('evaluation', config),
        identity.record('evaluation', config, facts.reward_facts([checked.reward])),
    )


def test_a_direction_is_part_of_what_it_guides(saved, tmp_path):
    path, made = saved
    other = tmp_path / 'other.npz'
    directional.write_direction(other, dataclasses.replace(made, vector=2 * made.vector))
    tells = lambda **options: facts.directions([SceneEmbeddingReward(**options)])
    assert tells(direction=path) == tells(direction=path, omega=1.5)
    assert tells(direction=path) != tells(direction=str(other))
    assert tells(direction=path) != tells(direction=path, omega=1.4)
