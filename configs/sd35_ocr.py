"""SD3.5-M learns to write: DenseGRPO with OCR at 512 px, the paper's second task.

    python -m densegrpo_jax.main --config=configs/sd35_ocr.py:devices=8 \\
        --workdir=runs/sd35_ocr --config.model.path=/path/to/sd3.5-medium

Settings: the paper's (arXiv 2601.20218, section 5) on Flow-GRPO's general_ocr_sd3: T = 10,
evaluation 40, classifier-free guidance 4.5 in sampling, completion and training, G = 24, LoRA 32/64
on the attention layers, lr 3e-4, beta 0.04. Noise: Flow-GRPO's table with a = 0.7; uncalibrated,
the paper's per-step psi replaces it. Without guidance (half of the NFE):
`--config.model.guidance=1.0`. Guided samples, but the plain network as the policy:
`--config.loss.cfg=False`.

Hardware: the paper used 16 A100 (19 GPU hours per 20 updates); not measured here on any.
Expected cost: 0.33 H100-hours per iteration (`densegrpo_jax.plan` of sd35_ocr at 40 % of the peak,
scoring not counted; not measured).
Memory: 5 GiB of weights in bfloat16 (the text encoders, 11 GiB, are freed before training).
Expected score: 0.95 after 1,500 iterations (the paper, on its own prompts; Flow-GRPO 0.92, base
0.59).
"""

from densegrpo_jax.config.recipes import ocr, sd35
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = sd35(default_config())
    c.label = 'SD3.5-M, OCR, dense credit'
    c.iterations = 1500
    c.loss.beta = 0.04
    ocr(c)
    return apply(c, variant, samples=24, transitions=8)
