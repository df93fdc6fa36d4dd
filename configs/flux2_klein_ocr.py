"""FLUX.2 [klein] learns to write: DenseGRPO with OCR at 512 px on the distilled four-step model.

    python -m densegrpo_jax.main --config=configs/flux2_klein_ocr.py:devices=8 \\
        --workdir=runs/flux2_klein_ocr --config.model.path=/path/to/FLUX.2-klein-4B

The policy keeps the model's own four steps, T = 4, and needs no guidance: dense credit costs 10
network evaluations a sample, where FLUX.1-dev's six steps cost 21. With the 9B model:
`--config.model.path=black-forest-labs/FLUX.2-klein-9B`; with a base model, see
flux2_klein_pickscore.py.
Settings: no paper trains this model. CPS with a uniform eta = 0.8 and all else are those of
flux_ocr.py; prompts have 512 tokens, as the model was made with.

Hardware: written for devices with 80 GiB; not measured on any.
Expected cost: 0.17 H100-hours per iteration, 134 for 800 (`densegrpo_jax.plan` at 40 % of the peak,
scoring not counted; not measured).
Memory: 24.5 GiB on one H100 (`:devices=1`), as its compiler plans it; the text encoder, 7.5 GiB, is
freed before training. A card of 24 GB takes it with the base in 4 bits,
`--config.model.quantize=nf4`: 19.4 GiB. A v5e-8 takes it with
`--config.mesh.fsdp=8`. The 9B model needs 38.7 GiB on one H100, and 0.36 H100-hours per iteration.
All plans: docs/own_machine.md.
Expected score: none is claimed; no paper has such a run.
"""

from densegrpo_jax.config.recipes import klein, ocr
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = klein(default_config())
    c.label = 'FLUX.2-klein-4B, OCR, dense credit'
    ocr(c)
    return apply(c, variant, samples=24, transitions=3)
