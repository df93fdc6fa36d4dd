"""Rewards that CLIP computes on the accelerator: CLIPScore, PickScore and HPSv2.

All are cosines of an image feature and a text feature, differently scaled, so one class has the
common part: the place of the weights, fixed batches, cached text. Each `scores` is pure and
differentiable in the images.
"""

import hashlib
import html
import math
import pathlib
import threading
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from densegrpo_jax.rewards.base import Scores, at_least_one, check_batch
from densegrpo_jax.rewards.directional import Direction, take_direction
from densegrpo_jax.rewards.local.pickled import safetensors_file

CLIP_L = 'openai/clip-vit-large-patch14'
CLIP_H = 'laion/CLIP-ViT-H-14-laion2B-s32B-b79K'


class ClipReward:
    """What the CLIP rewards share. The device prepares images as the official processor does
    (`clip_images`); prompts are cut to the text tower's length; text features are cached per prompt
    (4 KiB each for CLIP-H).

    A call runs one compiled program per image size, over batches that are filled up to
    `batch_size` and split over as many of this process's devices as divide it; each of them holds
    the weights (CLIP-H: 3.7 GiB in float32, half of that in bfloat16). Weights are read at first
    use; the constructor reports files that are missing or do not fit.

    Args:
      path: folder in the Transformers layout of CLIP, or a Hugging Face id.
      processor: folder or id of the tokenizer and preprocessor_config.json; '': `path` has them.
      weights: safetensors file, or folder, to take the weights from instead of `path`.
      dtype: 'float32' or 'bfloat16', of weights and matrix products.
      batch_size: images at a time.
      text, geometry: see `clip.read_clip`.
      direction: a file of `densegrpo_jax.direction`: pictures are compared with the guided text,
        and the score without it is logged as NAME_unguided. '': none.
      omega: ω of D2-Align instead of the file's.

    Raises:
      ValueError, FileNotFoundError: an option out of range, or files that are missing, damaged or
        of another network.
    """

    name: str
    names: tuple[str, ...]
    range = (-math.inf, math.inf)
    direction: Direction | None

    def __init__(
        self,
        path: str,
        *,
        processor: str = '',
        weights: pathlib.Path | None = None,
        dtype: str = 'float32',
        batch_size: int = 16,
        text: bool = True,
        geometry: str = 'transformers',
        direction: str = '',
        omega: float | None = None,
    ):
        from densegrpo_jax.pipelines import (
            clip,  # imported here: Flax takes a second to import, and other rewards do not need it
        )

        if dtype not in ('float32', 'bfloat16'):
            raise ValueError(f"{self.name}.dtype is {dtype!r}; expected 'float32' or 'bfloat16'")
        at_least_one(self.name, batch_size=batch_size)
        folder = self._find('path', path, clip.HOLDS, clip.PROCESSOR_FILES)
        tokenizer = (
            self._find('processor', processor, clip.HOLDS_PROCESSOR, clip.PROCESSOR_FILES)
            if processor
            else folder
        )
        self.clip = clip.read_clip(
            folder, tokenizer, text=text, geometry=geometry, dtype=jnp.dtype(dtype)
        )
        if weights is None:  # now that it is known to be a CLIP
            folder = self._find('path', path, clip.HOLDS, clip.FILES)
        self._source, self._load = weights or folder, clip.load_params
        clip.check_params(self.clip, self._source)
        devices = jax.local_devices()
        mesh = Mesh(np.array(devices[: math.gcd(batch_size, len(devices))]), ('batch',))
        self._whole, self._rows = (
            NamedSharding(mesh, PartitionSpec()),
            NamedSharding(mesh, PartitionSpec('batch')),
        )
        self.batch_size = batch_size
        self._lock = threading.Lock()
        self._params, self._texts = None, {}
        self._encode = jax.jit(self.clip.text_features)
        self._embed = jax.jit(self.clip.image_features)
        self._score = jax.jit(self._all_scores)
        take_direction(self, direction, omega)

    def scores(self, params: dict, images: jax.Array, text: jax.Array) -> jax.Array:
        """The score names[0], which training uses. Pure, and differentiable in float images.

        Args:
          params: those of `params`.
          images: uint8 or float in [0, 1], [N, H, W, 3].
          text: float32 [N, D], from `text_features`.

        Returns:
          float32 [N].
        """
        raise NotImplementedError

    @staticmethod
    def clean(prompt: str) -> str:
        """The text that is tokenized for a prompt."""
        return prompt

    def named(self, params: dict, scores: jax.Array) -> dict[str, jax.Array]:
        """All scores by name, from names[0]."""
        return {self.names[0]: scores}

    def params(self) -> dict:
        """The weights on this process's devices; read at the first call."""
        with self._lock:
            return self._loaded()

    def shapes(self, count: int) -> tuple[dict, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of `params` and of the `text_features` of `count` prompts; reads no
        weights.
        """
        held, dtype = self.clip.abstract_params(), self.clip.vision.dtype
        stored = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), held)
        if self.clip.text is None:
            return stored, jax.ShapeDtypeStruct((count, 0), jnp.float32)
        ids = jax.ShapeDtypeStruct((count, 8), jnp.int32)
        features = jax.eval_shape(self.clip.text_features, held, ids)
        return {**stored, 'logit_scale': held['logit_scale']}, features

    def text_features(self, prompts: Sequence[str]) -> np.ndarray:
        """float32 [N, D] that pictures are compared with: of unit length, or guided."""
        with self._lock:
            return self._compared(self._text(prompts))

    def plain_text(self, prompts: Sequence[str]) -> np.ndarray:
        """Implements `EmbeddingReward`."""
        with self._lock:
            return self._text(prompts)

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        """Implements `EmbeddingReward`."""
        with self._lock:
            parts = [self._embed(self._loaded(), *batch) for batch in self._batches(images)]
        return np.concatenate(jax.device_get(parts))[: len(images)]

    def weights_fingerprint(self) -> str:
        """Implements `EmbeddingReward`; reads every byte of the weights."""
        files = [self._source]
        if self._source.is_dir():
            files = sorted(self._source.glob('*.safetensors'))
        total = hashlib.sha256()
        for path in files:
            with open(path, 'rb') as file:
                total.update(hashlib.file_digest(file, 'sha256').digest())
        return total.hexdigest()[:16]

    def weight_files(self) -> list[pathlib.Path]:
        """See `Reward`."""
        from densegrpo_jax.pipelines.weights.files import weight_files

        return weight_files(self._source)[0]

    def check(self, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
        """Accepts every prompt."""

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]
    ) -> Scores:
        """Implements `Reward`. An image whose score is not finite is invalid."""
        check_batch(images, prompts, metadata)
        if not len(images):
            return Scores({name: np.zeros(0, np.float32) for name in self.names}, np.zeros(0, bool))
        with self._lock:  # the devices work on one batch at a time anyway
            text = self._text(prompts)
            plain = () if self.direction is None else (text,)
            batches = self._batches(images, self._compared(text), *plain)
            parts = [self._score(self._loaded(), *batch) for batch in batches]
        parts = jax.device_get(parts)
        values = {
            name: np.concatenate([part[name] for part in parts])[: len(images)]
            for name in self.names
        }
        valid = np.logical_and.reduce([np.isfinite(value) for value in values.values()])
        return Scores(
            {name: np.where(valid, value, np.float32(np.nan)) for name, value in values.items()},
            valid,
        )

    def _all_scores(self, params, images, text, plain=None):
        """Scores by name; `plain` is the text without the direction, if there is one."""
        found = self.named(params, self.scores(params, images, text))
        if plain is not None:
            found[f'{self.name}_unguided'] = self.scores(params, images, plain)
        return found

    def _compared(self, text: np.ndarray) -> np.ndarray:
        return text if self.direction is None else self.direction.guide(text)

    def _find(self, option: str, name: str, holds: str, files: Sequence[str]) -> pathlib.Path:
        from densegrpo_jax.pipelines.weights.hub import find_folder

        return find_folder(
            name, option=f'reward.{self.name}.{option}', holds=holds, example=CLIP_H, files=files
        )

    def _loaded(self) -> dict:
        if self._params is None:
            self._params = self._load(self.clip, self._source, sharding=self._whole)
        return self._params

    def _text(self, prompts: Sequence[str]) -> np.ndarray:
        if self.clip.text is None:
            return np.zeros((len(prompts), 0), np.float32)
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]:
            parts = [
                self._encode(self._loaded(), *batch)
                for batch in self._batches(self.clip.tokenize(list(map(self.clean, new))))
            ]
            self._texts.update(zip(new, map(np.copy, np.concatenate(jax.device_get(parts)))))
        return np.stack([self._texts[prompt] for prompt in prompts])

    def _batches(self, *arrays: np.ndarray):
        """Yields rows of the arrays, `batch_size` at a time on the devices; the last batch repeats
        its last row.
        """
        for start in range(0, len(arrays[0]), self.batch_size):
            rows = np.minimum(np.arange(start, start + self.batch_size), len(arrays[0]) - 1)
            yield [jax.device_put(array[rows], self._rows) for array in arrays]


def _cosine(clip, params, images, text):
    return jnp.sum(clip.image_features(params, images) * text, axis=-1)


class ClipScoreReward(ClipReward):
    """CLIP's logit, exp(logit_scale) * cosine, over 30 as in Flow-GRPO; 'clipscore_cosine' is the
    cosine alone.

    Flow-GRPO resizes images bilinearly here; this is CLIP's own processor, which is bicubic.
    """

    name = 'clipscore'
    names = ('clipscore', 'clipscore_cosine')

    def __init__(
        self,
        path: str = CLIP_L,
        *,
        dtype: str = 'float32',
        batch_size: int = 16,
        direction: str = '',
        omega: float | None = None,
    ):
        super().__init__(path, dtype=dtype, batch_size=batch_size, direction=direction, omega=omega)

    def scores(self, params, images, text):
        """See `ClipReward.scores`."""
        return jnp.exp(params['logit_scale']) * _cosine(self.clip, params, images, text) / 30

    def named(self, params, scores):
        return {
            'clipscore': scores,
            'clipscore_cosine': scores * 30 / jnp.exp(params['logit_scale']),
        }


class PickScoreReward(ClipReward):
    """PickScore (arXiv 2305.01569): exp(logit_scale) * cosine of a CLIP-H that was trained on
    human choices.

    'pickscore' is that over 26, about 0.8 to 0.9, which Flow-GRPO trains on; 'pickscore_raw' is
    what papers report, about 20 to 24.
    """

    name = 'pickscore'
    names = ('pickscore', 'pickscore_raw')

    def __init__(
        self,
        path: str = 'yuvalkirstain/PickScore_v1',
        *,
        processor: str = CLIP_H,
        dtype: str = 'float32',
        batch_size: int = 16,
        direction: str = '',
        omega: float | None = None,
    ):
        super().__init__(
            path,
            processor=processor,
            dtype=dtype,
            batch_size=batch_size,
            direction=direction,
            omega=omega,
        )

    def scores(self, params, images, text):
        """See `ClipReward.scores`."""
        return jnp.exp(params['logit_scale']) * _cosine(self.clip, params, images, text) / 26

    def named(self, params, scores):
        return {'pickscore': scores, 'pickscore_raw': scores * 26}


class Hpsv2Reward(ClipReward):
    """HPSv2.1 (arXiv 2306.09341): the cosine of a CLIP-H that was trained on human rankings, about
    0.25 to 0.35.

    As in its own code, the network sees the whole image, with black bars if it is not square, and
    text is cleaned first (`clean`), which the processors of the other rewards do not do.

    Args:
      path: CLIP-H; gives config.json, the tokenizer and preprocessor_config.json.
      weights: HPSv2.1's as a safetensors file in OpenCLIP's layout, or as a folder in
        Transformers'.
    """

    name = 'hpsv2'
    names = ('hpsv2',)
    range = (-1.0, 1.0)

    def __init__(
        self,
        path: str = CLIP_H,
        *,
        weights: str = '',
        dtype: str = 'float32',
        batch_size: int = 16,
        direction: str = '',
        omega: float | None = None,
    ):
        weights = safetensors_file(
            f'{self.name}.weights',
            weights,
            origin='HPS_v2.1_compressed.pt of xswu/HPSv2',
            entry="['state_dict']",
            folder=True,
        )
        super().__init__(
            path,
            weights=weights,
            dtype=dtype,
            batch_size=batch_size,
            geometry='hpsv2',
            direction=direction,
            omega=omega,
        )

    @staticmethod
    def clean(prompt):
        """Repairs broken Unicode, straightens quotes and resolves HTML entities, as OpenCLIP's
        tokenizer.
        """
        import ftfy

        return html.unescape(html.unescape(ftfy.fix_text(prompt)))

    def scores(self, params, images, text):
        """See `ClipReward.scores`."""
        return _cosine(self.clip, params, images, text)
