"""OCR scenes for large models: a seeded generator of natural prompts, each with one quoted phrase
that the image must spell.

The grammar is assets/scenes.toml. No phrase of Flow-GRPO's OCR test set is ever generated:
assets/ocr_test_hashes.txt holds a hash of each of its targets.
"""

import functools
import hashlib
import re
import tomllib

import numpy as np

from densegrpo_jax.data.prompts import Prompt, PromptSet, ocr_prompt
from densegrpo_jax.data.words import ASSETS

HASHES = ASSETS / 'ocr_test_hashes.txt'
# of a phrase; the longest target of the OCR test set has 30 characters
MAX_WORDS, MAX_CHARACTERS = 5, 30
_SLOT = re.compile(r'\{(?:(\d+)-(\d+)|(\w+))\}')


@functools.cache
def grammar() -> dict:
    """The parsed grammar: 'frames', 'shared' slots, and the 'domain' tables."""
    return tomllib.loads((ASSETS / 'scenes.toml').read_text(encoding='utf-8'))


def _pick(entries: list, rng: np.random.Generator):
    return entries[rng.integers(len(entries))]


def expand(text: str, slots: dict[str, list[str]], rng: np.random.Generator) -> str:
    """`text` with every {slot} replaced by a random entry, itself expanded, and every {low-high} by
    an integer of that range.

    A slot that occurs more than once gets different entries. Raises ValueError for an unknown slot.
    """
    used: dict[str, list[str]] = {}

    def fill(match: re.Match) -> str:
        low, high, name = match.groups()
        if name is None:
            return str(rng.integers(int(low), int(high) + 1))
        if name not in slots:
            raise ValueError(
                f'scenes.toml: unknown slot {{{name}}} in {text!r}; known slots: '
                f'{", ".join(sorted(slots))}'
            )
        entries = [entry for entry in slots[name] if entry not in used.setdefault(name, [])]
        used[name].append(_pick(entries, rng))
        return expand(used[name][-1], slots, rng)

    return _SLOT.sub(fill, text)


def normalise(target: str) -> str:
    """The form in which targets are compared: letters and digits only, lower case."""
    return ''.join(c for c in target.casefold() if c.isalnum())


def target_hash(target: str) -> str:
    """16 hexadecimal digits of the SHA-256 of the normalised target."""
    return hashlib.sha256(normalise(target).encode()).hexdigest()[:16]


@functools.cache
def excluded_hashes() -> frozenset[str]:
    """Hashes of the targets that are never generated."""
    return frozenset(HASHES.read_text(encoding='ascii').split())


def random_scene(rng: np.random.Generator) -> Prompt:
    """One scene prompt; `metadata` carries its target and its domain."""
    tables = grammar()
    domain = _pick(tables['domain'], rng)
    slots = tables['shared'] | domain.get('slots', {})
    while True:
        phrase = expand(_pick(domain['phrases'], rng), slots, rng)
        if (
            len(phrase.split()) <= MAX_WORDS
            and len(phrase) <= MAX_CHARACTERS
            and target_hash(phrase) not in excluded_hashes()
        ):
            break
    parts = {
        'carrier': domain['carriers'],
        'place': domain['places'],
        'detail': domain['details'],
        'phrase': [phrase],
    }
    text = expand(_pick(tables['frames'], rng), slots | parts, rng)
    prompt = ocr_prompt(text[0].upper() + text[1:])
    return Prompt(prompt.text, prompt.metadata | {'domain': domain['name']})


def scene_prompts(count: int, seed: int) -> PromptSet:
    """`count` distinct scene prompts, a pure function of (count, seed); a longer set starts with
    the shorter one.

    Raises:
      ValueError: the grammar does not yield `count` distinct prompts (it has millions).
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Prompt] = {}
    for _ in range(10 * count + 100):
        if len(found) == count:
            return PromptSet(tuple(found.values()))
        prompt = random_scene(rng)
        found.setdefault(prompt.text, prompt)
    raise ValueError(
        f'count = {count}: the grammar yielded only {len(found)} distinct prompts; ask for fewer'
    )
