"""What was verified here: a level for every recipe, and what the pages' commands need where it was
not at hand. `recipes_page` renders both; tests compare them with configs/ and with the pages.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# From the strongest on.
RESULT = 'run to its result here'
STEPS = 'trained a few steps here'
COMPILED = 'compiled for its target'
VALIDATED = 'validated only'
LEVELS = {
    RESULT: 'The command ran to its end, on two CPU cores unless the evidence names a GPU, which '
    'shows its result.',
    STEPS: 'It has trained with its own model, for a few updates; no result is claimed.',
    COMPILED: 'Its programs (sampling with completions and decoding, update, evaluation) were '
    "compiled at full size by the target's own compiler, from shapes. Nothing of that size ran. "
    'Its code runs in the tests on small random weights.',
    VALIDATED: 'It opens, and its keys and its geometry are consistent.',
}


class Verified(NamedTuple):
    """level: of LEVELS. evidence: Markdown, links relative to docs/."""

    level: str
    evidence: str


_PLANS = '[plans](scaling.md#plans)'
_SHAPES = '[shapes](results/shapes/README.md)'
_OPENED = 'opened and validated in tests/docs/test_recipes_page.py'
_SMALL = 'an iteration on small random weights in tests/training/test_klein_recipes.py (slow)'
_MACHINE = '[your machine](own_machine.md#flux2-klein-and-z-image)'
_CLAIMS = '[claims of the paper](results/reproduction/README.md)'
RECIPES = {
    'claims_geneval': Verified(
        RESULT, '[compositional task](results/reproduction/geneval/README.md)'
    ),
    'claims_ocr': Verified(RESULT, _CLAIMS),
    'claims_ocr_96': Verified(
        RESULT,
        '[96 samples](results/reproduction/96_samples/README.md), on [one H200](results/gpu.md)',
    ),
    'flux2_klein_geneval': Verified(VALIDATED, f'{_OPENED}; its plan is that of flux2_klein_ocr'),
    'flux2_klein_ocr': Verified(COMPILED, f'{_MACHINE}, TPUs and GPUs; {_SMALL}'),
    'flux2_klein_pickscore': Verified(COMPILED, f'{_MACHINE}, TPUs and GPUs; {_SMALL}'),
    'flux_geneval': Verified(COMPILED, f'{_PLANS}, h100:8'),
    'flux_ocr': Verified(COMPILED, f'{_PLANS}, TPUs and GPUs'),
    'flux_pickscore': Verified(COMPILED, f'{_PLANS}, h100:8'),
    'reward_server': Verified(
        RESULT,
        'serves scores over HTTP in tests/rewards/test_reward_service.py; nothing is trained',
    ),
    'sd15_pickscore': Verified(COMPILED, f'{_PLANS}, h100:8'),
    'sd35_geneval': Verified(COMPILED, f'{_PLANS}, h100:8'),
    'sd35_ocr': Verified(COMPILED, f'{_PLANS}, TPUs and GPUs'),
    'sd35_pickscore': Verified(COMPILED, f'{_PLANS}, h100:8'),
    'sd35_pickscore_1024': Verified(VALIDATED, _OPENED),
    'tiny_geneval': Verified(RESULT, _SHAPES),
    'tiny_ocr': Verified(RESULT, '[demo](results/demo/README.md), three seeds'),
    'tiny_ocr_long': Verified(RESULT, '[the longer run](results/long/README.md)'),
    'tiny_ocr_quick': Verified(
        RESULT, '[demo](results/demo/README.md#a-tenth-of-the-network-evaluations), three seeds'
    ),
    'tiny_preference': Verified(RESULT, _SHAPES),
    'tiny_pretrain': Verified(RESULT, 'made the miniature that is shipped, densegrpo_jax/assets'),
    'tiny_scene': Verified(
        RESULT, '[the guard](results/guard/README.md), [D²-Align](d2_align.md#what-stage-1-learns)'
    ),
    'tiny_shapes_pretrain': Verified(
        RESULT, 'made the second miniature that is shipped, densegrpo_jax/assets'
    ),
    'zimage_ocr': Verified(COMPILED, f'{_MACHINE}, TPUs and GPUs; {_SMALL}'),
    'zimage_pickscore': Verified(
        COMPILED,
        f'{_MACHINE}, TPUs and GPUs; two iterations on small random weights in '
        'tests/viewing/test_other_family.py (slow)',
    ),
}


class Hardware(NamedTuple):
    """Commands that were not run here. title: Markdown. pattern: found in the command. needs: what
    was not at hand. instead: what was done in its place.
    """

    title: str
    pattern: str
    needs: str
    instead: str


# The first pattern that is found counts.
HARDWARE = (
    Hardware(
        '`bash launch/slurm.sh`',
        r'launch/slurm\.sh',
        'a Slurm cluster with GPUs',
        'the script runs with stand-ins for Slurm; its training command is read',
    ),
    Hardware(
        '`bash launch/tpu.sh`',
        r'launch/tpu\.sh',
        'TPU slices and a Google Cloud project',
        'the script runs with a stand-in for gcloud; its training command is read; programs '
        'compiled for those slices',
    ),
    Hardware(
        '`requirements-cuda.txt`, `--device=cuda`',
        r'requirements-cuda\.txt|--device=cuda',
        'an NVIDIA GPU',
        'files and flags are read',
    ),
    Hardware(
        '`requirements-tpu.txt`, `--device=tpu`',
        r'requirements-tpu\.txt|--device=tpu',
        'a TPU VM',
        'files and flags are read',
    ),
    Hardware(
        '`bash benchmarks/on_accelerator.sh`',
        r'on_accelerator\.sh',
        'a GPU or TPU',
        'the script runs whole on a CPU with `--size=small`',
    ),
    Hardware(
        '`densegrpo plan`',
        r'densegrpo_jax\.plan|densegrpo plan',
        'nothing, but minutes of compiling and the compiler of the machine',
        'flags are read; the plans on the pages were made by such commands',
    ),
    Hardware(
        'recipes `flux_*`, `flux2_*`, `zimage_*`, `sd35_*`, `sd15_*`',
        r'(flux2?|zimage|sd35|sd15)_\w+',
        'an accelerator, and the released weights',
        'flags and keys are read; levels of the recipes above',
    ),
    Hardware(
        '`docker`', r'docker (build|run)', 'Docker', 'the install steps of the files are checked'
    ),
    Hardware('`hf`', r'^hf ', 'the network and an account', 'nothing'),
)


def hardware_of(command: str) -> Hardware | None:
    """What a command needs that was not at hand; None: it is one for this machine."""
    return next((row for row in HARDWARE if re.search(row.pattern, command)), None)
