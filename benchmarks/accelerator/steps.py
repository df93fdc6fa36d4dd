"""The steps in order of value, what each needs, how long it may take, and what a budget leaves."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

# XLA's autotuning of small products took minutes on an H200: first without, then with it.
QUICK, TUNED = 'quick', 'tuned'
FLAGS = {QUICK: '--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false', TUNED: ''}

# What is imported, by the names of modules.
KERNELS = ('jax', 'numpy')
NETWORKS = (
    *KERNELS,
    *('flax', 'optax', 'ml_collections', 'jaxtyping', 'safetensors', 'absl', 'rich', 'PIL'),
)
TORCH = (*NETWORKS, 'torch', 'diffusers')
SCORING = (*NETWORKS, 'rapidocr', 'onnxruntime', 'rapidfuzz', 'cv2')
RUN = (*SCORING, 'orbax', 'etils', 'tensorboardX', 'clu', 'transformers', 'tokenizers')
RUN += ('matplotlib', 'plotly')


class Step(NamedTuple):
    """A process of its own. part: of the letters that the issue of results uses; module: in this
    package; needs: modules that it imports; least, most: seconds with which it is worth beginning,
    and after which it is stopped.
    """

    part: str
    module: str
    arguments: tuple[str, ...] = ()
    mode: str = QUICK
    needs: tuple[str, ...] = NETWORKS
    least: int = 60
    most: int = 300

    @property
    def name(self) -> str:
        """Also of its results."""
        words = [self.part, self.module, *(a.split('=')[-1] for a in self.arguments), self.mode]
        return '_'.join(words)


# What the device is and how fast it multiplies: before all others, and with autotuning, as it is a
# peak that others are compared with.
DEVICE = Step('0', 'device', mode=TUNED, needs=KERNELS, least=0, most=120)
_FLUX = '--model=flux'
_SD35 = '--model=sd35'
STEPS = (
    Step('a', 'attention', needs=KERNELS, least=20, most=120),
    Step('b', 'model', (_SD35, '--side=512'), least=60, most=240),
    Step('c', 'model', (_FLUX, '--side=512'), least=90, most=300),
    Step('b', 'beside', (_SD35, '--side=512'), needs=TORCH, least=60, most=300),
    Step('d', 'hidden', needs=SCORING, least=60, most=300),
    Step('b', 'model', (_SD35, '--side=512'), TUNED, least=90, most=400),
    Step('c', 'beside', (_FLUX, '--side=512'), needs=TORCH, least=90, most=400),
    Step('e', 'options', least=90, most=400),
    Step('c', 'model', (_FLUX, '--side=1024'), least=120, most=400),
    Step('c', 'model', (_FLUX, '--side=512'), TUNED, least=120, most=500),
    Step('f', 'demo', needs=RUN, least=120, most=600),
    Step('f', 'table', needs=RUN, least=600, most=3600),
)
PARTS = {
    'a': 'fused attention equals plain attention, forward and backward',
    'b': 'SD3.5-M at 512 px: velocity, decoding, rollout, update; beside torch',
    'c': 'FLUX.1-dev with random weights, 512 and 1024 px: the same, and its memory',
    'd': 'scoring on the host, hidden beside sampling',
    'e': 'rematerialisation, merged adapters, ratio of the first update in bfloat16',
    'f': 'the demo, and the table of methods at equal cost side by side',
}


def chosen(parts: Sequence[str], platform: str) -> list[Step]:
    """The steps of these parts. Only on GPUs does autotuning make a second time of them."""
    return [s for s in STEPS if s.part in parts and (s.mode == QUICK or platform == 'gpu')]


def allowance(step: Step, left: float) -> float:
    """Seconds that a step gets of those that are left; 0 if it is not worth beginning."""
    return 0.0 if left < step.least else min(left, step.most)


def absent(step: Step) -> list[str]:
    """The modules that a step needs and that are not installed."""
    return [name for name in step.needs if importlib.util.find_spec(name) is None]
