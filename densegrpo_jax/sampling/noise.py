"""The source of a run's noise table: its own configuration, or psi from a JSON file of
`densegrpo_jax.calibrate`.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from densegrpo_jax.config.method import kernel_of, noise_table_of
from densegrpo_jax.core.masks import StepMasks
from densegrpo_jax.core.schedules import check_noise_levels
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.reading import kind, read_json, shaped

FORMAT = 1  # of psi.json
FILE = 'psi.json'  # in the work directory of a run that calibrates first
SAME_SIGMA = 1e-6
FORM = {
    'psi': [float],
    'history': [[float]],
    'finished': bool,
    'geometry': {
        'kernel': str,
        'height': int,
        'width': int,
        'sigmas': [float],
        'calibrated': [bool],
    },
}


def own_table(config, sigmas: np.ndarray) -> np.ndarray:
    """float32 [T], `rollout.noise` at `rollout.level`: the start of calibration.

    Raises:
      ValueError: the user's own table is invalid for this grid and kernel.
    """
    r = config.rollout
    levels = np.asarray(noise_table_of(config).fn(sigmas, r.level), np.float32)
    try:
        check_noise_levels(levels, len(sigmas) - 1, kernel_of(config))
    except ValueError as error:
        raise ValueError(f'rollout.noise={r.noise!r} at rollout.level={r.level}: {error}') from None
    return levels


def noise_table(config, sigmas: np.ndarray, masks: StepMasks) -> np.ndarray:
    """float32 [T] for the grid `sigmas` [T+1]: psi of `noise.psi_path`, or the configuration's own
    table if that is empty.
    """
    if config.noise.psi_path:
        return calibrated_table(
            config, sigmas, masks, pathlib.Path(config.noise.psi_path).expanduser()
        )
    return own_table(config, sigmas)


def calibrated_table(
    config, sigmas: np.ndarray, masks: StepMasks, path: pathlib.Path
) -> np.ndarray:
    """psi of a file for the transitions of `sigmas` [T+1], float32 [T].

    psi is used unchanged on the grid and the image size that it was calibrated for. On others
    `noise.interpolate` must be set: then psi is linear in s between the noise levels at which the
    calibrated transitions start, and constant beyond the outermost.

    Raises:
      FileNotFoundError, ValueError: there is no such file, the calibration is not finished, or the
        kernel differs; or, without `noise.interpolate`, the grid or image size differs, or a
        trained transition was not calibrated.
    """
    document = read(path)
    if not document['finished']:
        done = len(document['history'])
        raise ValueError(
            f'{path} is a calibration after {done} iterations, not finished; continue it with '
            'densegrpo_jax.calibrate'
        )
    there, here = document['geometry'], geometry(config, sigmas, masks)
    if there['kernel'] != here['kernel']:
        raise ValueError(
            f'{path} is of the kernel {there["kernel"]!r}, but rollout.kernel={here["kernel"]!r}: '
            'their noise levels differ in meaning. Calibrate this configuration, or change '
            'rollout.kernel'
        )
    psi = np.array(document['psi'])
    if not same_geometry(there, here):
        if not config.noise.interpolate:
            raise ValueError(
                f'{path} is of another grid:\n'
                f'  there {_shown(there)}\n'
                f'  here  {_shown(here)}\n'
                'Set noise.interpolate=True to take psi linearly in s, or calibrate this '
                'configuration'
            )
        on = np.array(there['calibrated'])
        known = np.array(there['sigmas'])[:-1][on]
        psi = np.interp(np.asarray(sigmas[:-1], np.float64), known[::-1], psi[on][::-1])
    psi = psi.astype(np.float32)
    check_noise_levels(psi, len(sigmas) - 1, kernel_of(config))
    return psi


def geometry(config, sigmas: np.ndarray, masks: StepMasks) -> dict:
    """The setting that psi belongs to, as JSON values: kernel, image size, grid [T+1] and which
    transitions are calibrated [T].
    """
    return {
        'kernel': config.rollout.kernel,
        'height': config.model.height,
        'width': config.model.width,
        'sigmas': [float(s) for s in sigmas],
        'calibrated': [bool(on) for on in masks.trained],
    }


def same_geometry(there: dict, here: dict) -> bool:
    """Whether psi of `there` can be used unchanged: the image size and grid are equal, and every
    transition that is trained `here` was calibrated.
    """
    if len(there['sigmas']) != len(here['sigmas']) or (there['height'], there['width']) != (
        here['height'],
        here['width'],
    ):
        return False
    close = np.allclose(there['sigmas'], here['sigmas'], rtol=0, atol=SAME_SIGMA)
    return bool(close and np.all(np.array(there['calibrated']) >= np.array(here['calibrated'])))


def _shown(g: dict) -> str:
    steps = ''.join('x' if on else '.' for on in g['calibrated'])
    return (
        f'{g["width"]} x {g["height"]} px, T = {len(g["sigmas"]) - 1}, s = '
        f'{[round(s, 4) for s in g["sigmas"]]}, trained {steps}'
    )


def read(path: pathlib.Path) -> dict:
    """A psi file. Raises FileNotFoundError if it is missing, ValueError if it is not a psi file."""
    if not path.is_file():
        found = f'{path} is {kind(path)}' if path.exists() else f'there is no psi file {path}'
        raise FileNotFoundError(
            f'{found}; densegrpo_jax.calibrate makes one (noise.psi_path names it)'
        )
    way_out = 'not a psi file of densegrpo_jax.calibrate; name another one, or remove it'
    try:
        document = read_json(path)
    except ValueError as error:
        raise ValueError(f'{error}: it is {way_out}') from None
    if (found := document.get('format')) is None:
        raise ValueError(f'{path} is {way_out}')
    if found != FORMAT:
        raise ValueError(
            f'{path} has format {found!r}, but this version reads {FORMAT}; calibrate again into '
            'another file'
        )
    if absent := [key for key in ('psi', 'geometry', 'finished', 'history') if key not in document]:
        raise ValueError(
            f'{path} lacks {", ".join(absent)}, which densegrpo_jax.calibrate writes; name another '
            'file, or remove it'
        )
    wrong = 'calibrate again into another file'
    try:
        shaped(document, FORM, f'{path} is damaged')
    except ValueError as error:
        raise ValueError(f'{error}; {wrong}') from None
    if not _whole(document):
        raise ValueError(
            f'{path} is damaged: expected psi [T], and sigmas [T + 1] and calibrated [T] in its '
            f'geometry; {wrong}'
        )
    return document


def _whole(document: dict) -> bool:
    """Whether the lists of a psi file have the lengths of those that a calibration writes."""
    g, steps = document['geometry'], len(document['geometry']['calibrated'])
    lengths = {len(document['psi']), len(g['sigmas']) - 1, *map(len, document['history'])}
    return lengths == {steps}


def write(path: pathlib.Path, document: dict) -> None:
    """Replaces the file in one step; creates its folder if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({'format': FORMAT, **document}, allow_nan=False) + '\n')


def describe(config) -> str:
    """The source of the noise table in a few words."""
    own = f'{config.rollout.noise} {config.rollout.level:g}'
    if config.noise.psi_path:
        return f'calibrated ({config.noise.psi_path}' + (
            ', interpolated)' if config.noise.interpolate else ')'
        )
    return f'calibrated first, from {own}' if config.noise.calibrate else f'{own}, uncalibrated'


def title(config, fallback: str = '') -> str:
    """The run's label, followed by the source of its noise."""
    return f'{config.label or fallback}, noise {describe(config)}'
