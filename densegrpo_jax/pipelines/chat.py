"""Prompts for a language model that serves as a text encoder: each is a user's message in the
tokenizer's chat template (Jinja), before an empty answer of the assistant.
"""

import re
from collections.abc import Sequence

import numpy as np

_MARK = re.compile(r'<[|/]?\w+\|?>')  # of a template: <|im_start|>, <think>, </think>


def check_template(tokenizer, where: str) -> None:
    """Checks that a tokenizer has a chat template that shows the message, and marks its ends with
    tokens of the vocabulary: one of another model would spell the marks, as '<think>'.

    Args:
      where: the folder, for messages.

    Raises:
      ValueError: it has none, or one that cannot be rendered, or one that hides the message, or one
        of another vocabulary.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f'{where} has no chat template, in which its encoder was trained to read prompts: put '
            'chat_template.jinja (or tokenizer_config.json) of the model beside its other files'
        )
    try:
        text = chat_text(tokenizer, 'a cat', thinking=False)
    except Exception as error:  # noqa: BLE001 (a template may raise anything)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f'the chat template in {where} cannot be used: {reason[0]}') from error
    if 'a cat' not in text:
        raise ValueError(
            f"the chat template in {where} leaves out the user's message: it is not that of a model"
        )
    if spelled := sorted({*_MARK.findall(text)} - {*tokenizer.tokenize(text)}):
        raise ValueError(
            f'{where} has no token {spelled[0]}, which its chat template writes: template and '
            "vocabulary do not belong together; fetch the model's own tokenizer"
        )


def chat_text(tokenizer, prompt: str, *, thinking: bool) -> str:
    """A prompt as the encoder reads it.

    thinking: the template's `enable_thinking`. Qwen3 writes an empty thought where it is off.
    """
    return tokenizer.apply_chat_template(
        [{'role': 'user', 'content': prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )


def opening(tokenizer, prompt: str, *, thinking: bool) -> str:
    """`chat_text` up to the end of the prompt itself: what must fit for all of it to be read."""
    text = chat_text(tokenizer, prompt, thinking=thinking)
    start = text.rfind(prompt)
    return text if start < 0 else text[: start + len(prompt)]


def chat_tokens(
    tokenizer, prompts: Sequence[str], max_length: int, *, thinking: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of prompts in the chat template, padded or cut to `max_length` on the tokenizer's
    own side, as Flux2KleinPipeline and ZImagePipeline compute them.

    Args:
      prompts: B texts.
      max_length: L, the template's tokens included.

    Returns:
      (ids int32 [B, L], mask bool [B, L]: False where a token is padding).
    """
    found = tokenizer(
        [chat_text(tokenizer, prompt, thinking=thinking) for prompt in prompts],
        padding='max_length',
        max_length=max_length,
        truncation=True,
        return_tensors='np',
    )
    return np.asarray(found.input_ids, np.int32), np.asarray(found.attention_mask) != 0
