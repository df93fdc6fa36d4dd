"""What a command opens: what cannot be used is said before anything large is read, and nothing
large is held twice or too long.
"""

import gc
import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy

from densegrpo_jax.data.prompts import Prompt, PromptSet
from densegrpo_jax.networks.lora import LoraConfig, init_adapters
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.pipelines.weights import lora_files, lora_reading
from densegrpo_jax.sampling.conditioning import check_prompts, warn_of_cut
from densegrpo_jax.sampling.session import check, load, load_weights, open_shapes
from densegrpo_jax.sampling.state import start_digest
from tests import miniature
from tests.training.small_run import make_config, one_device

PROMPTS = ['A neon sign that says "ONE"', 'A mug with the word "TWO"']


def test_weights_that_do_not_fit_are_known_from_their_headers(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / 'broken')
    path = broken / 'text_encoder_2' / 'model.safetensors'
    tensors = safetensors.numpy.load_file(path)
    name = sorted(tensors)[0]
    del tensors[name]
    safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})
    with pytest.raises(ValueError, match=f'{path.parent}.*do not fit(?s:.)*{name}'):
        check(make_config(broken), one_device())
    config = make_config(folder, **{'model.transformer_file': str(tmp_path / 'absent.safetensors')})
    with pytest.raises(FileNotFoundError, match='absent.safetensors.* does not exist'):
        check(config, one_device())


@pytest.mark.parametrize('rank, targets', [(3, None), (2, ('attn.to_q',))])
def test_an_adapter_that_does_not_fit_is_known_from_its_header(folder, tmp_path, rank, targets):
    config = make_config(folder)
    lora = LoraConfig(rank, 4.0, targets or config.lora.targets)
    pipeline, params = load_pipeline(folder, text_length=16, lora=lora)
    names, base = pipeline.adapter_names(), params['transformer']
    layers = lora_files.to_layers(
        init_adapters(lora, names, base, jax.random.key(0)), names, lora.scale
    )
    file = tmp_path / lora_reading.FILENAME
    lora_files.write(file, lora_files.peft_tensors(layers))
    shapes = {name: (down.shape, up.shape) for name, (down, up) in layers.items()}
    assert lora_reading.layer_shapes(tmp_path) == shapes
    config.lora.init_from = str(tmp_path)
    check(config, one_device())  # nothing starts from it
    with pytest.raises(ValueError, match='rank 3, .* lora.rank=2' if rank == 3 else 'are absent'):
        check(config, one_device(), needs=('start',))
    first = start_digest(config, pipeline)
    doubled = {name: (2 * down, up) for name, (down, up) in layers.items()}
    lora_files.write(file, lora_files.peft_tensors(doubled))
    assert start_digest(config, pipeline) != first
    config.lora.init_from = str(tmp_path / 'elsewhere')
    with pytest.raises(FileNotFoundError, match='elsewhere'):
        check(config, one_device(), needs=('start',))


def test_what_a_command_does_not_need_may_be_absent(folder):
    config = make_config(folder, **{'data.train': 'nowhere.txt', 'noise.psi_path': 'no_psi.json'})
    checked = check(config, one_device(), needs=('test',))
    assert len(checked.test) == 8 and checked.reward.names[0] == 'total'
    with pytest.raises(FileNotFoundError, match='nowhere.txt'):
        check(config, one_device(), needs=('train', 'test'))
    with pytest.raises(FileNotFoundError, match='no_psi.json'):
        check(config, one_device(), needs=('schedule',))
    config.model.path = 'ada/flux'  # which would be fetched
    with pytest.raises(FileNotFoundError, match='nowhere.txt'):
        check(config, one_device(), needs=('train', 'test'))


def test_prompts_that_the_reward_cannot_score_are_named(folder, tmp_path):
    (tmp_path / 'prompts.txt').write_text('A sign without a word\n')
    config = make_config(folder, **{'data.eval': str(tmp_path / 'prompts.txt')})
    check(config, one_device(), needs=('test',))
    config.reward = {'ocr': {'weight': 1.0}}
    with pytest.raises(ValueError, match='A sign without a word'):
        check(config, one_device(), needs=('test',))


def test_encoders_are_gone_when_the_weights_are_there(folder, tmp_path):
    """What stays on the devices is the transformer and the autoencoder, once."""
    mesh, live = one_device(), lambda: (gc.collect(), {id(a) for a in jax.live_arrays()})[1]
    checked = check(make_config(folder), mesh)
    before = live()
    session = load(checked, PROMPTS, tmp_path)
    kept = sum(a.nbytes for a in jax.live_arrays() if id(a) not in before)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(session.params))
    assert set(session.params) == {'transformer', 'vae'} and weights <= kept < 1.01 * weights
    encoders = load_weights(checked, session.pipeline.text_encoders)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(encoders)) > 0.02 * weights


def test_conditioning_on_disk_and_in_memory_is_the_same(folder, tmp_path):
    checked = check(make_config(folder), one_device())
    stored, held = load(checked, PROMPTS, tmp_path), load(checked, PROMPTS)
    assert list((tmp_path / 'text').rglob('*.safetensors'))
    for name, rows in stored.conditioning(PROMPTS[::-1]).items():
        np.testing.assert_array_equal(held.conditioning(PROMPTS[::-1])[name], rows)
    assert stored.negative is held.negative is None  # guidance is an input of the network
    with pytest.raises(KeyError, match='THREE.* no conditioning in memory'):
        held.conditioning(['A mug with the word "THREE"'])


def test_guidance_needs_the_empty_prompt(tmp_path):
    config = make_config(miniature.random_sd3(tmp_path / 'sd3'))
    config.lora.targets, config.model.guidance = ('attn.to_q',), 3.0
    session = load(check(config, one_device()), PROMPTS)
    assert set(session.negative) == {'context', 'pooled'}
    jax.tree.map(np.testing.assert_array_equal, session.negative, session.conditioning(['']))
    config.model.guidance = 1.0
    assert load(check(config, one_device()), PROMPTS).negative is None
    config.model.guidance = 0.0  # as the cards of distilled models have it for Diffusers
    with pytest.raises(ValueError, match=r'guidance=0: below 1 .*set 1 for no guidance'):
        check(config, one_device())


@pytest.mark.parametrize('option', [{'cfg_normalization': 1.0}, {'cfg_truncation': 0.5}])
def test_options_of_guidance_need_guidance(option, folder, tmp_path):
    config = make_config(folder)  # FLUX.1, whose guidance is an input of the network
    config.model.update(option)
    ((name, value),) = option.items()
    said = rf'model\.{name}={value:g} is of classifier-free guidance, and a FluxPipeline'
    for opened in (check, open_shapes):
        with pytest.raises(ValueError, match=said):
            opened(config, one_device())
    config.model.path = str(miniature.random_zimage(tmp_path / 'zimage'))
    config.lora.targets, config.model.guidance = ('attention.to_q',), 3.0
    assert getattr(check(config, one_device()).pipeline, name) == value
    config.model.guidance = 1.0
    with pytest.raises(ValueError, match=r'with model\.guidance=1 has none'):
        check(config, one_device())


def test_targets_that_the_model_cannot_know_are_told(folder, caplog):
    pipeline = check(make_config(folder), one_device()).pipeline
    sign = lambda word, target=None: Prompt(
        f'A sign that says "{word}"', {'target': target or word}
    )
    fine, absent, late = sign('ONE'), sign('TWO', 'THREE'), sign(' '.join(['long'] * 60))
    alike = sign('Tea for two', 'TEA  for two')  # as the OCR reward compares
    check_prompts(pipeline, PromptSet((fine, alike)), 'data.train')
    assert not caplog.text
    check_prompts(pipeline, PromptSet((fine, absent)), 'data.train')
    assert 'targets of 1 of 2 prompts do not occur in their prompt' in caplog.text
    assert "with the target 'THREE'" in caplog.text
    check_prompts(pipeline, PromptSet((fine, late)), 'data.eval')
    assert 'data.eval: the targets of 1 of 2 prompts lie beyond the' in caplog.text
    with pytest.raises(ValueError, match='targets of 1 of 1 prompts lie beyond.*raise model.t5'):
        check_prompts(pipeline, PromptSet((late,)), 'data.train')


def test_prompts_that_are_cut_are_told_once_whatever_the_reward(folder, tmp_path, caplog):
    config = make_config(folder)
    config.reward = {'jpeg': {}}
    long, later = ' '.join(['long'] * 200), f'A sign that says "{" ".join(["long"] * 60)}"'
    (tmp_path / 'p.txt').write_text(f'a cup\n{long}\n{later}\n{long}\n')
    config.data.train = str(tmp_path / 'p.txt')
    pipeline = check(config, one_device(), needs=('train',)).pipeline
    said = 'data.train: 3 of 4 prompts are longer than the .* and 16 tokens that the text encoders'
    (told,) = [record.message for record in caplog.records if 'longer than' in record.message]
    assert re.match(said, told) and "prompt 2, 'long long" in told
    assert told.endswith('shorten them, or raise model.t5_length=16')
    caplog.clear()
    cut = Prompt(later, {'target': later.split('"')[1]}), Prompt(long)
    check_prompts(pipeline, PromptSet((*cut, Prompt('a cup'))), 'data.eval')
    assert [r.message.split(' prompts ')[0] for r in caplog.records] == [
        'data.eval: the targets of 1 of 3',
        'data.eval: 1 of 3',
    ]
    caplog.clear()
    clip = SimpleNamespace(  # as SD1.5, whose encoder has its own length
        TEXT_ENCODERS=pipeline.TEXT_ENCODERS[:1],
        token_lengths=(77,),
        reads=lambda texts: [False] * len(texts),
    )
    warn_of_cut(clip, [long], 'sample')
    assert caplog.messages[0].endswith(': shorten them')
