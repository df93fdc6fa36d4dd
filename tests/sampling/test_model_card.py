"""The card of an export: its score, and lines that draw."""

from types import SimpleNamespace

import pytest

from configs import tiny_ocr
from densegrpo_jax.pipelines.flux import FluxPipeline
from densegrpo_jax.pipelines.folder import BUILTIN as ASSETS
from densegrpo_jax.pipelines.sd15 import Sd15Pipeline
from densegrpo_jax.sampling.export import model_card, snippet

# what a card takes of a pipeline
NAMED = SimpleNamespace(
    CLASS_NAME='FluxPipeline',
    diffusers_guidance=lambda w: w,
    TEXT_ENCODERS=FluxPipeline.TEXT_ENCODERS,
    DENOISER=FluxPipeline.DENOISER,
)


@pytest.mark.parametrize('layout', ['peft', 'kohya', 'merged'])
def test_a_card_says_what_comfyui_does_not_read(tmp_path, layout):
    unet = SimpleNamespace(**{**vars(NAMED), 'DENOISER': Sd15Pipeline.DENOISER})
    card = lambda of: model_card(tiny_ocr.get_config(), of, tmp_path, tmp_path, layout, 'x', 4)
    said = 'ComfyUI passes over this file; it reads what `densegrpo export --layout=kohya` writes'
    assert (said in card(unet)) == (layout == 'peft') and 'ComfyUI' not in card(NAMED)


@pytest.mark.parametrize('step, after', [(4, '0.9000 ± 0.0200'), (8, '0.7000 ± 0.0300'), (6, None)])
def test_a_model_card_has_the_score_of_the_step_that_is_exported(tmp_path, step, after):
    evaluations = [[0, 0.5, 0.01], [4, 0.9, 0.02], [8, 0.7, 0.03]]
    card = model_card(
        *(tiny_ocr.get_config(), NAMED, tmp_path, tmp_path),
        *('peft', 'lora.safetensors', step, evaluations),
    )
    assert f'{step} updates.' in card
    # Diffusers does not know builtin:tiny
    assert "files('densegrpo_jax') / 'assets' / 'tiny', torch_dtype=torch.float32" in card
    assert str(ASSETS) not in card  # others read it
    expected = (
        [
            f'Evaluation score before 0.5000 ± 0.0100, after {after} (standard errors over the '
            'prompts).'
        ]
        if after
        else []
    )
    assert [line for line in card.splitlines() if 'Evaluation score' in line] == expected


def test_the_lines_of_a_model_card_draw():
    """Without its adapters; without a dtype, Diffusers mixes those of the stored parts."""
    config = tiny_ocr.get_config()
    config.eval.steps = 1
    lines = snippet(config, NAMED, 'adapter', 'peft', 'a.safetensors').splitlines()
    lines.remove("pipe.load_lora_weights('adapter', weight_name='a.safetensors')")
    names = {}
    exec('\n'.join(lines), names)
    assert names['image'].size == (96, 32)
    assert '    max_sequence_length=16,' in lines  # Diffusers' own draws another picture


def test_the_lines_of_a_model_card_expand_the_home_folder():
    config = tiny_ocr.get_config()
    config.model.path = '~/models/tiny'
    lines = snippet(config, NAMED, 'adapter', 'peft', 'a.safetensors').splitlines()
    assert lines[0] == 'import os'
    assert any("os.path.expanduser('~/models/tiny')" in line for line in lines)
