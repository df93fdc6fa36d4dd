"""`configs/claims_ocr.py` with the demo's 96 samples per update, at which all credit rules learn
equally well.

    python -m experiments.reproduce --figure=4 --config=configs/claims_ocr_96.py \\
        --workdir=runs/claims_ocr_96

The page that is shipped: `--out=docs/results/reproduction/96_samples`.
"""

from densegrpo_jax.configs import claims_ocr


def get_config():
    c = claims_ocr.get_config()
    c.label = 'miniature FLUX, held-out OCR, 96 samples an update'
    c.rollout.update(prompts=8, prompts_per_batch=4)
    c.optim.microbatch = 96
    return c
