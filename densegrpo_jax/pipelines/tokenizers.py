"""The miniatures' two tokenizers, and the functions that open and call any tokenizer.

`python -m densegrpo_jax.pipelines.tokenizers --out DIR` writes `tokenizer` (CLIP's algorithm) and
`tokenizer_2` (T5's) in the layout of a Diffusers folder. Nothing is random: both vocabularies
follow from a list of words, here those of the scene templates.

T5 ids: 0 <pad>, 1 </s>, 2 <unk>, then a space, an opening quote, the words, and every printable
ASCII character. An upper case letter or a digit is always a token of its own, so an unseen word is
spelled to the model letter by letter.
"""

import argparse
import collections
import importlib.util
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densegrpo_jax.data.prompts import SCENES
from densegrpo_jax.data.words import ASSETS
from densegrpo_jax.runtime.quiet import import_transformers
from densegrpo_jax.runtime.reading import read_json

FLUX_TOKENIZERS = (('tokenizer', 'CLIPTokenizer'), ('tokenizer_2', 'T5TokenizerFast'))
TOKENIZERS = ASSETS / 'tokenizers'  # holds tokenizer/ and tokenizer_2/
# tokens, special ones included; the longest tiny prompt has 15 in T5
CLIP_LENGTH, T5_LENGTH = 24, 16
# Texts with few and with many distinct letters: a tokenizer must tell them apart.
TRIED = ('a cat', 'two dogs', 'NEON 3')
PIECES = 'spiece.model'  # SentencePiece's file of a vocabulary
SPACE = '\u2581'  # the mark that SentencePiece puts in front of a word


def load_tokenizers(
    folder: str | Path, kinds: Sequence[tuple[str, str]] = FLUX_TOKENIZERS
) -> tuple:
    """Opens the tokenizers in `folder`, offline: `kinds` names their folders and their classes in
    transformers.

    Raises:
      FileNotFoundError: a folder is missing.
      ValueError: a tokenizer does not open, or cannot tell texts apart (`check_tokenizer`).
    """
    transformers = import_transformers()
    opened = []
    for name, cls in kinds:
        path = Path(folder) / name
        if not path.is_dir():
            raise FileNotFoundError(
                f'{path} does not exist; the folder must hold '
                f'{", ".join(f"{n}/" for n, _ in kinds)}'
            )
        opened.append(open_tokenizer(getattr(transformers, cls), path))
    return tuple(opened)


def open_tokenizer(kind: type, path: Path):
    """A tokenizer of a transformers class, from its folder.

    Raises:
      ValueError: it does not open, or cannot tell texts apart.
    """
    there = {file for file in ('tokenizer.json', PIECES) if (path / file).is_file()}
    if there == {PIECES} and importlib.util.find_spec('sentencepiece') is None:
        raise ValueError(
            f'{path} has its vocabulary in {PIECES} alone, which transformers reads with another '
            'package: pip install sentencepiece; or put the tokenizer.json of the model beside it'
        )
    for file in sorted(path.glob('*.json')):
        if 'model' not in read_json(file) and file.name == 'tokenizer.json':
            raise ValueError(f"{file} has no 'model': it is not a tokenizer's; fetch it again")
    try:
        tokenizer = kind.from_pretrained(str(path), local_files_only=True)
        tokenizer(list(TRIED), padding='max_length', max_length=16, truncation=True)
        ids = {tuple(tokenizer(text).input_ids) for text in TRIED}
    except Exception as error:  # noqa: BLE001 (the library lets any error through)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f'{path} is no tokenizer that {kind.__name__} opens: {reason[0]}'
        ) from error
    # A tokenizer opens even without its vocabulary, but then knows no token of any text.
    known = {token for row in ids for token in row} - set(tokenizer.all_special_ids)
    if len(ids) < len(TRIED) or len(known) < len(TRIED):
        raise ValueError(
            f'{path} gives different texts the same tokens: the files of its vocabulary '
            f'(tokenizer.json, or vocab.json and merges.txt, or {PIECES}) are missing or not its '
            'own'
        )
    return tokenizer


def check_length(tokenizer, positions: int, folder: Path) -> None:
    """Checks the number of tokens to which a tokenizer fills prompts, of an encoder with that many
    positions.

    Raises:
      ValueError: the tokenizer does not say, or says more.
    """
    if tokenizer.model_max_length > positions:
        raise ValueError(
            f'{folder / "tokenizer_config.json"} has no model_max_length of at most {positions}, '
            "the positions of its encoder: it is not the model's own; fetch it again"
        )


def check_vocabulary(tokenizer, size: int, where: str) -> None:
    """Checks that the tokens of a few texts are among the `size` that an encoder knows. The
    encoder's vocabulary may be larger than its tokenizer's, as T5's is.

    Raises:
      ValueError: a token is not among them.
    """
    highest = max(token for text in TRIED for token in tokenizer(text).input_ids)
    if highest >= size:
        raise ValueError(
            f'{where} makes token {highest}, but its encoder knows {size} (vocab_size in its '
            'config.json): they do not belong together'
        )


def check_belongs(tokenizer, kind: str, config: Mapping[str, Any], where: str) -> None:
    """Checks that a tokenizer is its encoder's own: its size, its end and its padding are those of
    the encoder's config.json, as far as released models agree in them.

    CLIP's vocabulary has no spare tokens, and T5's has some. CLIP's padding is the end of the text
    or '!', whatever the config says; a config with the end 2 is older than that key's use. A
    language model's tokenizer ends with what its chat template needs, and its padding is masked:
    the encoder's own end is one of the special tokens (`chat.check_template` tries the others).

    Args:
      kind: the tokenizer's class in transformers. config: the contents of config.json.

    Raises:
      ValueError: they do not belong together.
    """
    clip, t5, chat = (kind.startswith(name) for name in ('CLIP', 'T5', 'Qwen'))
    size, end, padding = (config.get(k) for k in ('vocab_size', 'eos_token_id', 'pad_token_id'))
    found = ''
    if isinstance(size, int) and (
        (clip and len(tokenizer) < size) or ((t5 or chat) and len(tokenizer) > size)
    ):
        found = f'has {len(tokenizer)} tokens, and its encoder {size} (vocab_size'
    elif isinstance(end, int) and (t5 or (clip and end != 2)) and tokenizer.eos_token_id != end:
        found = (
            f'ends a text with {tokenizer.eos_token_id}, and its encoder with {end} (eos_token_id'
        )
    elif isinstance(end, int) and chat and end not in tokenizer.added_tokens_decoder:
        found = f'has no special token {end}, with which its encoder ends a text (eos_token_id'
    elif isinstance(padding, int) and t5 and tokenizer.pad_token_id != padding:
        found = f'pads with {tokenizer.pad_token_id}, and its encoder with {padding} (pad_token_id'
    if found:
        raise ValueError(
            f'{where} {found} in its config.json): they do not belong together; fetch the '
            "model's own tokenizer"
        )


def tokenize(tokenizer, prompts: Sequence[str], max_length: int) -> np.ndarray:
    """Token ids as FluxPipeline computes them: padded or cut to `max_length`.

    Args:
      tokenizer: a transformers tokenizer.
      prompts: B texts.
      max_length: L, special tokens included.

    Returns:
      int32 [B, L].
    """
    ids = tokenizer(
        list(prompts),
        padding='max_length',
        max_length=max_length,
        truncation=True,
        return_tensors='np',
    ).input_ids
    return np.asarray(ids, np.int32)


def template_words() -> list[str]:
    """The distinct lower-case words of the scene templates, sorted."""
    return sorted({word for template in SCENES.values() for word in re.findall('[a-z]+', template)})


def t5_vocabulary(words: Sequence[str]) -> list[tuple[str, float]]:
    """Unigram pieces with scores; the best segmentation has the fewest tokens, as all scores are
    about equal.
    """
    pieces = (
        [SPACE, f'{SPACE}"'] + [SPACE + word for word in words] + [chr(c) for c in range(33, 127)]
    )
    return [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0)] + [(piece, -1.0) for piece in pieces]


def byte_pair_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first (ties in alphabetical order), until every word is
    a single piece.
    """
    pieces = [[*word[:-1], word[-1] + '</w>'] for word in words]
    merges = []
    while any(len(p) > 1 for p in pieces):
        counts = collections.Counter(pair for p in pieces for pair in itertools.pairwise(p))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merge(p, best) for p in pieces]
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(pieces):
        if tuple(pieces[i : i + 2]) == pair:
            merged.append(pieces[i] + pieces[i + 1])
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return merged


def clip_vocabulary(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in CLIP's order: 256 bytes, 256 bytes that end a word, merges, start of
    text, end of text.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    merges = byte_pair_merges(words)
    symbols = sorted(ByteLevel.alphabet())
    pieces = (
        symbols
        + [s + '</w>' for s in symbols]
        + [a + b for a, b in merges]
        + ['<|startoftext|>', '<|endoftext|>']
    )
    return {piece: i for i, piece in enumerate(pieces)}, merges


def build(
    out: str | Path,
    words: Sequence[str],
    *,
    clip_length: int = CLIP_LENGTH,
    t5_length: int = T5_LENGTH,
) -> None:
    """Writes both tokenizers below the folder `out`, which is made if it does not exist; every one
    of `words` is one token.
    """
    transformers = import_transformers()
    vocabulary, merges = clip_vocabulary(words)
    clip = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=clip_length)
    clip.save_pretrained(str(Path(out) / 'tokenizer'))
    t5 = transformers.T5TokenizerFast(
        vocab=t5_vocabulary(words), extra_ids=0, model_max_length=t5_length
    )
    t5.save_pretrained(str(Path(out) / 'tokenizer_2'))


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write the tokenizers of the miniature that spells.'
    )
    parser.add_argument(
        '--out', default=str(TOKENIZERS), help='folder to write into (default: the package itself)'
    )
    out = parser.parse_args().out
    build(out, template_words())
    for tokenizer in load_tokenizers(out):
        print(
            f'{type(tokenizer).__name__}: {len(tokenizer)} tokens, at most '
            f'{tokenizer.model_max_length} in a prompt'
        )


if __name__ == '__main__':
    main()
