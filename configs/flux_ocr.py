"""FLUX.1-dev learns to write: DenseGRPO with OCR at 512 px.

    python -m densegrpo_jax.main --config=configs/flux_ocr.py:devices=8 \\
        --workdir=runs/flux_ocr --config.model.path=/path/to/FLUX.1-dev

Settings follow the peers' FLUX recipes (Flow-GRPO pickscore_flux, TP-GRPO): T = 6, evaluation 28,
guidance 3.5, LoRA 64/128, lr 3e-4, beta 0. The noise is CPS with a uniform eta = 0.8: uncalibrated,
DenseGRPO's per-step table replaces it. Prompts come from the package's own generator of OCR scenes.
A short run on one device: `:devices=1` and `--config.rollout.prompts=8`.

Hardware: written for devices with 80 GiB; not measured on any.
Expected cost: 0.48 H100-hours per iteration, 387 for 800 (`densegrpo_jax.plan` at 40 % of the peak,
scoring not counted; not measured).
Memory: 22 GiB of weights in bfloat16, split over the devices by `--config.mesh.fsdp` (the text
encoders, 9 GiB, are freed before training).
Expected score: none is claimed; FLUX with OCR is in no paper (extrapolated from SD3.5-M: a clear
rise within 300 iterations).
"""

from densegrpo_jax.config.recipes import flux, ocr
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = flux(default_config())
    c.label = 'FLUX.1-dev, OCR, dense credit'
    ocr(c)
    return apply(c, variant, samples=24, transitions=3)
