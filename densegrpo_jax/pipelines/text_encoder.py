"""A text encoder of a family, and how it reads prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from densegrpo_jax.pipelines.chat import chat_tokens, opening
from densegrpo_jax.pipelines.tokenizers import tokenize


class TextEncoder(NamedTuple):
    """A text encoder of a family, with its tokenizer.

    component: key of `Pipeline.modules`. tokenizer: its folder. kind: its class in transformers.
    chosen_length: whether its tokens per prompt are `Pipeline.text_length`; else the tokenizer says
    how many. thinking: None, or, for a language model that reads prompts in a chat template, the
    template's `enable_thinking`.
    """

    component: str
    tokenizer: str
    kind: str
    chosen_length: bool = False
    thinking: bool | None = None

    def tokenize(
        self, tokenizer: Any, prompts: Sequence[str], length: int
    ) -> tuple[np.ndarray, ...]:
        """Token ids of B prompts, int32 [B, L]; from a chat template, (ids, mask bool [B, L]:
        False where a token is padding).
        """
        if self.thinking is None:
            return (tokenize(tokenizer, prompts, length),)
        return chat_tokens(tokenizer, prompts, length, thinking=self.thinking)

    def reads(self, tokenizer: Any, texts: Sequence[str], length: int) -> np.ndarray:
        """bool [B], whether a prompt that begins with each text is read to the end of it."""
        if self.thinking is not None:
            texts = [opening(tokenizer, text, thinking=self.thinking) for text in texts]
        # A token has at least one byte; two are added at the ends.
        read = np.array([len(text.encode()) + 2 <= length for text in texts], bool)
        if longer := np.flatnonzero(~read).tolist():
            ids = tokenizer([texts[i] for i in longer], verbose=False).input_ids
            read[longer] = [len(row) <= length for row in ids]
        return read
