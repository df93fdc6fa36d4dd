"""The common start of several recipes."""

from __future__ import annotations

from densegrpo_jax.config.model_keys import SD35_LORA_TARGETS


def sd35(c):
    """Turns the defaults into Flow-GRPO's settings for SD3.5-M (general_ocr_sd3, geneval_sd3,
    pickscore_sd3), with dense credit.
    """
    c.model.update(path='stabilityai/stable-diffusion-3.5-medium', t5_length=128, guidance=4.5)
    c.lora.update(rank=32, alpha=64.0, targets=SD35_LORA_TARGETS)
    c.rollout.update(steps=10, prompts=48, group=24, kernel='sde', noise='flow_grpo', level=0.7)
    c.credit.std = 'global'
    c.loss.kl_form = 'flow_grpo'
    c.eval.update(every=60, steps=40)
    return c


def pickscore(c) -> None:
    """Sets what the PickScore recipes share: the reward, the score of the best checkpoint, and the
    prompt files.
    """
    c.reward = {
        'pickscore': {
            'weight': 1.0,
            'path': 'yuvalkirstain/PickScore_v1',
            'processor': 'laion/CLIP-ViT-H-14-laion2B-s32B-b79K',
            'dtype': 'float32',
            'batch_size': 16,
        }
    }
    c.eval.best = 'total'  # PickScore
    c.data.update(train='pickscore_train.txt', eval='pickscore_test.txt')
