"""Rewards with an embedding, and the direction files that guide them (D2-Align, arXiv 2512.24146).

A guided reward compares pictures with a moved text embedding (`core.direction.guided_text`) and is
otherwise the same. `densegrpo_jax.direction` learns the direction and writes its file.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from densegrpo_jax.runtime.arrays import read_arrays, write_arrays

FORMAT = 1  # of the files
EMBEDDING_REWARDS = ('clipscore', 'pickscore', 'hpsv2', 'scene_embedding')


@runtime_checkable
class EmbeddingReward(Protocol):
    """A reward whose names[0] is proportional to the product of a picture's and a text's embedding,
    both of unit length.
    """

    name: str

    def plain_text(self, prompts: Sequence[str]) -> np.ndarray:
        """float32 [N, D], without any direction."""

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, D] of pictures uint8 [N, H, W, 3]."""

    def weights_fingerprint(self) -> str:
        """Tells the embedding from others: equal for equal weights."""


@dataclasses.dataclass(frozen=True)
class Direction:
    """A learned direction, the contents of a file.

    Attributes:
      vector: b, float32 [D].
      omega, renormalise: as in `guided_text`.
      reward, weights: the reward that it was learned for, and `weights_fingerprint`.
      history: the objective at every step, float32 [steps].
      facts: what the fit reports, names and numbers.
    """

    vector: np.ndarray
    omega: float
    renormalise: bool
    reward: str
    weights: str
    history: np.ndarray
    facts: Mapping[str, float]

    def guide(self, text: np.ndarray) -> np.ndarray:
        """`guided_text` of text embeddings [N, D]."""
        from densegrpo_jax.core.direction import guided_text  # imports JAX, which OCR does without

        return np.asarray(
            guided_text(text, self.vector, self.omega, renormalise=self.renormalise), np.float32
        )


def write_direction(path: pathlib.Path, direction: Direction) -> None:
    """Writes an npz without pickle, in one step; creates the folder if absent."""
    arrays = {
        'vector': direction.vector.astype(np.float32),
        'omega': direction.omega,
        'renormalise': direction.renormalise,
        'reward': direction.reward,
        'weights': direction.weights,
        'history': direction.history,
        'names': np.array([*direction.facts], dtype=str),
        'values': np.array([*direction.facts.values()], np.float64),
    }
    write_arrays(path, FORMAT, arrays)


def read_direction(path: pathlib.Path) -> Direction:
    """The direction in a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a direction file of this version, or its numbers are not finite.
    """
    shapes = {'vector': (None,), 'omega': ()}
    others = ('renormalise', 'reward', 'weights', 'history', 'names', 'values')
    held = read_arrays(path, FORMAT, shapes, others, 'densegrpo_jax.direction')
    return Direction(
        held['vector'].astype(np.float32),
        float(held['omega']),
        bool(held['renormalise']),
        str(held['reward']),
        str(held['weights']),
        held['history'],
        dict(zip(held['names'].tolist(), held['values'].tolist())),
    )


def take_direction(reward: Any, file: str, omega: float | None) -> None:
    """Sets the `direction` of an `EmbeddingReward`: that of `file`, or None with ''. With one, the
    reward has no bounds, and also the score without it, NAME_unguided.

    Args:
      omega: instead of the file's, if not None.

    Raises:
      FileNotFoundError, ValueError: as `read_direction`; or it is of another reward, or of other
        weights; or there is an omega and no file.
    """
    reward.direction = None
    if not file:
        if omega is not None:
            raise ValueError(f'reward.{reward.name}.omega={omega} is of a direction: give one too')
        return
    path = pathlib.Path(file).expanduser()
    found = read_direction(path)
    for what, there, here in (
        ('the reward', found.reward, reward.name),
        ('the weights', found.weights, reward.weights_fingerprint()),
    ):
        if there != here:
            raise ValueError(
                f'reward.{reward.name}.direction: {path} was learned for {what} {there!r}, and '
                f'this reward has {here!r}: learn a direction for it (densegrpo_jax.direction)'
            )
    if omega is not None:
        if not np.isfinite(omega):
            raise ValueError(f'reward.{reward.name}.omega is {omega}; expected a finite number')
        found = dataclasses.replace(found, omega=float(omega))
    reward.direction = found
    reward.names = (*reward.names, f'{reward.name}_unguided')
    reward.range = (-np.inf, np.inf)  # the guided text is longer than 1


def with_direction(
    spec: Mapping[str, Any], file: str, omega: float, renormalise: bool
) -> dict[str, dict]:
    """The rewards of a configuration, with `direction=file` for the one that has an embedding and
    counts.

    Args:
      omega, renormalise: `d2.omega` and `d2.renormalise`, which the file was learned with.

    Raises:
      ValueError: no reward of non-zero weight has an embedding, or several have; or the file was
        learned with another omega or renormalise.
      FileNotFoundError: there is no such file.
    """
    rewards = {name: dict(options.items()) for name, options in spec.items()}
    fitting = embedding_rewards(rewards)
    if len(fitting) != 1:
        found = f'{fitting} have' if fitting else f'none of {[*rewards]} has'
        way_out = (
            f'give reward.{fitting[0]}.direction instead'
            if fitting
            else f'expected one of {", ".join(EMBEDDING_REWARDS)}, as in configs/tiny_scene.py'
        )
        raise ValueError(
            f'd2.file={file!r} is a direction in the embedding space of the reward, and {found} '
            f'an embedding: {way_out}'
        )
    found = read_direction(pathlib.Path(file).expanduser())
    for key, there, here in (
        ('omega', found.omega, omega),
        ('renormalise', found.renormalise, renormalise),
    ):
        if there != here:
            raise ValueError(
                f'd2.file={file!r} was learned with d2.{key}={there}, and d2.{key}={here} is set: '
                f'set d2.{key}={there}, or learn a direction anew (densegrpo_jax.direction)'
            )
    rewards[fitting[0]].setdefault('direction', file)
    return rewards


def embedding_rewards(rewards: Mapping[str, Mapping]) -> list[str]:
    """The keys of the rewards that have an embedding and a weight other than 0."""
    return [
        name
        for name, options in rewards.items()
        if options.get('kind', name) in EMBEDDING_REWARDS and options.get('weight', 1.0)
    ]
