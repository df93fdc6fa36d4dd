"""OCR reward: does the image show the quoted text of its prompt?"""

import functools
import logging
import pathlib
import threading
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from densegrpo_jax.data.prompts import quoted_target
from densegrpo_jax.rewards.base import Scores, check_batch, each_or_none
from densegrpo_jax.rewards.local.readers import (
    DETECTOR,
    RECOGNISER,
    Line,
    LineReader,
    SceneReader,
    alphabet,
    model_file,
)
from densegrpo_jax.runtime.reading import shown

log = logging.getLogger(__name__)

Reader = Callable[..., list[list[Line]]]


# Characters that look alike, or that most fonts draw alike; NFKC keeps them apart.
_ALIKE = str.maketrans(
    {c: "'" for c in '\u2018\u2019\u201a\u201b\u2032\u00b4\u0060'}
    | {c: '"' for c in '\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb'}
    | {c: '-' for c in '\u2010\u2011\u2012\u2013\u2014\u2015\u2212'}
)


def normalise(text: str, unicode: bool = True) -> str:
    """The form in which recognised text and target are compared.

    Args:
      unicode: compare what people see: composed accents, plain forms of full-width letters and
        ligatures (NFKC), straight quotes and one kind of dash, no white space and no characters
        that nothing is drawn for (of format: soft hyphens, joiners, marks of direction and of byte
        order), lower case. False: as Flow-GRPO, lower case without spaces (U+0020 alone). For ASCII
        text both are the same except for tabs, newlines and the grave accent.
    """
    if not unicode:
        return text.replace(' ', '').lower()
    if not text.isascii():
        text = ''.join(c for c in text if unicodedata.category(c) != 'Cf')
    # Lower case may need composing again, and quotes go before NFKC takes some of them apart.
    plain = unicodedata.normalize('NFKC', text.translate(_ALIKE)).lower()
    return ''.join(unicodedata.normalize('NFKC', plain).split())


def ocr_score(
    recognised: str, target: str, extra_text_penalty: float = 0.0, unicode: bool = True
) -> float:
    """Flow-GRPO's OCR reward (arXiv 2505.05470, section 4.1): 1 - min(d, |target|) / |target|.

    d is 0 if the target occurs in the recognised text, else their Levenshtein distance; both are
    normalised first, see `normalise`. Text around the target is therefore free, a known loophole.
    `extra_text_penalty` = p closes it: if the target occurs, d = p * (|recognised| - |target|). So
    p = 0 is Flow-GRPO's reward, and p = 1 the plain capped edit distance.

    Raises:
      ValueError: the target is empty or nothing but spaces.
    """
    recognised, target = normalise(recognised, unicode), normalise(target, unicode)
    if not target:
        raise ValueError('the target text is empty')
    if target in recognised:
        distance = extra_text_penalty * (len(recognised) - len(target))
    else:
        from rapidfuzz.distance import Levenshtein  # only where texts are scored

        distance = Levenshtein.distance(recognised, target)
    return 1.0 - min(distance, len(target)) / len(target)


def targets_of(prompts: Sequence[str], metadata: Sequence[dict]) -> list[str]:
    """metadata[i]['target'] if given, else the text between the first pair of straight double
    quotes of prompts[i].

    Raises:
      ValueError: a prompt has neither, or a target that is no text; the message names its index
        and text.
    """
    targets = []
    for i, (prompt, extra) in enumerate(zip(prompts, metadata, strict=True)):
        target = extra.get('target')
        if target is None:
            target = quoted_target(prompt, where=f'prompt {i}')
        if not isinstance(target, str):  # a table's column may hold numbers
            raise ValueError(
                f'prompt {i}, {shown(prompt, 60)}: its target is {shown(target)}; expected the '
                'text that the image shows'
            )
        if not normalise(target):
            raise ValueError(f'prompt {i}: the OCR target {target!r} of {prompt!r} is empty')
        targets.append(target)
    return targets


class OcrReward:
    """Reads images with PP-OCRv6 and scores the text with `ocr_score`; range [0, 1].

    An image on which the engine fails is invalid (and logged), never 0. A blank image is read as
    '' and scores 0.

    Args:
      mode: 'recognise' reads the whole image as one line of text (the miniature); 'detect' finds
        lines first.
      extra_text_penalty: in [0, 1], see `ocr_score`.
      smooth: share of the likelihood in the training reward, in [0, 1] ('recognise'): (1 - smooth)
        * `ocr_score` + smooth * the probability per character that the recogniser gives the target
        (`readers.ctc_likelihood`). The score alone has only as many values as the word has letters,
        and most transitions leave it unchanged; the likelihood changes with every stroke. Both are
        logged separately, and `eval.best='ocr'` keeps measuring the score.
      unicode: see `normalise`; False keeps Flow-GRPO's exact formula for text that is not ASCII.
      drop_score: the engine drops lines of lower confidence. None: 0.5 when detecting, as PaddleOCR
        does before Flow-GRPO sees its lines, and 0 when recognising, where the only line counts
        even if uncertain. The remaining lines of confidence > 0 are joined.
      batch_size: images per call of the engine ('recognise').
      width_scale: the recogniser sees an image at this fraction of its natural width
        ('recognise'). 5/6 costs 5/6 of the time and read 320 clean, noisy and blurred miniature
        images as well as 1 did; below that, noise costs accuracy.
      detect_side: the detector sees an image with its longer side scaled down to this many pixels
        ('detect').
      make_reader: for other engines: called once per thread, it makes a reader, images uint8
        [n, H, W, 3] -> n lists of `Line`.

    Raises:
      ValueError: an option out of range.
      FileNotFoundError, ModuleNotFoundError: the models are missing.
    """

    name = 'ocr'
    range = (0.0, 1.0)

    def __init__(
        self,
        mode: str = 'recognise',
        *,
        extra_text_penalty: float = 0.0,
        smooth: float = 0.0,
        unicode: bool = True,
        drop_score: float | None = None,
        batch_size: int = 8,
        width_scale: float = 5 / 6,
        detect_side: int = 320,
        make_reader: Callable[[], Reader] | None = None,
    ):
        if mode not in ('recognise', 'detect'):
            raise ValueError(f"ocr.mode is {mode!r}; expected 'recognise' or 'detect'")
        if not 0 <= extra_text_penalty <= 1:
            raise ValueError(
                f'ocr.extra_text_penalty is {extra_text_penalty}; expected a number in [0, 1]'
            )
        if not 0 <= smooth <= 1:
            raise ValueError(f'ocr.smooth is {smooth}; expected a number in [0, 1]')
        if smooth and mode != 'recognise':
            raise ValueError(
                f"ocr.smooth is {smooth}: only mode 'recognise' knows how likely the target is"
            )
        if drop_score is None:
            drop_score = 0.5 if mode == 'detect' else 0.0
        if not 0 <= drop_score <= 1:
            raise ValueError(f'ocr.drop_score is {drop_score}; expected a number in [0, 1]')
        if batch_size < 1 or detect_side < 32 or not 0.25 <= width_scale <= 4:
            raise ValueError(
                f'ocr: batch_size {batch_size}, detect_side {detect_side}, width_scale '
                f'{width_scale}; '
                'expected batch_size >= 1, detect_side >= 32 and width_scale in [0.25, 4]'
            )
        self._files: list[pathlib.Path] = []
        own_reader = make_reader is not None
        # missing models are reported here, not by a worker thread in the middle of a run
        if make_reader is None:
            files = (RECOGNISER,) if mode == 'recognise' else (DETECTOR, RECOGNISER)
            self._files = [model_file(file) for file in files]
            if mode == 'recognise':
                make_reader = functools.partial(LineReader, width_scale)
            else:
                make_reader = functools.partial(SceneReader, detect_side, drop_score)
        self._make_reader = make_reader
        self._extra_text_penalty = extra_text_penalty
        self._smooth, self._unicode = smooth, unicode
        self._own_reader = own_reader
        self.names = ('ocr_smooth', 'ocr', 'ocr_likelihood') if smooth else ('ocr',)
        self._drop_score = drop_score
        self._batch_size = batch_size
        self._told: set[str] = set()
        self._local = threading.local()

    def weight_files(self) -> list[pathlib.Path]:
        """See `Reward`; none of another engine."""
        return self._files

    def check(self, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
        """Raises ValueError, naming the prompt, if one has no target. Warns of targets with
        characters that the reader does not know: their scores cannot reach 1.
        """
        targets = targets_of(prompts, metadata)
        if self._own_reader or all(map(str.isascii, targets)):
            return
        strange = [set(normalise(target, self._unicode)) - alphabet() for target in targets]
        untold = [t not in self._told for t in targets]
        if held := [i for i, found in enumerate(strange) if found and untold[i]]:
            self._told.update(targets[i] for i in held)  # batches of the same prompts follow
            log.warning(
                'ocr: %d of %d targets hold characters that the reader does not know (%s), and '
                'cannot score 1; the first is of prompt %r',
                len({targets[i] for i in held}),
                len(set(targets)),
                ' '.join(sorted(set().union(*(strange[i] for i in held)))[:10]),
                prompts[held[0]],
            )

    def read(self, images: np.ndarray) -> list[str | None]:
        """The text of each image, its lines joined by spaces; None if the engine failed.
        images uint8 [N, H, W, 3].
        """
        return [None if lines is None else self._join(lines) for lines in self._lines(images)]

    def _lines(self, images: np.ndarray, *targets: Sequence[str]) -> list[list[Line] | None]:
        """The lines of each image; if targets are given, with their likelihoods."""
        if not hasattr(self._local, 'reader'):
            self._local.reader = self._make_reader()
        return each_or_none('OCR', self._local.reader, self._batch_size, images, *targets)

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]
    ) -> Scores:
        """Implements `Reward`. Raises ValueError, naming the prompt, if one has no target."""
        check_batch(images, prompts, metadata)
        targets = targets_of(prompts, metadata)
        likely = [[normalise(target, self._unicode) for target in targets]] if self._smooth else []
        found = self._lines(images, *likely)
        valid = np.array([lines is not None for lines in found], bool)
        per_picture = lambda score: np.array(
            [np.nan if f is None else score(f, t) for f, t in zip(found, targets)], np.float32
        )
        values = {
            'ocr': per_picture(
                lambda lines, target: ocr_score(
                    self._join(lines), target, self._extra_text_penalty, self._unicode
                )
            )
        }
        if self._smooth:
            values['ocr_likelihood'] = per_picture(lambda lines, _: lines[0].likelihood)
            values['ocr_smooth'] = (1 - self._smooth) * values['ocr'] + self._smooth * values[
                'ocr_likelihood'
            ]
        return Scores(values, valid)

    def _join(self, lines: list[Line]) -> str:
        return ' '.join(
            line.text
            for line in lines
            if line.confidence > 0 and line.confidence >= self._drop_score
        )
