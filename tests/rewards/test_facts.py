"""What records hold of rewards beside their keys: digests of weights, fingerprints of servers."""

import os
import shutil
import types

import numpy as np
import pytest
from safetensors.numpy import save_file

from densegrpo_jax.evaluation.diversity import embedding_facts
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.facts import reward_facts, weights
from densegrpo_jax.rewards.local.aesthetic import LAYERS, AestheticReward
from densegrpo_jax.rewards.local.clip_rewards import Hpsv2Reward
from densegrpo_jax.rewards.local.geneval import GenevalReward
from densegrpo_jax.rewards.local.geneval_detector import model_files
from densegrpo_jax.rewards.local.ocr import OcrReward
from densegrpo_jax.rewards.remote.service import fingerprint
from tests.clip_folder import random_clip

WEIGHTS = 'model.safetensors'


def changed(file):
    """Another last number in a file of weights, written at another time."""
    stored = bytearray(file.read_bytes())
    stored[-1] ^= 64
    file.write_bytes(stored)
    os.utime(file, (1, 1))


def test_weights_of_clip_count_by_their_content_alone(tmp_path):
    folder = random_clip(tmp_path / 'clip')
    copy = shutil.copytree(folder, tmp_path / 'copy')
    make = lambda of: build_reward({'clipscore': {'path': str(of)}, 'jpeg': {'weight': 0.1}})
    before = reward_facts([make(folder)])
    assert before == reward_facts([make(copy)])
    assert [*before['weights of rewards']] == ['clipscore']
    reward, embedding = make(copy), embedding_facts(str(copy))
    of_server = fingerprint(reward, {}, '1')
    assert fingerprint(make(folder), {}, '1') == of_server
    assert embedding == embedding_facts(str(folder)) != {} == embedding_facts('pixels')
    hpsv2 = lambda: weights([Hpsv2Reward(str(folder), weights=str(copy))])
    theirs = hpsv2()
    (copy / 'notes.safetensors').write_bytes(b'')
    assert reward_facts([reward]) == before
    changed(copy / WEIGHTS)
    assert weights([reward]).keys() == {'clipscore'} and reward_facts([reward]) != before
    assert embedding_facts(str(copy)) != embedding and hpsv2() != theirs
    assert fingerprint(reward, {}, '1') != of_server


def test_the_head_of_the_aesthetic_reward_counts(tmp_path):
    folder, head = random_clip(tmp_path / 'clip'), tmp_path / 'head.safetensors'
    widths = [12, *LAYERS.values()]
    layers = zip(LAYERS, zip(widths, widths[1:]))
    tensors = {
        f'layers.{place}.{name}': np.ones(shape, np.float32)
        for place, (wide, out) in layers
        for name, shape in (('weight', (out, wide)), ('bias', out))
    }
    save_file(tensors, head)
    tells = lambda: weights([AestheticReward(str(folder), head=str(head))])
    before = tells()
    assert [*before] == ['aesthetic'] and tells() == before
    changed(head)
    assert tells() != before


def test_models_that_read_text_count_and_engines_of_ones_own_do_not(tmp_path, monkeypatch):
    line, scene = weights([OcrReward()]), weights([OcrReward('detect', batch_size=1)])
    assert [*line] == [*scene] == ['ocr'] and line != scene
    assert weights([OcrReward(smooth=0.5)]) == {'ocr_smooth': line['ocr']}
    assert weights([OcrReward(make_reader=lambda: None)]) == {}
    assert weights([GenevalReward(make_detector=lambda: None)]) == {}
    assert reward_facts([build_reward({'jpeg': {}})]) == {'servers of rewards': {}}


def test_the_files_of_a_torch_model(tmp_path, monkeypatch):
    """In a folder, or in Hugging Face's cache; of others nothing is known."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'cache'))
    assert model_files('owner/model') == []
    cached = tmp_path / 'cache' / 'models--owner--model'
    shards = [f'model-0000{n}-of-00002.safetensors' for n in (1, 2)]
    for folder, names in ((cached / 'snapshots' / 'abc', [WEIGHTS]), (tmp_path / 'own', shards)):
        folder.mkdir(parents=True)
        for name in ('config.json', *names):
            (folder / name).write_text('{}')
    (cached / 'refs').mkdir()
    (cached / 'refs' / 'main').write_text('abc')
    assert model_files('owner/model') == [cached / 'snapshots' / 'abc' / WEIGHTS]
    assert model_files(str(tmp_path / 'own')) == [tmp_path / 'own' / name for name in shards]


def test_a_reward_of_ones_own_names_its_files(tmp_path):
    (tmp_path / 'a.pt').write_bytes(b'a')
    own = lambda files: types.SimpleNamespace(name='mine', names=('warmth',), weight_files=files)
    [[name, before]] = weights([own(lambda: [str(tmp_path / 'a.pt')])]).items()
    (tmp_path / 'a.pt').write_bytes(b'bb')
    assert weights([own(lambda: (tmp_path / 'a.pt',))]) != {name: before} and name == 'warmth'
    assert weights([own(lambda: [])]) == {}
    for files, said in (
        (['a.pt'], 'TypeError'),  # no method
        (lambda: str(tmp_path / 'a.pt'), 'expected a list of paths, got'),
        (lambda: [tmp_path], 'expected files, got the folder'),
        (lambda: [tmp_path / 'b.pt'], 'FileNotFoundError'),
    ):
        with pytest.raises(ValueError, match=rf"'mine' gives no paths of files: .*{said}"):
            weights([own(files)])
    with pytest.raises(ValueError, match=r"weight_files\(\) of reward 'mine' gives no .*: Zero"):
        weights([own(lambda: 1 // 0)])


def test_two_of_one_name_are_both_told():
    """A training reward, and one of a panel with prompts of its own."""

    class Served:
        name, names = 'remote', ('quality',)

        def __init__(self, fingerprint):
            self._fingerprint = fingerprint

        fingerprint = property(lambda self: self._fingerprint)

    trained, seen = Served('f00'), Served('f01')
    tells = lambda *rewards: reward_facts(rewards)['servers of rewards']
    sum_of = types.SimpleNamespace(name='composite', names=('total',), parts=[(trained, 1.0)])
    assert tells(sum_of) == {'quality': 'f00'}
    # the later one has the name, as in records of 0.1
    assert tells(sum_of, seen) == {'quality': 'f01', 'quality (trained on)': 'f00'}
