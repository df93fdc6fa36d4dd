"""Prompt sets: the miniature's scenes, and text files with one prompt per line."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from densegrpo_jax.data.words import ASSETS, held_out_words, train_words
from densegrpo_jax.runtime.reading import read_text

# render.py has one look per scene. At most 6 words precede the quote, so that the longest prompt
# fits 16 T5 tokens.
SCENES: dict[str, str] = {
    'neon': 'A neon sign that says "{}"',
    'chalkboard': 'A chalkboard that reads "{}"',
    'wood': 'A wooden board with the word "{}"',
    'taxi': 'A yellow taxi sign saying "{}"',
    'road': 'A road sign that reads "{}"',
    'paper': 'A paper note with the word "{}"',
    'poster': 'A red poster that says "{}"',
    'screen': 'A computer screen showing "{}"',
}


# Longer than any text encoder reads, by far: T5 reads 512 tokens.
MAX_CHARACTERS = 20_000


@dataclass(frozen=True)
class Prompt:
    """A prompt and the metadata that rewards may need."""

    text: str
    metadata: dict = field(default_factory=dict)

    @property
    def target(self) -> str | None:
        """The text that its image should show; None if it shows none."""
        target = self.metadata.get('target')  # of a table it may be anything
        return target if isinstance(target, str) else None


@dataclass(frozen=True)
class PromptSet(Sequence[Prompt]):
    """An ordered, immutable list of prompts. Its index identifies a prompt, never its text."""

    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index):
        return self.prompts[index]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @classmethod
    def from_text(cls, path: str | Path, *, quoted_target: bool = True) -> 'PromptSet':
        """Reads one prompt per line (`read_text`; blank lines skipped).

        Args:
          path: text file.
          quoted_target: every line must carry its target between the first pair of straight double
            quotes, as the OCR reward needs; False reads lines as they are, without targets.

        Raises:
          FileNotFoundError: no such file.
          ValueError: a line has no quoted target, or the file has no prompts; the message names the
            file and the line number. Likewise for a prompt of more than MAX_CHARACTERS.
        """
        prompts = []
        for number, line in enumerate(read_text(path, 'prompt file').split('\n'), start=1):
            if text := check_text(line, f'{path}:{number}'):
                prompts.append(
                    ocr_prompt(text, f'{path}:{number}') if quoted_target else Prompt(text)
                )
        if not prompts:
            raise ValueError(f'{path}: the file holds no prompt; write one prompt per line')
        return cls(tuple(prompts))


def columns(prompts: Iterable[Prompt]) -> tuple[list[str], list[dict]]:
    """(texts, metadata), in the form that rewards take."""
    prompts = list(prompts)
    return [p.text for p in prompts], [p.metadata for p in prompts]


def check_text(text: str, where: str) -> str:
    """The prompt without white space at its ends, and without byte order marks, which files that
    were joined have inside.

    Raises:
      ValueError: no text encoder could read it: it is too long, holds a NUL, or bytes of an
        argument that are not UTF-8. The message names `where`.
    """
    text = text.replace('\ufeff', '').strip()
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f'{where}: a prompt of {len(text)} characters, which begins with {text[:40]!r}; '
            f'expected at most {MAX_CHARACTERS}, and one prompt per line'
        )
    if '\0' in text:
        raise ValueError(f'{where}: the prompt {text[:40]!r} holds a NUL character; remove it')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f'{where}: the character {error.start + 1} of the prompt {text[:40]!r} is not text; '
            'write it in UTF-8'
        ) from None
    return text


def quoted_target(text: str, where: str = 'prompt') -> str:
    """The text between the first pair of straight double quotes of `text`, spaces at its ends
    removed.

    Raises:
      ValueError: there is no such pair, or only spaces in it; `where` names the place in the
        message.
    """
    parts = text.split('"', 2)
    if len(parts) < 3 or not parts[1].strip():
        raise ValueError(
            f'{where}: expected a target between straight double quotes, as in A sign that reads '
            f'"OPEN"; found {text!r}'
        )
    return parts[1].strip()


def ocr_prompt(text: str, where: str = 'prompt') -> Prompt:
    """A prompt whose target, metadata['target'] for the OCR reward, is its first quoted text."""
    return Prompt(text, {'target': quoted_target(text, where)})


def scene_prompt(scene: str, word: str) -> Prompt:
    """The miniature's prompt for `word` in one of `SCENES`."""
    if scene not in SCENES:
        raise ValueError(f'unknown scene {scene!r}; known scenes: {", ".join(SCENES)}')
    return Prompt(SCENES[scene].format(word), {'target': word, 'scene': scene})


def tiny_train_prompts() -> PromptSet:
    """Every scene with every training word, scene fastest: 8 x 2,500 prompts."""
    return PromptSet(tuple(scene_prompt(scene, word) for word in train_words() for scene in SCENES))


def tiny_eval_prompts() -> PromptSet:
    """Every held-out word once, in file order, with scenes in turn: 320 prompts, 40 per scene."""
    scenes = tuple(SCENES)
    return PromptSet(
        tuple(
            scene_prompt(scenes[i % len(scenes)], word) for i, word in enumerate(held_out_words())
        )
    )


def panel_prompts() -> PromptSet:
    """Sixty prompts of six categories, to measure what a run was not trained on
    (assets/panel_prompts.txt); metadata['tag'] is the category.
    """
    category, prompts = '', []
    for line in (ASSETS / 'panel_prompts.txt').read_text(encoding='utf-8').splitlines():
        if line.startswith('# '):
            category = line.removeprefix('# ')
        else:
            prompts.append(Prompt(line, metadata={'tag': category}))
    return PromptSet(tuple(prompts))
