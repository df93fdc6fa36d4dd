"""Text readers: pictures in, lines of text with confidences out. PP-OCRv6 from the installed `rapidocr` package, nothing is fetched."""

import importlib.util
import math
import threading
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
    """A line of text and the mean probability of its characters, in [0, 1] (0 for an empty text)."""

    text: str
    confidence: float


def model_file(name: str) -> Path:
    """Path of a model inside the installed rapidocr package, which is not imported (that would load OpenCV).

    Raises:
      ModuleNotFoundError: rapidocr is not installed.
      FileNotFoundError: it is, but without this file.
    """
    spec = importlib.util.find_spec('rapidocr')
    if spec is None:
        raise ModuleNotFoundError('the OCR reward reads with models from the package rapidocr: pip install rapidocr onnxruntime')
    path = Path(spec.origin).parent / 'models' / name
    if not path.is_file():
        raise FileNotFoundError(f'OCR model {path} does not exist; pip install --force-reinstall rapidocr==3.10.0')
    return path


def line_width(height: int, width: int, width_scale: float) -> int:
    """Columns of the recogniser's input for a picture: its width at `LINE_HEIGHT` times `width_scale`, up to a whole frame."""
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


class LineReader:
    """Reads each picture as one line of text, with the recogniser alone: no text detection, no OpenCV.

    One instance belongs to one thread and computes on that thread only.
    """

    def __init__(self, width_scale: float):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # parallel over pictures instead: pools spin
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(model_file(RECOGNISER)), options, providers=['CPUExecutionProvider'])
        table = self._session.get_modelmeta().custom_metadata_map['character'].split('\n')
        self._characters = ['', *table, ' ']
        self._width_scale = width_scale

    def __call__(self, images: np.ndarray) -> list[list[Line]]:
        """images uint8 [N, H, W, 3] -> N lists of one line."""
        size = (line_width(*images.shape[1:3], self._width_scale), LINE_HEIGHT)
        resized = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in images])
        bgr = resized[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1  # the model was trained on BGR in [-1, 1]
        (probs,) = self._session.run(None, {'x': np.ascontiguousarray(bgr)})  # [N, frames, classes]
        if probs.shape[-1] != len(self._characters):
            raise ValueError(f'{RECOGNISER} has {probs.shape[-1]} classes and a table of {len(self._characters)} characters')
        ids = probs.argmax(-1)
        best = np.take_along_axis(probs, ids[..., None], -1)[..., 0]
        return [[ctc_greedy(i, p, self._characters)] for i, p in zip(ids, best)]


class SceneReader:
    """Finds lines of text in each picture and reads them: detector + recogniser, for pictures of any content.

    One instance belongs to one thread and computes on that thread only. Lines come top to bottom, left to right.
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
            'Rec.rec_img_shape': [3, LINE_HEIGHT, LINE_HEIGHT],  # pad lines to the widest of their batch, not to 320 columns
        }
        with _building:  # its configuration loader was not written for threads
            from rapidocr import RapidOCR

            self._engine = RapidOCR(params=params)

    def __call__(self, images: np.ndarray) -> list[list[Line]]:
        """images uint8 [N, H, W, 3] -> N lists of lines, empty where no text was found."""
        results = [self._engine(np.ascontiguousarray(image[..., ::-1]), use_det=True, use_cls=False, use_rec=True) for image in images]
        return [[Line(text, float(score)) for text, score in zip(result.txts or (), result.scores or ())] for result in results]
