"""Word lists of the miniature: common English words of 3 to 5 letters, split into train and
held-out.

The split is a pair of committed files, so a model never sees a held-out word before evaluation,
whatever its training seed.
"""

import functools
from pathlib import Path

import numpy as np

ASSETS = Path(__file__).parent / 'assets'
ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
MIN_LETTERS, MAX_LETTERS = 3, 5


def _read_words(path: Path) -> tuple[str, ...]:
    words = tuple(path.read_text(encoding='ascii').split())
    for number, word in enumerate(words, start=1):
        if not (MIN_LETTERS <= len(word) <= MAX_LETTERS and set(word) <= set(ALPHABET)):
            raise ValueError(
                f'{path}:{number}: {word!r} is not a word of {MIN_LETTERS} to {MAX_LETTERS} '
                'letters A-Z'
            )
    return words


@functools.cache
def train_words() -> tuple[str, ...]:
    """The 2,500 training words, upper case, sorted."""
    return _read_words(ASSETS / 'train_words.txt')


@functools.cache
def held_out_words() -> tuple[str, ...]:
    """The 320 held-out words, upper case, sorted: never in a training prompt, alone or in a
    template.
    """
    return _read_words(ASSETS / 'held_out_words.txt')


@functools.cache
def _held_out_set() -> frozenset[str]:
    return frozenset(held_out_words())


def random_word(rng: np.random.Generator) -> str:
    """A string of 3 to 5 letters, length and letters uniform, that is never a held-out word.

    Random strings teach letters rather than words: rare letters and unseen pairs occur as often as
    common ones.
    """
    while True:
        word = ''.join(
            ALPHABET[i]
            for i in rng.integers(len(ALPHABET), size=rng.integers(MIN_LETTERS, MAX_LETTERS + 1))
        )
        if word not in _held_out_set():
            return word


def train_word(rng: np.random.Generator, random_share: float = 0.5) -> str:
    """A training target: a random string with probability `random_share`, else a training word."""
    if rng.random() < random_share:
        return random_word(rng)
    words = train_words()
    return words[rng.integers(len(words))]
