"""The rewards of a search: those that it watches, and what changes them between two starts."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from densegrpo_jax.config.method import search_kernel_of
from densegrpo_jax.rewards.base import Scores
from densegrpo_jax.rewards.local.jpeg import JpegReward
from densegrpo_jax.rewards.local.pixels import PixelsReward
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.search import run
from densegrpo_jax.search.model import Model
from densegrpo_jax.search.record import FILE
from tests.clip_folder import random_clip
from tests.programs import shared_programs  # noqa: F401
from tests.search.small_search import PROMPTS, searched

pytestmark = pytest.mark.usefixtures('shared_programs')


class Quality:
    """The score of an image is its first pixel, and another has the name of the mask."""

    name, names, range = 'quality', ('quality', 'valid'), (0.0, 255.0)

    def check(self, prompts, metadata): ...

    def __call__(self, images, prompts, metadata):
        values = images[:, 0, 0, 0].astype(np.float32)
        return Scores({'quality': values, 'valid': -values}, values != 4)


def test_the_panel_is_scored_and_nothing_is_chosen_by_it(session, tmp_path):
    plain = searched(session, PROMPTS[:2], tmp_path / 'plain')
    config = session.config.copy_and_resolve_references()
    config.eval.panel = {'jpeg': {}}
    watched = dataclasses.replace(session, config=config)
    found = searched(watched, PROMPTS[:2], tmp_path / 'watched')
    assert [row['candidates'] for row in found.values()] == [
        row['candidates'] for row in plain.values()
    ]
    image = np.asarray(Image.open(tmp_path / 'watched/images/00000_best.png'))
    expected = JpegReward()(image[None], ['a red sign'], [{}]).values['jpeg'][0]
    assert found[0]['best']['jpeg'] == pytest.approx(expected, abs=1e-6)
    assert np.isfinite([found[0][which]['jpeg'] for which in ('base', 'final')]).all()
    assert '| `jpeg` |' in (tmp_path / 'watched/summary.md').read_text()
    config.eval.panel = {'pixels': {}}
    with pytest.raises(
        ValueError, match=r"\['pixels'\] occur twice in reward, eval.panel; .*prefix"
    ):
        run.unseen_rewards(dataclasses.replace(session, config=config), PROMPTS)
    config.eval.panel = {'jpeg': {}, 'again': {'kind': 'jpeg'}}  # would be one column
    with pytest.raises(ValueError, match=r"\['jpeg'\] occur twice in reward, eval.panel"):
        run.unseen_rewards(dataclasses.replace(session, config=config), PROMPTS)


class Served(Quality):
    """As a server's, which is known by its fingerprint."""

    names, fingerprint = ('served', 'more'), 'f00'


def test_a_search_goes_on_only_with_the_servers_of_its_panel(session, tmp_path, monkeypatch):
    panel = Served()
    opened = lambda: run.open_results(session, None, PROMPTS, tmp_path, panel=[panel])
    opened()
    monkeypatch.setattr(Served, 'fingerprint', 'f01')
    with pytest.raises(ValueError, match="servers of rewards.served: 'f00', now 'f01'"):
        opened()
    # earlier versions did not record the panel's
    line = json.loads((tmp_path / FILE).read_text())
    assert line['settings']['servers of rewards'].pop('served') == 'f00'
    (tmp_path / FILE).write_text(json.dumps(line) + '\n')
    opened()


def test_a_score_with_the_name_of_the_mask_is_a_score(session):
    """Also of a preflight, which scores by the same function."""
    images = np.uint8([[1, 2, 4], [8, 4, 16]])[..., None, None, None].repeat(3, -1)
    finite = np.array([[True] * 3, [False, True, True]])
    with Scorer(Quality(), 1) as scorer:
        own = Model(session, None, scorer, search_kernel_of(session.config))
        found = own.scored(PROMPTS[:2], images, finite)
    assert found.reward.tolist() == [[1, 2, -np.inf], [-np.inf, -np.inf, 16]]
    nan = np.nan
    np.testing.assert_array_equal(found.values['quality'], [[1, 2, nan], [nan, nan, 16]])
    np.testing.assert_array_equal(found.values['valid'], -found.values['quality'])


def test_a_search_goes_on_with_the_weights_that_it_began_with(session, tmp_path, monkeypatch):
    """Those of its reward, and of the embedding that diversity is measured in."""
    file, clip = tmp_path / 'reward.safetensors', random_clip(tmp_path / 'clip')
    monkeypatch.setattr(PixelsReward, 'weight_files', lambda self: [file], raising=False)
    config = session.config.copy_and_resolve_references()
    config.eval.embedding = str(clip)
    opened = lambda: run.open_results(
        dataclasses.replace(session, config=config), None, PROMPTS, tmp_path / 'out'
    )
    file.write_bytes(b'a')
    opened()
    opened()
    file.write_bytes(b'bb')
    with pytest.raises(ValueError, match=r'\(weights of rewards\.pixels: [^;]*\)'):
        opened()
    file.write_bytes(b'a')
    stored = bytearray((clip / 'model.safetensors').read_bytes())
    stored[-1] ^= 64
    (clip / 'model.safetensors').write_bytes(stored)
    with pytest.raises(ValueError, match=r'\(weights of eval\.embedding: [^;]*\).*--restart'):
        opened()
