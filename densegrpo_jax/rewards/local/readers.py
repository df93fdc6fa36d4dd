"""Text readers: images in, lines of text with confidences out. They use PP-OCRv6 from the installed
`rapidocr` package and download nothing.
"""

import functools
import importlib.util
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

DETECTOR = 'PP-OCRv6_det_small.onnx'
RECOGNISER = 'PP-OCRv6_rec_small.onnx'
LINE_HEIGHT = 48  # pixels: the recogniser's fixed input height
STRIDE = 8  # input columns per output frame

_building = threading.Lock()


class Line(NamedTuple):
    """A line of text, the mean probability of its characters, in [0, 1] (0 for an empty text), and
    the likelihood of the target text (NaN without one), see `ctc_likelihood`."""

    text: str
    confidence: float
    likelihood: float = math.nan


def model_file(name: str) -> Path:
    """Path of a model inside the installed rapidocr package. Does not import rapidocr, which would
    load OpenCV.

    Raises:
      ModuleNotFoundError: rapidocr is not installed.
      FileNotFoundError: rapidocr is installed, but without this file.
    """
    spec = importlib.util.find_spec('rapidocr')
    if spec is None:
        raise ModuleNotFoundError(
            'the OCR reward reads with models from the package rapidocr: pip install rapidocr '
            'onnxruntime'
        )
    path = Path(spec.origin).parent / 'models' / name
    if not path.is_file():
        raise FileNotFoundError(
            f'OCR model {path} does not exist; pip install --force-reinstall rapidocr==3.10.0'
        )
    return path


def line_width(height: int, width: int, width_scale: float) -> int:
    """Columns of the recogniser's input for an image: its width at `LINE_HEIGHT` times
    `width_scale`, up to a whole frame.
    """
    return STRIDE * max(2, math.ceil(LINE_HEIGHT * width / height * width_scale / STRIDE - 1e-6))


def ctc_greedy(ids: np.ndarray, probs: np.ndarray, characters: list[str]) -> Line:
    """Best-path CTC decoding: merge repeats, drop blanks (id 0).

    Args:
      ids, probs: [frames], the most probable class of each frame and its probability.
      characters: characters[id]; characters[0] is the blank.
    """
    keep = ids != 0
    keep[1:] &= ids[1:] != ids[:-1]
    if not keep.any():
        return Line('', 0.0)
    return Line(''.join(characters[i] for i in ids[keep]), float(probs[keep].mean()))


def ctc_likelihood(probs: np.ndarray, targets: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """P(target | image)^(1 / length) by the forward algorithm of CTC (Graves et al. 2006, section
    4.1), in [0, 1].

    Args:
      probs: [N, frames, classes]; class 0 is the blank.
      targets: for each image and each character of its target, the classes that count as that
        character (upper and lower case); they are one class before repeats are merged.

    Returns:
      float64 [N]; 0 if the target has more characters than there are frames, or a character without
      a class.
    """
    count, frames = probs.shape[:2]
    longest = 2 * max(map(len, targets)) + 1
    # Labels are blank, character, blank, ..., blank. A character may follow the one before it
    # directly, unless they are the same.
    emission = np.zeros((count, frames, longest))
    emission[:, :, 0::2] = probs[:, :, :1]
    skips = np.zeros((count, longest), bool)
    for n, target in enumerate(targets):
        for i, classes in enumerate(target):
            emission[n, :, 2 * i + 1] = probs[n][:, list(classes)].sum(-1)
            skips[n, 2 * i + 1] = i > 0 and classes != target[i - 1]
    with np.errstate(divide='ignore'):
        emission = np.log(emission)
    alpha = np.full((count, longest), -np.inf)
    alpha[:, :2] = emission[:, 0, :2]
    for t in range(1, frames):
        one = np.pad(alpha, ((0, 0), (1, 0)), constant_values=-np.inf)[:, :-1]
        two = np.where(
            skips, np.pad(alpha, ((0, 0), (2, 0)), constant_values=-np.inf)[:, :-2], -np.inf
        )
        alpha = np.logaddexp(np.logaddexp(alpha, one), two) + emission[:, t]
    lengths, rows = np.array([len(target) for target in targets]), np.arange(count)
    total = np.logaddexp(alpha[rows, 2 * lengths], alpha[rows, 2 * lengths - 1])
    return np.minimum(np.exp(total / lengths), 1.0)


def recogniser():
    """(onnxruntime session of the recogniser on one thread, characters[class]; 0 is the blank)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    # one thread: parallel over images instead, because onnxruntime's pools spin
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        str(model_file(RECOGNISER)), options, providers=['CPUExecutionProvider']
    )
    table = session.get_modelmeta().custom_metadata_map['character'].split('\n')
    return session, ['', *table, ' ']


@functools.cache
def alphabet() -> frozenset[str]:
    """Every character that the recogniser can read, in lower case."""
    return frozenset(character.lower() for character in recogniser()[1])


class LineReader:
    """Reads each image as one line of text, with the recogniser alone: no text detection, no
    OpenCV.

    One instance belongs to one thread and computes on that thread only.
    """

    def __init__(self, width_scale: float):
        self._session, self._characters = recogniser()
        self._classes: dict[str, list[int]] = {}  # lower-case character -> its classes
        for i, character in enumerate(self._characters):
            self._classes.setdefault(character.lower(), []).append(i)
        self._width_scale = width_scale

    def __call__(
        self, images: np.ndarray, targets: Sequence[str] | None = None
    ) -> list[list[Line]]:
        """images uint8 [N, H, W, 3] -> N lists of one line; if targets are given, each line has the
        likelihood of its own target.
        """
        size = (line_width(*images.shape[1:3], self._width_scale), LINE_HEIGHT)
        resized = np.stack(
            [
                np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
                for image in images
            ]
        )
        # the model was trained on BGR in [-1, 1]
        bgr = resized[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        (probs,) = self._session.run(None, {'x': np.ascontiguousarray(bgr)})  # [N, frames, classes]
        if probs.shape[-1] != len(self._characters):
            raise ValueError(
                f'{RECOGNISER} has {probs.shape[-1]} classes and a table of '
                f'{len(self._characters)} characters'
            )
        ids = probs.argmax(-1)
        best = np.take_along_axis(probs, ids[..., None], -1)[..., 0]
        lines = [ctc_greedy(i, p, self._characters) for i, p in zip(ids, best)]
        if targets is not None:
            likely = ctc_likelihood(
                probs, [[self._classes.get(c, []) for c in target.lower()] for target in targets]
            )
            lines = [line._replace(likelihood=float(value)) for line, value in zip(lines, likely)]
        return [[line] for line in lines]


class SceneReader:
    """Finds lines of text in each image and reads them: detector + recogniser, for images of
    any content.

    One instance belongs to one thread and computes on that thread only. Lines come top to bottom,
    left to right.
    """

    def __init__(self, detect_side: int, drop_score: float):
        detector, recogniser = model_file(DETECTOR), model_file(RECOGNISER)
        params = {
            'Global.log_level': 'critical',
            'Global.text_score': drop_score,
            'EngineConfig.onnxruntime.intra_op_num_threads': 1,
            'EngineConfig.onnxruntime.inter_op_num_threads': 1,
            'Det.model_path': str(detector),
            'Det.limit_type': 'max',
            'Det.limit_side_len': detect_side,
            'Rec.model_path': str(recogniser),
            # pad lines to the widest of their batch, not to 320 columns
            'Rec.rec_img_shape': [3, LINE_HEIGHT, LINE_HEIGHT],
        }
        with _building:  # rapidocr's configuration loader is not safe for threads
            from rapidocr import RapidOCR

            self._engine = RapidOCR(params=params)

    def __call__(self, images: np.ndarray) -> list[list[Line]]:
        """images uint8 [N, H, W, 3] -> N lists of lines, empty if no text was found."""
        results = [
            self._engine(
                np.ascontiguousarray(image[..., ::-1]), use_det=True, use_cls=False, use_rec=True
            )
            for image in images
        ]
        return [
            [
                Line(text, float(score))
                for text, score in zip(result.txts or (), result.scores or ())
            ]
            for result in results
        ]
