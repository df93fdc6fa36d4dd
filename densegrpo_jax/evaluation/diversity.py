"""Diversity of the images that a policy draws for one prompt: their mean pairwise distance in an
embedding of images.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

from densegrpo_jax.pipelines.weights.content import content_digest

SIDE = 16  # pixels of the embedding without a model

Embed = Callable[[np.ndarray], np.ndarray]


def pairwise_diversity(embeddings: np.ndarray) -> np.ndarray:
    """Mean of 1 - cosine over the G (G - 1) / 2 pairs of every group: 0 if all are equal, 1 if they
    are orthogonal on average.

    Args:
      embeddings: [P, G, D] with G >= 2, of any non-zero length.

    Returns:
      float32 [P].
    """
    groups, group, _ = embeddings.shape
    if group < 2:
        raise ValueError(f'groups of {group}: a distance takes at least 2 images of a prompt')
    unit = np.asarray(embeddings, np.float64)
    unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    # The sum of all cosines is |sum of unit vectors|^2; G of them pair an image with itself.
    cosines = np.square(unit.sum(1)).sum(-1) - group
    return (1 - cosines / (group * (group - 1))).astype(np.float32).reshape(groups)


def pixel_embedding(images: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, 3] as 16 x 16 pixels around mid-grey, float32 [N, 768]: colours and
    layout, not meaning.
    """
    small = [
        np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.BOX), np.float32)
        for image in images
    ]
    return np.stack(small).reshape(len(images), -1) - 127.5


def embedding_folder(name: str) -> pathlib.Path | None:
    """The folder of the CLIP that `make_embedding` loads; None for 'pixels'. Raises its errors but
    those of the weights.
    """
    if name == 'pixels':
        return None
    from densegrpo_jax.pipelines import clip
    from densegrpo_jax.pipelines.weights.hub import find_folder

    found = functools.partial(
        find_folder,
        name,
        option='eval.embedding',
        holds=f"'pixels' or {clip.HOLDS}",
        example='openai/clip-vit-large-patch14',
    )
    clip.read_clip(found(files=clip.PROCESSOR_FILES), text=False)  # else gigabytes come first
    return found(files=clip.FILES)


def embedding_facts(name: str) -> dict[str, str]:
    """What no name tells of the embedding, for records: a digest of its weights; {} for 'pixels'.
    Raises the errors of `make_embedding`.
    """
    if (folder := embedding_folder(name)) is None:
        return {}
    from densegrpo_jax.pipelines.weights.files import weight_files

    return {'weights of eval.embedding': content_digest(weight_files(folder)[0])}


def make_embedding(name: str) -> Embed:
    """`pixel_embedding` for 'pixels'; else the features of the image tower of the CLIP folder, or
    Hugging Face id, `name`.

    Returns:
      A function uint8 [N, H, W, 3] -> float32 [N, D]. It compiles one program per number and size
      of images.

    Raises:
      ValueError, FileNotFoundError: there is no such folder, or it holds something else.
    """
    folder = embedding_folder(name)
    if folder is None:
        return pixel_embedding
    from densegrpo_jax.pipelines import clip

    network = clip.read_clip(folder, text=False)
    features = jax.jit(functools.partial(network.image_features, clip.load_params(network, folder)))
    return lambda images: np.asarray(features(images))
