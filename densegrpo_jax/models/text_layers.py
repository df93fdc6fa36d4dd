"""What CLIP and T5 share: attention with an additive bias, and a stack of equal blocks."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# Keys of a Transformers config.json that do not touch the forward pass of an encoder at inference.
IGNORED_KEYS = (
    'architectures', 'attention_dropout', 'bos_token_id', 'chunk_size_feed_forward', 'classifier_dropout', 'decoder_start_token_id',
    'dropout', 'dropout_rate', 'dtype', 'gradient_checkpointing', 'id2label', 'initializer_factor', 'initializer_range',
    'is_encoder_decoder', 'label2id', 'n_positions', 'num_decoder_layers', 'output_attentions', 'output_hidden_states', 'output_past',
    'pad_token_id', 'problem_type', 'return_dict', 'scale_decoder_outputs', 'task_specific_params',
    'tie_word_embeddings', 'torch_dtype', 'transformers_version', 'use_cache',
    # Settings of text generation, which Transformers 4 wrote into every config that is part of another one (CLIPModel's two towers).
    'add_cross_attention', 'bad_words_ids', 'begin_suppress_tokens', 'cross_attention_hidden_size', 'diversity_penalty', 'do_sample',
    'early_stopping', 'encoder_no_repeat_ngram_size', 'exponential_decay_length_penalty', 'finetuning_task', 'forced_bos_token_id',
    'forced_eos_token_id', 'is_decoder', 'length_penalty', 'max_length', 'min_length', 'no_repeat_ngram_size', 'num_beam_groups',
    'num_beams', 'num_return_sequences', 'output_scores', 'prefix', 'pruned_heads', 'remove_invalid_values', 'repetition_penalty',
    'return_dict_in_generate', 'sep_token_id', 'suppress_tokens', 'temperature', 'tf_legacy_loss', 'tie_encoder_decoder',
    'tokenizer_class', 'top_k', 'top_p', 'torchscript', 'typical_p', 'use_bfloat16',
)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, *, batch: int, heads: int, scale: float) -> jax.Array:
    """softmax(scale q k^T + bias) v with logits and softmax in float32.

    Args:
      q, k, v: [B * L, H * d]; tokens stay flattened because 2-D products are several times faster on XLA:CPU.
      bias: broadcastable to [B, H, L, L], float32.
    Returns:
      [B * L, H * d] in v's dtype.
    """
    q, k, v = (x.reshape(batch, -1, heads, x.shape[-1] // heads).swapaxes(1, 2) for x in (q, k, v))
    logits = jnp.einsum('bhqd,bhkd->bhqk', q, k, preferred_element_type=jnp.float32) * scale + bias
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum('bhqk,bhkd->bhqd', weights, v).swapaxes(1, 2)
    return out.reshape(-1, heads * out.shape[-1])


def run_blocks(
    block: type[nn.Module], length: int, name: str, x: jax.Array, *inputs: Any, scan: bool, remat: bool, **kwargs
) -> tuple[jax.Array, jax.Array]:
    """Applies `length` blocks `(x, *inputs) -> (x, None)`; call it inside a compact method.

    scan: one traced block over parameters with a leading axis, at '<name>'; otherwise subtrees '<name>_0', '<name>_1', ...
    remat: recompute each block in the backward pass instead of keeping its activations.

    Returns (the last block's result, the last block's input).
    """
    if remat:
        block = nn.remat(block, prevent_cse=not scan)
    if scan:
        step = lambda module, x: (module(x, *inputs)[0], x)
        scanned = nn.scan(step, variable_axes={'params': 0}, split_rngs={'params': True}, length=length)
        x, before = scanned(block(**kwargs, name=name), x)
        return x, before[-1]
    for i in range(length):
        before = x
        x, _ = block(**kwargs, name=f'{name}_{i}')(x, *inputs)
    return x, before
