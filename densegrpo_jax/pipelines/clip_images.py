"""CLIP's image preprocessing on the device: bicubic resize with antialiasing, crop or pad,
normalise.

8-bit images get exactly Pillow's integers (its fixed-point filter, rounded after each axis), which
the official processor feeds the network. Float images get the same filter without rounding, so that
gradients reach them; they differ by about 0.3 of 255 levels (root mean square at 512 x 512). If
torchvision is installed, the official processor rounds differently, by one level in 0.3 % of the
values. Pillow 13 filters images more than twice as tall as wide in the other order.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.networks.config_json import check_positive, read_config

_FRACTION_BITS = 22  # of Pillow's filter weights for 8-bit images
# Which part of an image the network sees, and where an odd pixel of a crop goes.
GEOMETRIES = {
    # the shorter side becomes `size`, the middle is kept; as CLIPImageProcessor
    'transformers': lambda spare: int(spare / 2),
    # likewise; as torchvision's CenterCrop, and so OpenAI's CLIP: half a pixel rounds to even
    'torchvision': lambda spare: round(spare / 2),
    # the longer side becomes crop_size, black bars fill the square
    'hpsv2': lambda spare: int(spare / 2),
}
_IGNORED = (
    'data_format',
    'do_convert_rgb',
    'feature_extractor_type',
    'image_processor_type',
    'processor_class',
)


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """preprocessor_config.json of CLIPImageProcessor.

    Attributes:
      size: pixels of the shorter side after resizing.
      crop_size: pixels of both sides of the result, the middle of the resized image.
      image_mean, image_std: per channel, of values in [0, 1].
      geometry: a key of GEOMETRIES.
    """

    size: int = 224
    crop_size: int = 224
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    geometry: str = 'transformers'

    def __post_init__(self):
        check_positive(self, 'CLIP preprocessor config')
        if self.size < self.crop_size:
            raise ValueError(
                f'CLIP preprocessor config: size={self.size} is smaller than '
                f'crop_size={self.crop_size}'
            )

    @classmethod
    def from_json(cls, config: dict) -> 'ImageSpec':
        """Reads a parsed preprocessor_config.json; an unknown key or an unsupported value is a
        ValueError that names it.
        """
        config = {key: value for key, value in config.items() if value is not None}
        for key, form in (('size', {'shortest_edge'}), ('crop_size', {'height', 'width'})):
            if isinstance(config.get(key), dict):
                edges = set(config[key].values())
                if set(config[key]) != form or len(edges) != 1:
                    raise ValueError(
                        f'CLIP preprocessor config: {key}={config[key]} is not supported, expected '
                        f'{sorted(form)}, equal'
                    )
                config[key] = edges.pop()
        only = {
            'do_resize': [True],
            'do_center_crop': [True],
            'do_rescale': [True],
            'do_normalize': [True],
            'resample': [3],
            'rescale_factor': [1 / 255],
        }
        return read_config(cls, 'CLIP preprocessor config', config, only=only, ignored=_IGNORED)


def preprocess(images: jax.Array, spec: ImageSpec) -> jax.Array:
    """Prepares images for CLIP's image tower.

    Args:
      images: uint8 [N, H, W, 3], or float [N, H, W, 3] in [0, 1]; differentiable in the latter.

    Returns:
      float32 [N, crop_size, crop_size, 3], normalised.
    """
    height, width = images.shape[1:3]
    whole = spec.geometry == 'hpsv2'
    if whole:
        resized = [round(side * spec.crop_size / max(height, width)) for side in (height, width)]
    else:
        resized = [int(spec.size * side / min(height, width)) for side in (height, width)]
    x = images.astype(jnp.float32 if jnp.issubdtype(images.dtype, jnp.floating) else jnp.int32)
    if whole and x.dtype == jnp.int32:
        x = x.astype(jnp.float32) / 255
    for axis in (2, 1):  # rows first, as Pillow
        length = max(resized[axis - 1], 1)
        first = GEOMETRIES[spec.geometry](length - spec.crop_size)
        taps = filter_taps(images.shape[axis], length, spec.crop_size, first)
        x = _resample(x, axis, *taps, clipped=not whole)
    if x.dtype == jnp.int32:
        x = x.astype(jnp.float32) / 255
    return (x - np.float32(spec.image_mean)) / np.float32(spec.image_std)


def filter_taps(
    length: int, resized: int, kept: int, first_kept: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's bicubic filter (a = -1/2) for one axis, widened by the scale when shrinking.

    Args:
      length, resized: pixels before and after.
      kept: how many of the resized pixels to keep, from first_kept on; zeros stand where there is
        none. first_kept may be negative.

    Returns:
      (positions int32 [kept, T], weights float64 [kept, T]): result[i] = sum_t weights[i, t] *
      input[positions[i, t]].
    """
    scale = length / resized
    width = max(scale, 1.0)
    out = np.arange(kept) + first_kept
    centre = (out + 0.5) * scale
    first = np.maximum((centre - 2 * width + 0.5).astype(int), 0)
    last = np.minimum((centre + 2 * width + 0.5).astype(int), length)
    positions = first[:, None] + np.arange((last - first).max())
    x = np.abs((positions - centre[:, None] + 0.5) / width)
    weights = np.where(
        x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, -0.5 * (((x - 5) * x + 8) * x - 4), 0)
    )
    weights = np.where(positions < last[:, None], weights, 0)
    inside = (out >= 0) & (out < resized)
    total = np.where(inside, weights.sum(1), 1)
    weights = np.where(inside[:, None], weights / total[:, None], 0)
    return np.clip(positions, 0, length - 1).astype(np.int32), weights


def _resample(x, axis, positions, weights, clipped):
    """Filters one axis of x [N, H, W, 3]: int32 in 0..255 as Pillow does, bit for bit, or float32
    in [0, 1]; clipped to that range, floats only if `clipped`.
    """
    if x.dtype == jnp.float32:
        matrix = np.zeros((len(weights), x.shape[axis]))
        np.add.at(matrix, (np.arange(len(weights))[:, None], positions), weights)
        y = jnp.tensordot(x, matrix.astype(np.float32), axes=(axis, 1), precision='highest')
        y = jnp.moveaxis(y, -1, axis)
        return jnp.clip(y, 0, 1) if clipped else y
    fixed = np.trunc(weights * 2**_FRACTION_BITS + np.copysign(0.5, weights)).astype(np.int32)
    shape = [-1 if k == axis else 1 for k in range(4)]
    y = jnp.int32(2 ** (_FRACTION_BITS - 1))
    for t in range(fixed.shape[1]):
        y += fixed[:, t].reshape(shape) * jnp.take(x, positions[:, t], axis=axis)
    return jnp.clip(y >> _FRACTION_BITS, 0, 255)
