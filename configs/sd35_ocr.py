"""SD3.5-M learns to write: DenseGRPO with OCR at 512 px, the paper's second task.

    python -m densegrpo_jax.main --config=configs/sd35_ocr.py --workdir=runs/sd35_ocr --config.model.path=/path/to/sd3.5-medium

Settings: the paper's (arXiv 2601.20218, section 5) on Flow-GRPO's general_ocr_sd3: T = 10, evaluation 40, classifier-free guidance 4.5
in sampling, completion and training, G = 24, LoRA 32/64 on the attention layers, lr 3e-4, beta 0.04.
Noise: Flow-GRPO's table with a = 0.7; uncalibrated, the paper's per-step psi replaces it.
Without guidance (a third of the network calls saved in training, half in sampling): `--config.model.guidance=1.0`.
Guided samples, but the plain network as the policy: `--config.loss.cfg=False`.

Hardware: not yet measured on any. Expected score: 0.95 after 1,500 iterations (the paper; Flow-GRPO 0.92, base 0.59), on its prompts.
"""

from densegrpo_jax.training.defaults import default_config, sd35


def get_config():
    c = sd35(default_config())
    c.label = 'SD3.5-M, OCR, dense credit, uncalibrated noise (Flow-GRPO, a = 0.7)'
    c.iterations = 1500
    c.reward = {'ocr': {'weight': 1.0, 'mode': 'detect'}}
    c.loss.beta = 0.04
    c.data.update(train='scenes', eval='scenes', eval_prompts=512)
    return c
