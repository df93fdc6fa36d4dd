"""Small random FLUX, FLUX.2, Z-Image, SD3.5 and SD1.5 folders for tests: the real layout, no
training, no torch.
"""

import json

import jax
import numpy as np

from densegrpo_jax.pipelines.flux2 import Flux2KleinPipeline
from densegrpo_jax.pipelines.folder import build_pipeline
from densegrpo_jax.pipelines.saving import save_pipeline
from densegrpo_jax.pipelines.sd3 import Sd3Pipeline
from densegrpo_jax.pipelines.sd15 import Sd15Pipeline
from densegrpo_jax.pipelines.tokenizers import TOKENIZERS, load_tokenizers
from densegrpo_jax.pipelines.zimage import ZImagePipeline
from tests.qwen_folder import random_tokenizer
from tools.make_miniature.components import SCHEDULER

PROMPTS = [
    'A neon sign that says "HELLO"',
    'A chalkboard that reads "JAX"',
    'A road sign that reads "OPEN"',
]
SCHNELL_SCHEDULER = SCHEDULER | {'use_dynamic_shifting': False, 'shift': 1.0}
SD15_SCHEDULER = {
    '_class_name': 'DDIMScheduler',
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'beta_start': 0.00085,
    'num_train_timesteps': 1000,
    'set_alpha_to_one': False,
    'steps_offset': 1,
    'clip_sample': False,
}
SD3_SCHEDULER = {
    '_class_name': 'FlowMatchEulerDiscreteScheduler',
    'num_train_timesteps': 1000,
    'shift': 3.0,
}


def text_and_vae_configs(tokenizer, tokenizer_2):
    """config.json of the autoencoder, CLIP and T5, 16 wide."""
    vae = dict(
        _class_name='AutoencoderKL',
        in_channels=3,
        out_channels=3,
        latent_channels=16,
        block_out_channels=[4, 4, 8, 8],
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=True,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.7,
        shift_factor=0.1,
        act_fn='silu',
        sample_size=96,
        down_block_types=['DownEncoderBlock2D'] * 4,
        up_block_types=['UpDecoderBlock2D'] * 4,
    )
    clip = dict(
        architectures=['CLIPTextModel'],
        model_type='clip_text_model',
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        hidden_act='quick_gelu',
        layer_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    t5 = dict(
        architectures=['T5EncoderModel'],
        model_type='t5',
        vocab_size=len(tokenizer_2),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj='gated-gelu',
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        eos_token_id=1,
        pad_token_id=0,
    )
    return vae, clip, t5


def random_flux(
    folder,
    *,
    heads=2,
    head_dim=16,
    double=1,
    single=1,
    guidance_embeds=True,
    scheduler=SCHEDULER,
    seed=0,
    scale=3.0,
):
    """Writes a FLUX folder of a few thousand parameters and returns its path.

    Modulation and output layers are drawn instead of zero, so that the network depends on all of
    its inputs.
    """
    tokenizer, tokenizer_2 = load_tokenizers(TOKENIZERS)
    transformer = dict(
        _class_name='FluxTransformer2DModel',
        patch_size=1,
        in_channels=64,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=[head_dim - 8, 4, 4],
    )
    vae, clip, t5 = text_and_vae_configs(tokenizer, tokenizer_2)
    configs = dict(transformer=transformer, vae=vae, text_encoder=clip, text_encoder_2=t5)
    pipeline = build_pipeline(
        json.loads(json.dumps(configs)), scheduler, (tokenizer, tokenizer_2), text_length=16
    )
    return _write(folder, pipeline, seed, scale)


def random_sd3(folder, *, heads=2, head_dim=12, layers=3, dual=(0,), seed=0, scale=3.0):
    """Writes an SD3.5 folder of a few thousand parameters, its two CLIPs of different widths, and
    returns its path.
    """
    tokenizer, tokenizer_3 = load_tokenizers(TOKENIZERS)
    vae, clip, t5 = text_and_vae_configs(tokenizer, tokenizer_3)
    t5 |= dict(d_model=48)
    clip |= dict(
        architectures=['CLIPTextModelWithProjection'], num_hidden_layers=2, projection_dim=12
    )
    clip_2 = clip | dict(
        hidden_size=24, num_attention_heads=3, hidden_act='gelu', projection_dim=20
    )
    transformer = dict(
        _class_name='SD3Transformer2DModel',
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=layers,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=48,
        caption_projection_dim=heads * head_dim,
        pooled_projection_dim=32,
        out_channels=16,
        pos_embed_max_size=12,
        dual_attention_layers=list(dual),
        qk_norm='rms_norm',
    )
    configs = dict(
        transformer=transformer,
        vae=vae,
        text_encoder=clip,
        text_encoder_2=clip_2,
        text_encoder_3=t5,
    )
    configs, tokenizers = json.loads(json.dumps(configs)), (tokenizer, tokenizer, tokenizer_3)
    return _write(
        folder,
        build_pipeline(configs, SD3_SCHEDULER, tokenizers, kind=Sd3Pipeline, text_length=16),
        seed,
        scale,
    )


def random_sd15(folder, *, seed=0, scale=1.0):
    """Writes a Stable Diffusion 1 folder of a few thousand parameters and returns its path."""
    tokenizer, tokenizer_2 = load_tokenizers(TOKENIZERS)
    vae, clip, _ = text_and_vae_configs(tokenizer, tokenizer_2)
    vae |= dict(
        latent_channels=4, use_quant_conv=True, use_post_quant_conv=True, scaling_factor=0.18215
    )
    del vae['shift_factor']
    network = dict(
        _class_name='UNet2DConditionModel',
        sample_size=8,
        block_out_channels=[8, 16],
        norm_num_groups=4,
        attention_head_dim=2,
        down_block_types=['CrossAttnDownBlock2D', 'DownBlock2D'],
        up_block_types=['UpBlock2D', 'CrossAttnUpBlock2D'],
        layers_per_block=1,
        cross_attention_dim=16,
    )
    configs = json.loads(json.dumps(dict(transformer=network, vae=vae, text_encoder=clip)))
    return _write(
        folder,
        build_pipeline(configs, SD15_SCHEDULER, (tokenizer,), kind=Sd15Pipeline, text_length=1),
        seed,
        scale,
    )


def _qwen3(tokenizer, layers):
    """The config.json of a thin Qwen3 for a tokenizer."""
    return dict(
        model_type='qwen3',
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
    )


def random_klein(folder, *, distilled=False, head_dim=16, double=1, single=2, seed=0, scale=3.0):
    """Writes a FLUX.2-klein folder of some ten thousand parameters and returns its path. Its text
    encoder is thin, but as deep as the layers that are read.
    """
    tokenizer = random_tokenizer()
    vae, _, _ = text_and_vae_configs(*load_tokenizers(TOKENIZERS))
    for key in ('scaling_factor', 'shift_factor'):
        del vae[key]
    vae |= dict(_class_name='AutoencoderKLFlux2', use_quant_conv=True, use_post_quant_conv=True)
    text = _qwen3(tokenizer, 28) | {'architectures': ['Qwen3ForCausalLM']}
    transformer = dict(
        _class_name='Flux2Transformer2DModel',
        in_channels=64,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=head_dim,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=[head_dim // 4] * 4,
        guidance_embeds=False,
    )
    configs = dict(transformer=transformer, vae=vae, text_encoder=text)
    configs = json.loads(json.dumps(configs | {'pipeline': {'is_distilled': distilled}}))
    pipeline = build_pipeline(
        configs, SCHEDULER, (tokenizer,), kind=Flux2KleinPipeline, text_length=24
    )
    return _write(folder, pipeline, seed, scale)


def random_zimage(folder, *, dim=24, layers=2, seed=0, scale=1.0):
    """Writes a Z-Image folder of some ten thousand parameters and returns its path."""
    tokenizer = random_tokenizer()
    vae, _, _ = text_and_vae_configs(*load_tokenizers(TOKENIZERS))
    text = _qwen3(tokenizer, 3)
    transformer = dict(
        _class_name='ZImageTransformer2DModel',
        all_patch_size=[2],
        all_f_patch_size=[1],
        in_channels=16,
        dim=dim,
        n_layers=layers,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[dim // 6] * 3,
        axes_lens=[128, 32, 32],
    )
    configs = json.loads(json.dumps(dict(transformer=transformer, vae=vae, text_encoder=text)))
    pipeline = build_pipeline(
        configs, SD3_SCHEDULER, (tokenizer,), kind=ZImagePipeline, text_length=24
    )
    return _write(folder, pipeline, seed, scale)


def _write(folder, pipeline, seed, scale):
    """Weights drawn by NumPy as the networks would draw theirs, the transformer's with noise on
    top: compiling `init` takes far longer.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, layer = (jax.tree_util.keystr((key,), simple=True) for key in (path[-1], path[-2]))
        if name == 'kernel' and layer in ('linear', 'proj_out'):
            value = np.zeros(leaf.shape)  # modulation and output layers
        elif name == 'var':
            value = rng.uniform(0.2, 2.0, leaf.shape)
        elif name in ('bias', 'scale', 'weight'):
            value = np.full(leaf.shape, float(name != 'bias'))
        else:
            value = rng.standard_normal(leaf.shape) / np.sqrt(
                np.prod(leaf.shape[:-1]) if name == 'kernel' else leaf.shape[-1]
            )
        if path[0].key == 'transformer':
            value += scale * 0.1 * rng.standard_normal(leaf.shape)
        return value.astype(np.float32)

    save_pipeline(
        folder, pipeline, jax.tree_util.tree_map_with_path(draw, pipeline.abstract_params())
    )
    return folder
