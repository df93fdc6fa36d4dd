"""The detector for GenEval's rules: Mask2Former finds the objects, CLIP names their colours. Both
are torch models of the package transformers, in place of GenEval's mmdet and open_clip; torch is
imported only when they are loaded (requirements-geneval.txt).
"""

import contextlib
import pathlib
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from densegrpo_jax.data.geneval import COLOURS, OBJECTS
from densegrpo_jax.rewards.local.geneval_rule import THRESHOLD, Detection, colours_needed

# GenEval's networks, Swin-S trained on COCO's instances and OpenAI's ViT-L/14, as transformers has
# them.
MASK2FORMER = 'facebook/mask2former-swin-small-coco-instance'
CLIP = 'openai/clip-vit-large-patch14'

# mmdet's test settings for that network. (The released folder's preprocessor would scale to
# 384 x 384 and lose small objects.) SIDE: pixels of the shorter side, unless the longer one would
# exceed ASPECT times that.
SIDE, ASPECT = 800, 1333 / 800
STRIDE = 32  # of the backbone: the input is padded to a multiple
MAX_PER_IMAGE = 100
# mean and standard deviation of each channel
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

CLIP_CHANNELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
TEMPLATES = (
    'a photo of a {colour} {name}',
    'a photo of a {colour}-colored {name}',
    'a photo of a {colour} object',
)
GREY = 0x99  # surrounds the object whose colour is asked for

# Checkpoint labels that differ from GenEval's names; spaces are ignored.
OTHER_LABELS = {
    'motorbike': 'motorcycle',
    'aeroplane': 'airplane',
    'sofa': 'couch',
    'tvmonitor': 'tv',
    'television': 'tv',
    'doughnut': 'donut',
    'hairdryer': 'hair drier',
    'mouse': 'computer mouse',
    'remote': 'tv remote',
    'keyboard': 'computer keyboard',
}


class Instance(NamedTuple):
    """An object and its pixels, bool [H, W]."""

    detection: Detection
    mask: np.ndarray


def object_names(labels: dict[int, str]) -> dict[int, str]:
    """Class of a network -> GenEval's name, for the classes that GenEval knows.

    Raises:
      ValueError: one of OBJECTS is not among the labels.
    """
    known = {name.replace(' ', ''): name for name in OBJECTS} | OTHER_LABELS
    names = {
        index: known[key]
        for index, label in labels.items()
        if (key := label.lower().replace(' ', '')) in known
    }
    if missing := [name for name in OBJECTS if name not in names.values()]:
        others = sorted(set(labels.values()) - {labels[index] for index in names})
        raise ValueError(
            f'the detector has no class {missing[0]!r} ({len(missing)} of {len(OBJECTS)} are '
            f'missing; unused labels: {others[:5]}); '
            'geneval needs a network trained on the instances of COCO'
        )
    return names


def input_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width at which the detector sees an image: aspect kept, the shorter side `side`
    or the longer ASPECT * side.
    """
    scale = min(side / min(height, width), side * ASPECT / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def find_instances(
    class_logits, mask_logits, padded, resized, size, names: dict[int, str]
) -> list[Instance]:
    """Objects from the network's output for one image, as mmdet's Mask2Former reports instances.

    The confidence of an object is its class probability times the mean probability of its mask's
    pixels; its box is the mask's.

    Args:
      class_logits, mask_logits: torch [queries, classes + 1] (the last class is 'nothing') and
        [queries, h, w].
      padded, resized, size: heights and widths of the network's input, of the image in it (top
        left) and of the image itself.
      names: see `object_names`.

    Returns:
      The objects of a confidence above THRESHOLD, at most MAX_PER_IMAGE.
    """
    from torch.nn.functional import interpolate

    probs = class_logits.float().softmax(-1)[:, :-1]
    best = probs.flatten().topk(min(MAX_PER_IMAGE, probs.numel()))
    rows = best.indices[best.values > THRESHOLD]  # an object is never more certain than its class
    if not len(rows):
        return []
    queries, classes = rows // probs.shape[1], rows % probs.shape[1]
    scaled = lambda x, to: interpolate(x, to, mode='bilinear', align_corners=False)
    logits = scaled(
        scaled(mask_logits[queries][None].float(), padded)[..., : resized[0], : resized[1]], size
    )[0]
    inside = logits > 0
    certain = (logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    found = []
    for index, score, mask in zip(
        classes.tolist(), (probs[queries, classes] * certain).tolist(), inside.cpu().numpy()
    ):
        if score > THRESHOLD and index in names:
            x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            box = tuple(map(float, (x[0], y[0], x[-1] + 1, y[-1] + 1)))
            found.append(Instance(Detection(names[index], box, score), mask))
    return found


def cut_out(image: np.ndarray, instance: Instance) -> Image.Image:
    """The box of an object, everything around the object grey. image uint8 [H, W, 3]."""
    masked = np.where(instance.mask[..., None], image, np.uint8(GREY))
    return Image.fromarray(masked).crop(tuple(map(int, instance.detection.box)))


def clip_input(picture: Image.Image, side: int) -> np.ndarray:
    """CLIP's input, float32 [3, side, side]: the shorter side scaled to `side` (bicubic), the
    centre cut out, channels normalised.
    """
    width, height = picture.size
    scale = side / min(width, height)
    width, height = (max(side, int(length * scale)) for length in (width, height))
    left, top = round((width - side) / 2), round((height - side) / 2)
    square = picture.resize((width, height), Image.Resampling.BICUBIC).crop(
        (left, top, left + side, top + side)
    )
    mean, std = np.float32(CLIP_CHANNELS)
    return ((np.asarray(square, np.float32) / 255 - mean) / std).transpose(2, 0, 1)


class GenevalDetector:
    """Finds the objects of images, and the colours of those whose colour matters. Several threads
    may call it; it runs one call at a time.

    Images are RGB throughout. (Flow-GRPO's server passes RGB to mmdet, which expects BGR: its
    detector sees red as blue.)

    Args:
      mask2former: folder or Hugging Face id of a Mask2FormerForUniversalSegmentation of COCO's 80
        classes.
      clip: folder or Hugging Face id of a CLIPModel and its tokenizer.
      torch_device: torch's name of the device; 'auto' is the GPU if torch sees one, else the CPU.
      side: the detector sees an image with its shorter side scaled to this many pixels. Published
        accuracies are at 800.

    Raises:
      ModuleNotFoundError: torch, transformers or scipy is not installed.
      FileNotFoundError: a model is not here and cannot be fetched.
      ValueError: a model lacks weights or classes, or the device does not exist.
    """

    def __init__(
        self,
        mask2former: str = MASK2FORMER,
        clip: str = CLIP,
        *,
        torch_device: str = 'auto',
        side: int = SIDE,
    ):
        try:
            import scipy  # noqa: F401 (transformers' Mask2Former does not start without it)
            import torch
            import transformers
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f'the geneval reward runs torch models, and {error.name} is not installed: '
                'pip install -r requirements-geneval.txt, here or in the environment of a reward '
                'server'
            ) from None
        if torch_device == 'auto':
            torch_device = 'cuda' if torch.cuda.is_available() else 'cpu'
        try:
            self._device = torch.empty(0, device=torch_device).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f'geneval.torch_device is {torch_device!r}: {str(error).splitlines()[0]}'
            ) from None
        self._mask2former = _load(transformers.Mask2FormerForUniversalSegmentation, mask2former).to(
            self._device
        )
        self._names = object_names(self._mask2former.config.id2label)
        self._clip = _load(transformers.CLIPModel, clip).to(self._device)
        with _explained('tokenizer', clip):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
        self._side = side
        # object name -> [colours, D], of unit length
        self._prototypes: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray, metadata: Sequence[dict]) -> list[list[Detection]]:
        """The objects in each image; images uint8 [N, H, W, 3] (RGB), metadata [N] in the form of
        `data.geneval.check_metadata`.
        """
        import torch

        with self._lock, torch.inference_mode():
            return [self._coloured(*one) for one in zip(images, self._instances(images), metadata)]

    def _instances(self, images: np.ndarray) -> list[list[Instance]]:
        import torch
        from torch.nn import functional

        size = images.shape[1:3]
        resized = input_size(*size, self._side)
        padded = tuple(-(-length // STRIDE) * STRIDE for length in resized)
        x = (
            torch.tensor(np.ascontiguousarray(images), device=self._device)
            .permute(0, 3, 1, 2)
            .float()
        )
        x = functional.interpolate(x, resized, mode='bilinear', align_corners=False)
        mean, std = torch.tensor(IMAGENET, device=self._device)[..., None, None]
        x = functional.pad(
            (x / 255 - mean) / std, (0, padded[1] - resized[1], 0, padded[0] - resized[0])
        )
        out = self._mask2former(pixel_values=x)
        outputs = zip(out.class_queries_logits, out.masks_queries_logits)
        return [find_instances(*one, padded, resized, size, self._names) for one in outputs]

    def _coloured(
        self, image: np.ndarray, instances: list[Instance], metadata: dict
    ) -> list[Detection]:
        import torch

        detections = [instance.detection for instance in instances]
        rows = colours_needed(detections, metadata)
        if rows:
            pixels = np.stack(
                [
                    clip_input(
                        cut_out(image, instances[i]), self._clip.config.vision_config.image_size
                    )
                    for i in rows
                ]
            )
            seen = self._clip.get_image_features(
                pixel_values=torch.from_numpy(pixels).to(self._device)
            ).pooler_output
            for i, features in zip(rows, seen):
                best = int((self._colour_prototypes(detections[i].name) @ features).argmax())
                detections[i] = detections[i]._replace(colour=COLOURS[best])
        return detections

    def _colour_prototypes(self, name: str):
        """CLIP's directions for `name` in each colour: normalised text features, averaged over
        TEMPLATES, normalised again.
        """
        if name not in self._prototypes:
            texts = [
                template.format(colour=colour, name=name)
                for colour in COLOURS
                for template in TEMPLATES
            ]
            tokens = self._tokenizer(texts, padding=True, return_tensors='pt').to(self._device)
            text = self._clip.get_text_features(
                tokens['input_ids'], tokens['attention_mask']
            ).pooler_output
            unit = lambda x: x / x.norm(dim=-1, keepdim=True)
            self._prototypes[name] = unit(
                unit(text).unflatten(0, (len(COLOURS), len(TEMPLATES))).mean(1)
            )
        return self._prototypes[name]


@contextlib.contextmanager
def _explained(what: str, name: str):
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f'geneval: no {what} at {name!r}: give a folder as transformers saves it, with '
            'model.safetensors, or a Hugging Face id (without network: run `hf download '
            f'{name} --local-dir DIR` elsewhere). {str(error).splitlines()[0]}'
        ) from None


def _load(kind, name: str):
    """A model in float32 and evaluation mode, from safetensors alone, with every weight found."""
    with _explained(kind.__name__, name):
        model, report = kind.from_pretrained(
            name, dtype='float32', use_safetensors=True, output_loading_info=True
        )
    if absent := sorted(set(report['missing_keys']) & {key for key, _ in model.named_parameters()}):
        raise ValueError(
            f'geneval: {name!r} lacks {len(absent)} weights of {kind.__name__}, such as {absent[0]}'
        )
    return model.eval()


def model_files(name: str) -> list[pathlib.Path]:
    """The safetensors files of a folder, or of what Hugging Face's cache has of an id, as `_load`
    reads them; [] if they are elsewhere.
    """
    import huggingface_hub

    folder = pathlib.Path(name)
    if not folder.is_dir():
        found = huggingface_hub.try_to_load_from_cache(name, 'config.json')
        if not isinstance(found, str):
            return []
        folder = pathlib.Path(found).parent
    whole = folder / 'model.safetensors'
    return [whole] if whole.is_file() else sorted(folder.glob('model-*.safetensors'))
