"""Reads the JSON files of model folders. Every key of a config.json is used, checked or known to be
irrelevant; any other key is an error.
"""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from densegrpo_jax.runtime.reading import finite

# Keys of a Transformers config.json that do not touch the forward pass of an encoder at inference.
IGNORED_KEYS = (
    'architectures',
    'attention_dropout',
    'bos_token_id',
    'chunk_size_feed_forward',
    'classifier_dropout',
    'decoder_start_token_id',
    'dropout',
    'dropout_rate',
    'dtype',
    'gradient_checkpointing',
    'id2label',
    'initializer_factor',
    'initializer_range',
    'is_encoder_decoder',
    'label2id',
    'n_positions',
    'num_decoder_layers',
    'output_attentions',
    'output_hidden_states',
    'output_past',
    'pad_token_id',
    'problem_type',
    'return_dict',
    'scale_decoder_outputs',
    'task_specific_params',
    'tie_word_embeddings',
    'torch_dtype',
    'transformers_version',
    'use_cache',
    # Settings of text generation, which Transformers 4 wrote into every config that is part of
    # another one (CLIPModel's two towers).
    'add_cross_attention',
    'bad_words_ids',
    'begin_suppress_tokens',
    'cross_attention_hidden_size',
    'diversity_penalty',
    'do_sample',
    'early_stopping',
    'encoder_no_repeat_ngram_size',
    'exponential_decay_length_penalty',
    'finetuning_task',
    'forced_bos_token_id',
    'forced_eos_token_id',
    'is_decoder',
    'length_penalty',
    'max_length',
    'min_length',
    'no_repeat_ngram_size',
    'num_beam_groups',
    'num_beams',
    'num_return_sequences',
    'output_scores',
    'prefix',
    'pruned_heads',
    'remove_invalid_values',
    'repetition_penalty',
    'return_dict_in_generate',
    'sep_token_id',
    'suppress_tokens',
    'temperature',
    'tf_legacy_loss',
    'tie_encoder_decoder',
    'tokenizer_class',
    'top_k',
    'top_p',
    'torchscript',
    'typical_p',
    'use_bfloat16',
)


def read_config(
    kind: type,
    name: str,
    config: Mapping[str, Any],
    *,
    only: Mapping[str, Collection],
    ignored: Collection[str],
    defaults: Mapping[str, Any] | None = None,
):
    """Builds the dataclass `kind` from a parsed config.json.

    Args:
      kind: dataclass; keys that name its fields are used (lists become tuples).
      name: how errors call the file.
      config: the parsed JSON.
      only: key -> the values of it that the port supports.
      ignored: keys without influence on the forward pass; keys with a leading underscore are
        ignored too.
      defaults: what the reference assumes for absent keys, if that differs from the defaults of
        `kind`.
    Raises:
      ValueError: an unknown key, or a value of another type or not supported, by name.
    """
    fields = {field.name for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values = dict(defaults or {})
    for key, value in config.items():
        if key in only and value not in only[key]:
            raise ValueError(
                f'{name}: {key}={value!r} is not supported, expected '
                f'{" or ".join(map(repr, only[key]))}'
            )
        if key in fields and not _fits(value, hints[key]):
            raise ValueError(f'{name}: {key} is {value!r}; expected {_said(hints[key])}')
        if key in fields:
            values[key] = tuple(value) if isinstance(value, list) else value
        elif key not in only and key not in ignored and not key.startswith('_'):
            raise ValueError(
                f'{name}: unknown key {key!r} (value {value!r}); this may not be the plain network '
                'that is supported here'
            )
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a parsed value is of the type of a field; a whole number may stand for a float."""
    parts = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(_fits(v, parts[0]) for v in value)
    if hint is float:
        return finite(value)
    if hint is int:
        return type(value) is int
    return not isinstance(hint, type) or isinstance(value, hint)


def _said(hint: Any) -> str:
    return 'a finite number' if hint is float else getattr(hint, '__name__', str(hint))


def check_positive(config, name: str, zero: Collection[str] = ()) -> None:
    """Raises ValueError unless every field of type `int` or `int | None` is a positive integer (or
    None); those in `zero` may be 0.
    """
    for field in dataclasses.fields(config):
        if field.type not in (int, int | None):
            continue
        value, low = getattr(config, field.name), 0 if field.name in zero else 1
        if not _fits(value, field.type) or (value is not None and value < low):
            raise ValueError(f'{name}: {field.name} must be an integer >= {low}, got {value!r}')
