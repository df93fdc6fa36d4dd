"""The components of a miniature FLUX, as their configuration files describe them."""

from __future__ import annotations

SCHEDULER = {
    '_class_name': 'FlowMatchEulerDiscreteScheduler',
    '_diffusers_version': '0.32.0',
    'base_image_seq_len': 256,
    'base_shift': 0.5,
    'max_image_seq_len': 4096,
    'max_shift': 1.15,
    'num_train_timesteps': 1000,
    'shift': 3.0,
    'use_dynamic_shifting': True,
}


def component_configs(config, tokenizer, tokenizer_2) -> dict[str, dict]:
    """The config.json of every component: the sizes of `config`, completed with the keys that
    Transformers and Diffusers expect.

    Args:
      config: with clip_length and the ConfigDicts transformer, vae, text_encoder and
        text_encoder_2.
      tokenizer, tokenizer_2: CLIP's and T5's, of `load_tokenizers`.

    Returns:
      component -> JSON values.
    """
    clip = {
        'architectures': ['CLIPTextModel'],
        'model_type': 'clip_text_model',
        'vocab_size': len(tokenizer),
        'max_position_embeddings': config.clip_length,
        'bos_token_id': tokenizer.bos_token_id,
        'eos_token_id': tokenizer.eos_token_id,
        'pad_token_id': tokenizer.pad_token_id,
        'layer_norm_eps': 1e-5,
        **config.text_encoder.to_dict(),
    }
    t5 = {
        'architectures': ['T5EncoderModel'],
        'model_type': 't5',
        'vocab_size': len(tokenizer_2),
        'feed_forward_proj': 'gated-gelu',
        'is_gated_act': True,
        'dense_act_fn': 'gelu_new',
        'layer_norm_epsilon': 1e-6,
        'pad_token_id': 0,
        'eos_token_id': 1,
        'decoder_start_token_id': 0,
        'tie_word_embeddings': False,
        'is_encoder_decoder': True,
        **config.text_encoder_2.to_dict(),
    }
    vae = {
        '_class_name': 'AutoencoderKL',
        '_diffusers_version': '0.32.0',
        'act_fn': 'silu',
        'scaling_factor': 1.0,
        'shift_factor': 0.0,
        'down_block_types': ['DownEncoderBlock2D'] * 4,
        'up_block_types': ['UpDecoderBlock2D'] * 4,
        **config.vae.to_dict(),
    }
    transformer = {
        '_class_name': 'FluxTransformer2DModel',
        '_diffusers_version': '0.32.0',
        **config.transformer.to_dict(),
    }
    as_lists = lambda d: {k: list(v) if isinstance(v, tuple) else v for k, v in d.items()}
    return {
        'transformer': as_lists(transformer),
        'vae': as_lists(vae),
        'text_encoder': clip,
        'text_encoder_2': t5,
    }
