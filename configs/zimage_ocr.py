"""Z-Image-Turbo learns to write: DenseGRPO with OCR at 512 px on the distilled eight-step model.

    python -m densegrpo_jax.main --config=configs/zimage_ocr.py:devices=8 \\
        --workdir=runs/zimage_ocr --config.model.path=/path/to/Z-Image-Turbo

The policy keeps the model's own eight steps, T = 8, and needs no guidance. With the base model see
zimage_pickscore.py.
Settings: no paper trains this model. CPS with a uniform eta = 0.8 and all else are those of
flux_ocr.py; prompts have up to 512 tokens, and padding beyond the next 32 is not attended to. The
attention is plain or cuDNN's (`--config.model.attention=cudnn`). The single file that ComfyUI uses
serves as the transformer: `--config.model.transformer_file=z_image_turbo_bf16.safetensors`.

Hardware: written for devices with 80 GiB; not measured on any.
Expected cost: 0.89 H100-hours per iteration, 713 for 800 (`densegrpo_jax.plan` at 40 % of the peak,
scoring not counted; not measured).
Memory: 29.4 GiB on one H100 (`:devices=1`), as its compiler plans it; the text encoder, 7.5 GiB, is
freed before training. A card of 24 GB hardly takes it with the base in 4 bits,
`--config.model.quantize=nf4`: 21.0 GiB of 21.9. A v5e-8 takes it with
`--config.mesh.fsdp=8`. All plans: docs/own_machine.md.
Expected score: none is claimed; no paper has such a run.
"""

from densegrpo_jax.config.recipes import ocr, zimage
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = zimage(default_config())
    c.label = 'Z-Image-Turbo, OCR, dense credit'
    ocr(c)
    return apply(c, variant, samples=24, transitions=3)
