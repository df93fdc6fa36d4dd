"""FLUX.2 [klein] learns to compose: DenseGRPO with GenEval at 512 px on the distilled four-step
model.

    python -m densegrpo_jax.main --config=configs/flux2_klein_geneval.py:devices=8 \\
        --workdir=runs/flux2_klein_geneval \\
        --config.data.train=train_metadata.jsonl --config.data.eval=test_metadata.jsonl

Prompts and reward are those of flux_geneval.py, which says how the reward is served on a GPU of its
own. Settings: as flux2_klein_ocr.py, except for the reward and its normalisation.
Hardware: written for devices with 80 GiB; not measured on any.
Expected cost and memory: those of flux2_klein_ocr.py, and 1 % more seconds, as its evaluations have
2,212 prompts; the reward's GPU is not counted.
Expected score: none is claimed; no paper has such a run.
"""

from densegrpo_jax.config.recipes import geneval, klein
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = klein(default_config())
    c.label = 'FLUX.2-klein-4B, GenEval, dense credit'
    c.credit.std = 'global'
    geneval(c)
    return apply(c, variant, samples=24, transitions=3)
