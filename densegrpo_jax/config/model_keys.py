"""Keys of the model and of its trained part."""

from __future__ import annotations

from densegrpo_jax.config.key import MACHINE, Key, choice, number, positive, switch, text, whole
from densegrpo_jax.core.classifier_free import ALWAYS
from densegrpo_jax.networks.attention import IMPLEMENTATIONS
from densegrpo_jax.networks.names import FLUX_TARGETS, FORMATS, REMAT_POLICIES

MODEL = {
    'path': text('black-forest-labs/FLUX.1-dev', 'Diffusers folder or Hugging Face id.'),
    'transformer_file': text(
        '',
        "Safetensors file of the transformer instead of the folder's, also in the original layout "
        'of FLUX.1, FLUX.2 and Z-Image, as ComfyUI has them too.',
    ),
    'height': whole(512, 'Height of the image in pixels.', 8, 8192),
    'width': whole(512, 'Width of the image in pixels.', 8, 8192),
    't5_length': whole(
        128,
        'Tokens per prompt of T5 (FLUX.1, SD3.5) or of Qwen3 with its chat template (FLUX.2, '
        'Z-Image), which were made with 512. Longer prompts are cut, with a warning.',
        1,
        8192,
    ),
    'guidance': number(
        3.5,
        'FLUX.1: input of the guidance embedding. Others: scale of classifier-free guidance; 1 = '
        'none. A distilled FLUX.2 ignores it; Z-Image in Diffusers counts from 0, one less.',
        0,
        1000,
    ),
    'cfg_normalization': number(
        0.0,
        "Classifier-free guidance, as in ZImagePipeline: the guided velocity's norm is at most "
        "this times that of the prompt's own; 0 = no bound.",
        0,
        1000,
    ),
    'cfg_truncation': number(
        ALWAYS,
        'Classifier-free guidance, as in ZImagePipeline: none where the time 1 - s is above this; '
        '1 = everywhere.',
        0,
        1,
    ),
    'dtype': choice(
        'bfloat16', 'Dtype of the base weights and matrix products.', ('float32', 'bfloat16')
    ),
    'quantize': choice(
        'none',
        "The transformer's blocks under the adapters in 8 bits ('int8') or 4 bits ('nf4').",
        ('none', *FORMATS),
    ),
    'scan': switch(
        True,
        'Compile one block and loop over it: compiles faster. A run continues with the value that '
        'it began with.',
        MACHINE,
    ),
    'remat': choice(
        'full',
        'What the backward pass recomputes instead of keeping it (`StackedNetwork`).',
        ('none', *REMAT_POLICIES),
        MACHINE,
    ),
    'attention': choice(
        'xla',
        "Implementation of attention: XLA, or a fused kernel, 'cudnn' (NVIDIA GPUs) or 'splash' "
        '(TPUs).',
        IMPLEMENTATIONS,
        MACHINE,
    ),
}

LORA = {
    'rank': whole(64, 'Rank of the adapters.', 1, 4096),
    'alpha': positive(128.0, "The adapters' output is scaled by alpha / rank."),
    'targets': Key(FLUX_TARGETS, 'Ends of the names of the layers with an adapter.', length=1),
    'init_from': text(
        '',
        'LoRA file to start from, of Diffusers, PEFT, ComfyUI or kohya; the reference policy stays '
        'the base.',
    ),
}

FULL = switch(
    False,
    'Train all weights of the transformer instead of adapters; the reference policy is then a '
    'frozen copy.',
)

# What is read with each value of full.
FULL_HEEDED = {False: tuple(f'lora.{name}' for name in LORA), True: ()}
