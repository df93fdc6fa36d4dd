import json
import shutil
import string
import subprocess
import sys

import numpy as np
import pytest

from densegrpo_jax.data.prompts import SCENES, scene_prompt, tiny_eval_prompts
from densegrpo_jax.pipelines import tokenizers as K

# A neon sign that says "CAB": any change breaks the shipped model.
T5_IDS = [3, 59, 8, 19, 21, 16, 4, 61, 59, 60, 28, 1, 0, 0, 0, 0]
CLIP_IDS = [
    584,
    320,
    559,
    574,
    578,
    576,
    257,
    66,
    64,
    321,
    257,
    585,
    585,
    585,
    585,
    585,
    585,
    585,
    585,
    585,
    585,
    585,
    585,
    585,
]


@pytest.fixture(scope='module')
def clip_and_t5():
    return K.load_tokenizers(K.TOKENIZERS)


def test_special_ids_and_sizes(clip_and_t5):
    clip, t5 = clip_and_t5
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert len(t5) < 512 and t5.model_max_length == K.T5_LENGTH
    assert (clip.bos_token_id, clip.eos_token_id, clip.pad_token_id) == (
        len(clip) - 2,
        len(clip) - 1,
        len(clip) - 1,
    )
    assert len(clip) < 1024 and clip.model_max_length == K.CLIP_LENGTH


def test_t5_spells_the_quoted_word_one_token_a_character(clip_and_t5):
    _, t5 = clip_and_t5
    for word in ('THESE', 'ABOARD', 'A1Z', '0123456789', string.ascii_uppercase):
        tokens = t5.tokenize(scene_prompt('neon', word).text)
        start = tokens.index('▁"') + 1
        assert tokens[start:] == [*word, '"']


def test_template_words_are_one_token_each(clip_and_t5):
    clip, t5 = clip_and_t5
    for template in SCENES.values():
        words = template[2 : template.index('"')].split()
        assert t5.tokenize(template)[2 : 2 + len(words)] == ['▁' + w for w in words]
        assert clip.tokenize(template)[1 : 1 + len(words)] == [w + '</w>' for w in words]


def test_tiny_prompts_fit(clip_and_t5):
    clip, t5 = clip_and_t5
    prompts = [scene_prompt(scene, 'QXZJK').text for scene in SCENES]
    assert max(len(ids) for ids in t5(prompts).input_ids) <= K.T5_LENGTH
    assert max(len(ids) for ids in clip(prompts).input_ids) <= K.CLIP_LENGTH


def test_every_printable_character_has_a_token(clip_and_t5):
    clip, t5 = clip_and_t5
    text = ''.join(chr(c) for c in range(32, 127))
    for prompt in (text, 'Unseen words: 7 dogs & "Größe"'.replace('ö', 'o').replace('ß', 'ss')):
        ids = t5(prompt, verbose=False).input_ids
        assert t5.unk_token_id not in ids
        assert t5.decode(ids, skip_special_tokens=True).split() == prompt.split()
    assert clip.unk_token_id not in clip(text, verbose=False).input_ids[1:-1]


def test_documented_ids(clip_and_t5):
    clip, t5 = clip_and_t5
    prompt = ['A neon sign that says "CAB"']
    t5_ids = K.tokenize(t5, prompt, 16)
    clip_ids = K.tokenize(clip, prompt, 24)
    assert t5_ids.dtype == clip_ids.dtype == np.int32
    assert t5_ids.tolist() == [T5_IDS]
    assert clip_ids.tolist() == [CLIP_IDS]


def test_flux_pipeline_call_form(clip_and_t5):
    prompts = [p.text for p in tiny_eval_prompts()][:3] + ['', 'x' * 99]
    for tokenizer, length in zip(clip_and_t5, (K.CLIP_LENGTH, K.T5_LENGTH)):
        inputs = tokenizer(
            prompts,
            padding='max_length',
            max_length=length,
            truncation=True,
            return_length=False,
            return_overflowing_tokens=False,
            return_tensors='np',
        )
        assert inputs.input_ids.shape == (5, length)
        np.testing.assert_array_equal(K.tokenize(tokenizer, prompts, length), inputs.input_ids)
        assert (inputs.input_ids[3] == tokenizer.pad_token_id).sum() >= length - 2
        assert inputs.input_ids[4, -1] == tokenizer.eos_token_id


def test_committed_files_are_what_the_command_writes(tmp_path):
    K.build(tmp_path, K.template_words())
    for name in ('tokenizer', 'tokenizer_2'):
        model = [
            json.loads((folder / name / 'tokenizer.json').read_text())['model']
            for folder in (tmp_path, K.TOKENIZERS)
        ]
        assert model[0]['vocab'] == model[1]['vocab']
        assert model[0].get('merges') == model[1].get('merges')


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='tokenizer does not exist'):
        K.load_tokenizers(tmp_path)


def test_opens_without_torch():
    code = (
        'import sys; sys.modules["torch"] = None\n'
        'from densegrpo_jax.pipelines.tokenizers import *\n'
        'print([tokenize(t, [\'A "B"\'], 16).shape for t in load_tokenizers(TOKENIZERS)])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == '[(1, 16), (1, 16)]', done.stderr


@pytest.mark.parametrize(
    ('name', 'kept'),
    [
        ('tokenizer', ['tokenizer_config.json']),
        ('tokenizer_2', ['tokenizer_config.json']),
        ('tokenizer', []),
        ('tokenizer_2', []),
    ],
)
def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path, name, kept):
    """transformers opens it, and gives every prompt the same tokens."""
    shutil.copytree(K.TOKENIZERS, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / name).iterdir():
        if file.name not in kept:
            file.unlink()
    with pytest.raises(ValueError, match=f'{tmp_path / name} (gives different|is no tokenizer)'):
        K.load_tokenizers(tmp_path)


def test_a_damaged_tokenizer_is_refused(tmp_path):
    shutil.copytree(K.TOKENIZERS, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / 'tokenizer').glob('*.json'):
        file.write_text('{"a": ')
    with pytest.raises(ValueError, match=r'tokenizer.json is not valid JSON: line 1'):
        K.load_tokenizers(tmp_path)


def test_a_tokenizer_belongs_to_its_encoder(clip_and_t5):
    for tokenizer in clip_and_t5:
        K.check_vocabulary(tokenizer, len(tokenizer), 'there')
        with pytest.raises(ValueError, match=r'there makes token \d+, but its encoder knows 20'):
            K.check_vocabulary(tokenizer, 20, 'there')


class Sized:
    """What is known of a tokenizer."""

    def __init__(self, size, end, padding):
        self.size, self.eos_token_id, self.pad_token_id = size, end, padding
        self.added_tokens_decoder = dict.fromkeys((end, padding))

    def __len__(self):
        return self.size


CLIP, T5, QWEN = 'CLIPTokenizer', 'T5TokenizerFast', 'Qwen2TokenizerFast'
# (class, size, end, padding of the tokenizer; those of the encoder's config.json)
RELEASED = [
    (CLIP, 49408, 49407, 49407, 49408, 2, 1),  # FLUX.1, SD1.5, SD3's first
    (CLIP, 49408, 49407, 0, 49408, 2, 1),  # SD3's second
    (CLIP, 49408, 49407, 49407, 49408, 49407, 1),  # saved by a newer Transformers
    (CLIP, 49408, 49407, 49407, 49408, None, None),
    (CLIP, 49410, 49407, 49407, 49408, 2, 1),  # with tokens of textual inversion
    (T5, 32100, 1, 0, 32128, 1, 0),
    (T5, 32100, 1, 0, 32128, None, None),
    (QWEN, 151669, 151645, 151643, 151936, 151643, None),
    (QWEN, 151669, 151645, 151643, 151936, 151645, None),
]


@pytest.mark.parametrize('sizes', RELEASED)
def test_the_tokenizers_of_released_models_belong_to_their_encoders(sizes):
    kind, size, end, padding, *of_encoder = sizes
    config = dict(zip(('vocab_size', 'eos_token_id', 'pad_token_id'), of_encoder))
    K.check_belongs(Sized(size, end, padding), kind, config, 'there')


@pytest.mark.parametrize(
    ('sizes', 'said'),
    [
        ((CLIP, 586, 585, 585, 49408, 2, 1), 'has 586 tokens, and its encoder 49408'),
        ((CLIP, 49408, 49407, 0, 49408, 49406, 1), 'ends a text with 49407, and its encoder with'),
        ((T5, 250100, 1, 0, 32128, 1, 0), 'has 250100 tokens, and its encoder 32128'),
        (
            (T5, 100, 2, 0, 121, 1, 0),
            r'ends a text with 2, and its encoder with 1 \(eos_token_id in',
        ),
        (
            (QWEN, 151669, 151645, 151643, 151646, 151643, None),
            'has 151669 tokens, and its encoder',
        ),
        (
            (QWEN, 307, 301, 300, 151936, 151645, None),
            'has no special token 151645, with which its',
        ),
        ((T5, 100, 1, 3, 121, 1, 0), r'pads with 3, and its encoder with 0 \(pad_token_id in its'),
    ],
)
def test_the_tokenizer_of_another_model_is_refused(sizes, said):
    kind, size, end, padding, *of_encoder = sizes
    config = dict(zip(('vocab_size', 'eos_token_id', 'pad_token_id'), of_encoder))
    with pytest.raises(ValueError, match=f'there {said}.*do not belong together'):
        K.check_belongs(Sized(size, end, padding), kind, config, 'there')


def test_opening_the_shipped_tokenizers_says_nothing(caplog):
    """A text longer than the miniature's 16 tokens would make transformers warn at every start."""
    K.load_tokenizers(K.TOKENIZERS)
    assert not caplog.records
