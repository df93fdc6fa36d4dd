"""The cases of `compare_checkouts.py`: small configurations that reach every part of an iteration.

The values take effect: advantages reach `credit.clip`, gradients `optim.grad_clip`, ratios
`loss.clip_range`.
"""

from __future__ import annotations

import dataclasses

JPEG = {'jpeg': {'weight': 1000.0}}  # fast; scaled so that gains are far above std_eps
OCR = {'ocr': {'weight': 1.0, 'mode': 'recognise', 'smooth': 0.5}}
SMALL = {
    'iterations': 2, 'rollout.prompts': 4, 'rollout.group': 4, 'rollout.prompts_per_batch': 2,
    'rollout.steps': 4, 'optim.microbatch': 16, 'lora.rank': 2, 'lora.alpha': 4.0, 'eval.every': 2,
    'eval.batch': 8, 'eval.steps': 2, 'eval.shown': 4, 'data.eval_prompts': 8,
    'checkpoint.every': 1, 'model.height': 16, 'model.width': 32, 'model.scan': True,
    'reward': JPEG,
}  # fmt: skip
SD3 = {
    'model.path': '{sd3}', 'model.height': 32, 'model.width': 32, 'model.t5_length': 16,
    'model.dtype': 'float32', 'model.guidance': 1.5, 'data.train': 'tiny', 'data.eval': 'tiny',
    'lora.targets': ('attn.to_q', 'attn.to_v'), 'optim.microbatch': 8,
}  # fmt: skip
TRAIN = (('main', '--workdir={case}/run'),)
CALIBRATION = {
    'calibration.prompts': 4, 'calibration.group': 4, 'calibration.iterations': 3,
    'calibration.window': 2, 'calibration.min_count': 1,
}  # fmt: skip
PROMPTS = ('--prompt=A neon sign that says "HELLO"', '--prompt=A mug with the word "tea"')


@dataclasses.dataclass(frozen=True)
class Case:
    """Commands with their arguments, all with the same configuration.

    `{case}` is the case's folder, `{sd3}` a small random SD3.5. Runs of `twins` must also end with
    equal results.
    """

    overrides: dict
    commands: tuple = TRAIN
    recipe: str = 'configs/tiny_ocr.py'
    fast: bool = True  # compile with the FAST flags
    twins: tuple = ()


def _cases() -> dict[str, Case]:
    credit = lambda **keys: Case({f'credit.{key}': value for key, value in keys.items()})
    reward = lambda recipe, rewards, **keys: Case(
        {'model.height': 48, 'model.width': 48, 'reward': rewards, **keys}, recipe=recipe
    )
    return {
        'dense': Case(
            {'model.height': 32, 'model.width': 96, 'reward': OCR, 'model.scan': False}, fast=False
        ),
        'sparse': Case({'credit.rule': 'sparse', 'credit.clip': 0.8, 'optim.grad_clip': 0.01}),
        'dense_baseline': credit(rule='dense_baseline'),
        'gae': credit(rule='gae', gae_lambda=0.7),
        'coca_share': credit(rule='coca_share', coca_window=2, coca_alpha=0.3),
        'coca_signed': credit(rule='coca_share', coca_signed=True),
        'coca_to_go': credit(rule='coca_to_go'),
        'cps': Case({'rollout.kernel': 'cps', 'rollout.noise': 'constant', 'rollout.level': 0.8}),
        'cps_ddim': Case(
            {'rollout.kernel': 'cps', 'rollout.noise': 'ddim', 'rollout.level': 0.7}
            | {'rollout.log_prob': 'unscaled', 'loss.clip_range': 1e-5}
        ),
        'sde_constant': Case({'rollout.noise': 'constant', 'rollout.train_end': True}),
        'noisy_end': Case({'rollout.noisy_end': True, 'loss.noise_power': 0.0}),
        'completion_steps': credit(completion_steps=2),
        'completion_every': Case({'credit.completion_every': 2, 'rollout.steps': 5}),
        'window': Case({'rollout.first': 1, 'rollout.last': 3}),
        'shared_noise': Case({'rollout.shared_noise': True}),
        'normalised': Case({'reward': OCR | JPEG, 'credit.combine': 'normalised'}),
        'advantages': Case({'reward': OCR | JPEG, 'credit.combine': 'advantages'}),
        'std_group': credit(std='group', clip=0.8),
        'std_pooled': credit(std='pooled'),
        'kl': Case({'loss.beta': 0.04, 'optim.learning_rate': 1e-2}),
        'kl_flow_grpo': Case({'loss.beta': 0.04, 'loss.kl_form': 'flow_grpo', 'iterations': 3}),
        'measure_kl': Case({'loss.measure_kl': True}),
        'updates': Case(
            {'optim.updates': 2, 'optim.microbatch': 12, 'optim.warmup': 1, 'optim.decay': 'cosine'}
            | {'optim.learning_rate': 1e-2, 'loss.clip_range': 1e-6, 'iterations': 3}
            | {'ema.every': 2}
        ),
        'full': Case(
            {'full': True, 'loss.measure_kl': True, 'optim.learning_rate': 1e-4}, fast=False
        ),
        'scan_remat': Case({'model.remat': 'full', 'model.quantize': 'int8'}),
        'guidance': Case(SD3, recipe='configs/sd35_ocr.py'),
        'unguided_policy': Case(SD3 | {'loss.cfg': False}, recipe='configs/sd35_ocr.py'),
        'shapes': reward('configs/tiny_geneval.py', {'shapes': {'weight': 1.0}}),
        'preference': reward(
            'configs/tiny_preference.py',
            {'preference': {'weight': 1.0}, 'shapes': {'weight': 0.0}},
            full=False,
        ),
        'calibrate_first': Case({'noise.calibrate': True} | CALIBRATION),
        'calibrate': Case(
            CALIBRATION,
            (
                ('calibrate', '--workdir={case}/psi', '--config.calibration.iterations=1'),
                ('calibrate', '--workdir={case}/psi'),
                ('main', '--workdir={case}/run', '--config.noise.psi_path={case}/psi/psi.json'),
            ),
        ),
        'resume': Case(
            {'optim.decay': 'constant', 'iterations': 3, 'eval.every': 1, 'checkpoint.keep': 4},
            (
                ('main', '--workdir={case}/stopped', '--config.iterations=1'),
                ('main', '--workdir={case}/stopped'),
                ('main', '--workdir={case}/whole'),
            ),
            twins=(('stopped', 'whole'),),
        ),
        'commands': Case(
            {},
            (
                ('main', '--workdir={case}/run'),
                ('sample', '--workdir={case}/run', *PROMPTS, '--copies=2', '--compare', '--single',
                 '--out={case}/sheet.png'),
                ('evaluate', '--workdir={case}/run', '--checkpoint=best', '--checkpoint=1',
                 '--group=2', '--kl_prompts=4', '--out={case}/evaluation',
                 '--config.eval.panel={"ocr": {"mode": "recognise"}}'),
                *(('export', '--workdir={case}/run', f'--layout={name}', f'--out={{case}}/{name}')
                  for name in ('peft', 'kohya', 'merged')),
                ('export', '--workdir={case}/run', '--dtype=bfloat16', '--checkpoint=latest',
                 '--out={case}/bfloat16'),
                ('main', '--workdir={case}/further', '--config.lora.init_from={case}/peft'),
            ),
        ),
        'plan': Case(
            {'rollout.group': 8, 'eval.batch': 8},
            (('plan', '--topology=v5e:2x4', '--out={case}/plan.json'),),
        ),
    }  # fmt: skip


CASES = _cases()
TIMED = Case({}, fast=False)  # the demo at full size, for seconds
