"""A small Qwen tokenizer with a chat template, in the layout of released folders."""

import itertools

# What Qwen3's template does with one message and no tools.
TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""
SPECIAL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<think>', '</think>')
WORDS = ('user', 'assistant', 'cat', 'sign', 'says', 'neon')


def random_tokenizer(folder=None, *, template=TEMPLATE, **options):
    """A Qwen2Tokenizer of about 300 tokens: every byte, a few words, the special tokens. Written to
    `folder` if one is given. options: of the class, such as padding_side.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    merges = []
    for word in WORDS:
        starts = list(itertools.accumulate(word))
        merges += [pair for pair in zip(starts, word[1:]) if pair not in merges]
    pieces = [*sorted(ByteLevel.alphabet()), *(a + b for a, b in merges), *SPECIAL]
    tokenizer = Qwen2TokenizerFast(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=merges,
        additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=1024,
        **options,
    )
    tokenizer.chat_template = template
    if folder is not None:
        tokenizer.save_pretrained(str(folder))
    return tokenizer
