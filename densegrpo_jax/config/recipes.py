"""The common start of several recipes."""

from __future__ import annotations

from densegrpo_jax.networks.flux2 import LORA_TARGETS as FLUX2_TARGETS
from densegrpo_jax.networks.sd3 import LORA_TARGETS as SD3_TARGETS
from densegrpo_jax.networks.zimage import LORA_TARGETS as ZIMAGE_TARGETS


def sd35(c):
    """Turns the defaults into Flow-GRPO's settings for SD3.5-M (general_ocr_sd3, geneval_sd3,
    pickscore_sd3), with dense credit.
    """
    c.model.update(path='stabilityai/stable-diffusion-3.5-medium', t5_length=128, guidance=4.5)
    c.lora.update(rank=32, alpha=64.0, targets=SD3_TARGETS)
    c.rollout.update(steps=10, prompts=48, group=24, kernel='sde', noise='flow_grpo', level=0.7)
    c.credit.std = 'global'
    c.loss.kl_form = 'flow_grpo'
    c.eval.update(every=60, steps=40)
    return c


def flux(c):
    """Turns the defaults into Flow-GRPO's settings for FLUX.1-dev (pickscore_flux), with CPS of a
    uniform eta = 0.8 and dense credit.
    """
    c.model.update(
        path='black-forest-labs/FLUX.1-dev', height=512, width=512, t5_length=128, guidance=3.5
    )
    c.rollout.update(steps=6, prompts=48, group=24, kernel='cps', noise='constant', level=0.8)
    c.eval.update(every=30, steps=28, shown=16)
    return c


def klein(c):
    """Turns the defaults into settings for the distilled FLUX.2-klein-4B: its own four steps,
    without guidance, dense credit.
    """
    return _distilled(c, 'black-forest-labs/FLUX.2-klein-4B', FLUX2_TARGETS, steps=4)


def klein_base(c):
    """Turns the defaults into settings for FLUX.2-klein-base-4B: ten steps with classifier-free
    guidance, dense credit.
    """
    return _guided(klein(c), 'black-forest-labs/FLUX.2-klein-base-4B', guidance=4.0)


def zimage(c):
    """Turns the defaults into settings for Z-Image-Turbo: its own eight steps, without guidance,
    dense credit.
    """
    return _distilled(c, 'Tongyi-MAI/Z-Image-Turbo', ZIMAGE_TARGETS, steps=8)


def zimage_base(c):
    """Turns the defaults into settings for Z-Image: ten steps with classifier-free guidance, dense
    credit.
    """
    return _guided(zimage(c), 'Tongyi-MAI/Z-Image', guidance=5.0)


def _distilled(c, path, targets, steps):
    c.model.update(path=path, height=512, width=512, t5_length=512, guidance=1.0)
    c.lora.update(rank=64, alpha=128.0, targets=targets)
    c.rollout.update(steps=steps, prompts=48, group=24, kernel='cps', noise='constant', level=0.8)
    c.eval.update(every=30, steps=steps, shown=16)
    return c


def _guided(c, path, guidance):
    """From a distilled model's settings to those of its base."""
    c.model.update(path=path, guidance=guidance)
    c.rollout.update(steps=10, kernel='sde', noise='flow_grpo', level=0.7)
    c.eval.update(steps=28)
    return c


def ocr(c) -> None:
    """Sets what the OCR recipes share: the reward, the score of the best checkpoint, and the
    prompts.
    """
    c.reward = {'ocr': {'weight': 1.0, 'mode': 'detect'}}
    c.eval.best = 'total'  # OCR accuracy
    c.data.update(train='scenes', eval='scenes', eval_prompts=512)


def geneval(c) -> None:
    """Sets what the GenEval recipes share: the reward, the score of the best checkpoint, and the
    prompt files.
    """
    from densegrpo_jax.rewards.local.geneval_detector import CLIP, MASK2FORMER  # imports Pillow

    c.reward = {
        'geneval': {'weight': 1.0, 'mask2former': MASK2FORMER, 'clip': CLIP, 'torch_device': 'auto'}
    }
    c.eval.best = 'geneval_correct'  # GenEval's accuracy, not the partial score that is trained on
    c.data.update(train='train_metadata.jsonl', eval='test_metadata.jsonl', eval_prompts=2212)


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
