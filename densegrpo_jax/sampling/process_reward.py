"""The process reward of a run: what a rollout needs of it, and the file of a probe.

A probe is a linear function of the frozen base network's last hidden states, averaged over the
image, and of the noise level. `densegrpo_jax.process_reward` fits it and writes its file.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from densegrpo_jax.config import identity
from densegrpo_jax.config.guide_keys import IMAGES, has_guide
from densegrpo_jax.config.method import own_code
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.rewards.differentiable import reward_params, text_features, without_gradient
from densegrpo_jax.rewards.facts import reward_facts
from densegrpo_jax.runtime.arrays import read_arrays, write_arrays
from densegrpo_jax.runtime.mesh import replicated
from densegrpo_jax.runtime.reading import parse_json
from densegrpo_jax.runtime.trees import Difference

FORMAT = 1  # of the files


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fitted probe, the contents of a file: r(x, s) = hidden . w + time . (1, s, s^2).

    Attributes:
      hidden: w, float32 [D], of the hidden states. time: float32 [3].
      settings: what it is of, see `probe_settings`.
      facts: what the fit reports, names and numbers.
    """

    hidden: np.ndarray
    time: np.ndarray
    settings: Mapping[str, Any]
    facts: Mapping[str, float]

    @property
    def digest(self) -> str:
        """Equal for equal numbers."""
        content = np.concatenate([self.hidden, self.time]).astype(np.float32).tobytes()
        return hashlib.sha256(content).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class ProcessReward:
    """A process reward that a configuration names.

    Attributes:
      mesh: of the rollouts.
      reward: of the predicted images; None for a probe.
      probe: None for the others.
    """

    mesh: Mesh
    reward: CompositeReward | None = None
    probe: Probe | None = None

    def facts(self) -> dict[str, str]:
        """`process reward` as a fact of records that decide whether a run continues."""
        return {} if self.probe is None else {'process reward': self.probe.digest}

    def inputs(self, prompts: Sequence[str]) -> dict:
        """What a rollout of these prompts takes: a probe's numbers, or the reward's weights, on
        every device, and the prompts' features.
        """
        if self.probe is not None:
            return {'hidden': self.probe.hidden, 'time': self.probe.time}
        return {'weights': self._weights, 'text': text_features(self.reward, prompts)}

    @functools.cached_property
    def _weights(self) -> list:
        """The reward itself holds them on the devices of its process alone."""
        return jax.device_put(jax.device_get(reward_params(self.reward)), replicated(self.mesh))


def open_process_reward(
    config,
    folder: pathlib.Path,
    pipeline: Pipeline,
    sigmas: np.ndarray,
    reward: CompositeReward,
    mesh: Mesh,
    differences: Callable[[str, Mapping, Mapping], list[Difference]] = identity.differences,
) -> ProcessReward | None:
    """The process reward of `guide`; None if the rollouts need none.

    Args:
      folder: of the base model, whose weights are read to compare them with a probe's.
      sigmas: the grid [T+1]. reward: of the images. mesh: of the rollouts.
      differences: of what a probe belongs to and this.

    Raises:
      FileNotFoundError, ValueError: the probe's file is missing, damaged, or of another base,
        reward or grid; or the reward computes where a rollout cannot.
    """
    if not has_guide(config):
        return None
    source = config.guide.source
    if source in IMAGES:
        check_computes(source, reward)
        return ProcessReward(mesh, reward)
    path = pathlib.Path(config.guide.file).expanduser()
    probe = read_probe(path)
    ours = probe_settings(config, folder, pipeline, sigmas, reward)
    if found := differences('process', dict(probe.settings), ours):
        raise ValueError(
            f'guide.file: {path} was fitted for something else ({identity.told(found)}): fit it '
            'anew (densegrpo_jax.process_reward), or name another file'
        )
    return ProcessReward(mesh, probe=probe)


def check_computes(source: str, reward: CompositeReward) -> None:
    """Raises ValueError if a part of the reward cannot score images inside a rollout. A host's
    reward would stop the devices at every drifting step, and its failures could not be told from
    the rollout's.
    """
    if names := without_gradient(reward):
        raise ValueError(
            f'guide.source={source!r} scores predicted images inside the rollout, on its devices, '
            f"and the reward {names[0]!r} computes elsewhere: use guide.source='probe', whose file "
            'densegrpo_jax.process_reward makes for any reward'
        )


def probe_settings(
    config, folder: pathlib.Path, pipeline: Pipeline, sigmas: np.ndarray, reward: CompositeReward
) -> dict:
    """What a probe belongs to: the base network, by its weights, the reward and the grid, as JSON
    values. Reads every byte of the transformer: half a minute for FLUX.1's 24 GB.
    """
    facts = {
        'weights of the transformer': transformer_digest(config, folder, pipeline),
        'noise levels of the grid': [round(float(s), 6) for s in sigmas],
        identity.CODE: own_code(config),
        **reward_facts([reward]),
    }
    return identity.record('process', config, facts)


def transformer_digest(config, folder: pathlib.Path, pipeline: Pipeline) -> str:
    """A hash of the transformer's files."""
    own = config.model.transformer_file
    files = [pathlib.Path(own).expanduser()] if own else []
    files = files or sorted((folder / pipeline.folder('transformer')).glob('*.safetensors'))
    total = hashlib.sha256()
    for path in files:
        with open(path, 'rb') as file:
            total.update(hashlib.file_digest(file, 'sha256').digest())
    return total.hexdigest()[:16]


def write_probe(path: pathlib.Path, probe: Probe) -> None:
    """Writes an npz without pickle, in one step; creates the folder if absent."""
    arrays = {
        'hidden': probe.hidden.astype(np.float32),
        'time': probe.time.astype(np.float32),
        'settings': json.dumps(probe.settings),
        'names': np.array([*probe.facts], dtype=str),
        'values': np.array([*probe.facts.values()], np.float64),
    }
    write_arrays(path, FORMAT, arrays)


def read_probe(path: pathlib.Path, key: str = 'guide.file') -> Probe:
    """The probe in a file, the value of `key`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not such a file of this version, or its numbers are not finite.
    """
    shapes, others = {'hidden': (None,), 'time': (3,)}, ('settings', 'names', 'values')
    held = read_arrays(path, FORMAT, shapes, others, 'densegrpo_jax.process_reward', key)
    settings = parse_json(str(held['settings']), f'{key}: settings of {path}')
    facts = dict(zip(held['names'].tolist(), held['values'].tolist()))
    return Probe(
        held['hidden'].astype(np.float32), held['time'].astype(np.float32), settings, facts
    )
