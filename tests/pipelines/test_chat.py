"""Prompts in a chat template, against the way the Diffusers pipelines call tokenizer and
encoder.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import qwen3
from densegrpo_jax.pipelines.chat import chat_text, chat_tokens, check_template, opening
from densegrpo_jax.pipelines.tokenizers import load_tokenizers
from densegrpo_jax.pipelines.weights import files as weights
from tests.qwen_folder import SPECIAL, random_tokenizer

PROMPTS = ['a neon sign that says "HELLO"', '', 'é 猫 {{ x }} <|im_end|>', 'cat ' * 60]
LAYERS = (1, 2, 3)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    """As written to a folder and opened."""
    folder = tmp_path_factory.mktemp('qwen')
    random_tokenizer(folder / 'tokenizer')
    return load_tokenizers(folder, [('tokenizer', 'Qwen2TokenizerFast')])[0]


@pytest.fixture(scope='module')
def encoder(tokenizer, tmp_path_factory):
    """A torch encoder, and its folder."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    module = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp('encoder')
    module.save_pretrained(folder)
    return module, folder


@pytest.mark.parametrize('length', [40, 96])
def test_states_equal_those_of_the_klein_pipeline(tokenizer, encoder, length):
    pytest.importorskip('diffusers')
    from diffusers import Flux2KleinPipeline

    module, folder = encoder
    expected = Flux2KleinPipeline._get_qwen3_prompt_embeds(
        module, tokenizer, PROMPTS, max_sequence_length=length, hidden_states_layers=LAYERS
    )
    expected = expected.detach().numpy()
    config = qwen3.Qwen3Config.from_json(json.loads((folder / 'config.json').read_text()))
    model = qwen3.Qwen3Encoder(config, LAYERS)
    ids, mask = chat_tokens(tokenizer, PROMPTS, length, thinking=False)
    assert ids.shape == mask.shape == (4, length) and (ids.dtype, mask.dtype) == (np.int32, bool)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, mask)['params']
    params = weights.load_weights(folder, model.weight_rules(), shapes, prefix='model.')
    found = np.asarray(jax.jit(model.apply)({'params': params}, ids, mask))
    found = found.reshape(4, length, -1)
    assert found.dtype == jnp.float32
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize('side', ['right', 'left'])
@pytest.mark.parametrize('thinking', [True, False])
def test_tokens_are_those_of_the_template(side, thinking):
    tokenizer = random_tokenizer(padding_side=side)
    ids, mask = chat_tokens(tokenizer, ['cat'], 40, thinking=thinking)
    text = tokenizer.decode(ids[0][mask[0]])
    thought = '' if thinking else '<think>\n\n</think>\n\n'
    assert text == f'<|im_start|>user\ncat<|im_end|>\n<|im_start|>assistant\n{thought}'
    assert mask[0, 0] == (side == 'right') and mask[0, -1] == (side == 'left')
    assert set(ids[0][~mask[0]]) == {tokenizer.pad_token_id}
    names = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    assert (ids[0] == names['<|im_start|>']).sum() == 2
    assert (ids[0] == names['<think>']).sum() == (not thinking)


def test_opening_ends_with_the_prompt():
    tokenizer = random_tokenizer()
    assert opening(tokenizer, 'a cat', thinking=False) == '<|im_start|>user\na cat'
    assert chat_text(tokenizer, '', thinking=False).startswith('<|im_start|>user\n<|im_end|>')


@pytest.mark.parametrize(
    'template, said',
    [
        (None, 'no chat template'),
        ('{{ messages[0].content ', 'cannot be used'),
        ('{{ raise_exception("no user") }}', 'no user'),
        ('{{ messages[0].role }}', 'leaves out'),
        ('<start>{{ messages[0].content }}<|im_end|>', 'has no token <start>, which its chat'),
    ],
)
def test_a_template_that_cannot_be_used_is_named(template, said):
    with pytest.raises(ValueError, match=f'/some/folder.*{said}|{said}.*/some/folder'):
        check_template(random_tokenizer(template=template), '/some/folder')
    check_template(random_tokenizer(), '/some/folder')
