"""Every configuration key with its default, and the checks that run before anything is loaded or
compiled.

`configs/*.py` start from `default_config()` and change what they must; a key that is not here
cannot be set.
"""

from __future__ import annotations

import json
import math

import ml_collections

from densegrpo_jax.core.advantages import STD_SCOPES
from densegrpo_jax.core.calibration import RULES
from densegrpo_jax.core.combine import COMBINATIONS
from densegrpo_jax.core.dense_reward import CREDIT_RULES
from densegrpo_jax.core.grpo_loss import KL_FORMS
from densegrpo_jax.core.particles import SCHEMES
from densegrpo_jax.core.sde_step import KERNELS, LOG_PROBS
from densegrpo_jax.networks.attention import IMPLEMENTATIONS
from densegrpo_jax.networks.mmdit import REMAT_POLICIES
from densegrpo_jax.networks.quantize import FORMATS

# The layers that Flow-GRPO adapts on FLUX.1-dev: attention of all blocks, feed-forward of the
# double blocks.
FLUX_LORA_TARGETS = (
    'attn.to_q',
    'attn.to_k',
    'attn.to_v',
    'attn.to_out.0',
    'attn.add_q_proj',
    'attn.add_k_proj',
    'attn.add_v_proj',
    'attn.to_add_out',
    'ff.net.0.proj',
    'ff.net.2',
    'ff_context.net.0.proj',
    'ff_context.net.2',
)

# On SD3.5-M: the joint attention, not the second one of its first blocks.
SD35_LORA_TARGETS = (
    'attn.to_q',
    'attn.to_k',
    'attn.to_v',
    'attn.to_out.0',
    'attn.add_q_proj',
    'attn.add_k_proj',
    'attn.add_v_proj',
    'attn.to_add_out',
)

# What does not change which model or reward a run has, see `identifying`.
FREE_MODEL_KEYS = ('attention', 'remat')  # how the same network is compiled
# where and how the same reward is asked
FREE_REWARD_KEYS = ('urls', 'timeout_s', 'retries', 'give_up_s', 'token_env', 'concurrency')


def _group(**values) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(values, type_safe=True)


def default_config() -> ml_collections.ConfigDict:
    """FLUX.1-dev, dense credit, the settings of the peers' FLUX recipes; nothing that a run needs
    is left to the code.
    """
    c = ml_collections.ConfigDict()
    c.seed = 42
    c.iterations = 800
    c.label = ''  # one line shown at the start and kept with the results
    c.model = _group(
        path='black-forest-labs/FLUX.1-dev',  # Diffusers folder or Hugging Face id
        # safetensors file of the transformer instead of the folder's, also in FLUX.1's original
        # layout
        transformer_file='',
        height=512,
        width=512,
        t5_length=128,  # tokens
        # FLUX: input of the guidance embedding; SD3.5: scale of classifier-free guidance, 1 = none
        guidance=3.5,
        dtype='bfloat16',  # of base weights and matrix products
        # 'int8' or 'nf4': the transformer's blocks in 8 or 4 bits under the adapters
        quantize='none',
        scan=True,
        remat='full',  # see FluxTransformer
        attention='xla',  # or a fused kernel: 'cudnn' (NVIDIA GPUs), 'splash' (TPUs)
    )
    c.lora = _group(
        rank=64,
        alpha=128.0,
        targets=FLUX_LORA_TARGETS,
        # a PEFT / Diffusers LoRA file to start from; the reference policy stays the base
        init_from='',
    )
    # train all weights of the transformer instead of adapters; the reference policy is then a
    # frozen copy
    c.full = False
    c.data = _group(
        # 'scenes', 'tiny', 'tiny_shapes', a .jsonl file of GenEval prompts, or a text file with one
        # prompt a line
        train='scenes',
        eval='scenes',
        scenes=20000,  # size of the generated prompt set 'scenes'
        eval_prompts=0,  # 0 = all
    )
    c.rollout = _group(
        steps=6,  # T
        prompts=48,  # P per iteration
        group=24,  # G copies of each
        # sampled together; their scoring overlaps the sampling of the next batch
        prompts_per_batch=48,
        kernel='cps',  # 'sde' or 'cps'
        # 'flow_grpo': level * sqrt(s / (1 - s)); 'constant': level at every step (eta of cps);
        # 'ddim': DDIM's eta
        noise='constant',
        level=0.8,
        # one initial noise per prompt (DanceGRPO); the noise of the steps stays every sample's own
        shared_noise=False,
        first=0,  # stochastic window [first, last); last = 0 means T
        last=0,
        noisy_end=False,  # noise, untrained, into clean latents too (Flow-GRPO's code)
        train_end=False,  # noise there, trained (the paper)
        log_prob='gaussian',  # or 'unscaled' (the CPS paper's code; its clip range is 1e-5)
    )
    c.noise = _group(
        # JSON file of densegrpo_jax.calibrate: its psi instead of rollout.noise and rollout.level
        psi_path='',
        interpolate=False,  # take psi on another grid or picture size too, linearly in s
        calibrate=False,  # calibrate first, into WORKDIR/psi.json, and train with that
    )
    c.calibration = _group(
        # or 'paper': Algorithm 1 as printed (core/calibration.py says what is wrong with it)
        rule='scaled',
        # N = prompts * group trajectories an iteration. The signs of one prompt's gains are not
        # independent, so many prompts with few samples; at N = 96 a lean of one in ten is seen in
        # one iteration.
        prompts=24,
        group=4,
        iterations=60,  # at most
        eps1=2,  # 'paper': balanced where |p - q| < eps1
        # 'scaled': relative step, e^3 = 20 times in 60 iterations; 'paper': absolute step (the
        # paper: 0.01)
        eps2=0.05,
        z=1.0,  # 'scaled': balanced where |p - q| <= z sqrt(p + q)
        low=0.02,  # bounds of psi: a transition that stops exploring learns nothing,
        high=5.0,  # and Flow-GRPO's own first step reaches 3.7; eta of cps ends at 1 in any case
        min_count=8,  # 'scaled': with fewer gains that are not 0 psi stays
        window=10,  # iterations that are averaged, for the result and
        # for the end: two windows in a row whose means differ by less than this share of psi, on
        # average over the transitions. A walk without drift of the steps above differs by 0.8 eps2
        # sqrt(2 window / 3) = 0.10, steady drift by eps2 window = 0.5.
        tolerance=0.1,
    )
    c.credit = _group(
        rule='dense',  # sparse, dense_baseline, coca_share, coca_to_go, dense, gae
        completion_steps=0,  # n; 0 = all remaining grid points (n = t)
        # complete and score every m-th state only; rewards between lie on a line
        completion_every=1,
        coca_window=1,
        coca_alpha=0.0,
        # Share out the normalised terminal reward (CoCA's code), instead of normalising the shares
        # of the raw one. Shares add up to 1: advantages are up to T times smaller than other
        # rules', so that loss.beta weighs more against them.
        coca_signed=False,
        # of rule 'gae': 0 is 'dense', 1 the terminal reward minus that of the state's completion
        gae_lambda=0.5,
        # what several rewards are added up as: 'sum' (raw scores), 'normalised' scores or
        # 'advantages' (core/combine.py)
        combine='sum',
        # of the step, or 'global' (Flow-GRPO's code): of the step over the batch, or 'pooled': one
        # for all trained steps
        std='group',
        std_eps=1e-4,
        clip=5.0,
    )
    c.loss = _group(
        clip_range=1e-4,
        # a transition weighs the std of its noise to this power, scaled to a mean of 1; 1 =
        # TempFlow-GRPO
        noise_power=0.0,
        beta=0.0,
        # log the KL to the reference with beta = 0 too; costs a forward pass of the reference
        measure_kl=False,
        kl_form='gaussian',
        # the policy is the guided network; False: the prompt's own prediction, guidance only moves
        # the samples (SD3.5)
        cfg=True,
    )
    c.optim = _group(
        learning_rate=3e-4,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=1e-4,
        grad_clip=1.0,
        warmup=0,  # iterations of linear warm-up
        # after it: or 'linear', 'cosine', both to 0 at the last iteration; lengthening a run
        # stretches them
        decay='constant',
        updates=1,  # optimiser steps per iteration, over disjoint parts of its prompts
        microbatch=24,  # transitions per gradient accumulation step
        max_bad=5,  # stop after this many non-finite gradients in a row
    )
    c.ema = _group(decay=0.9, every=8)
    c.reward = ml_collections.ConfigDict(
        {'ocr': {'weight': 1.0, 'mode': 'detect'}}, type_safe=False
    )
    # where the prompts' conditioning is kept; '' = WORKDIR/text (runs on the same model may share a
    # folder)
    c.text_cache = ''
    c.reward_workers = 0  # scoring threads; 0 = one per core
    c.eval = _group(
        every=30,
        steps=28,
        batch=48,
        shown=16,
        # the score that picks the best checkpoint; 'total' is the weighted sum of `reward`
        best='total',
        # rewards that densegrpo_jax.evaluate scores besides, as in `reward`
        panel=ml_collections.ConfigDict({}, type_safe=False),
        # and on which prompts: a name or file as in data.eval, 'panel' = 60 of our own; '' = the
        # evaluation's
        panel_prompts='',
        # what diversity is measured in: 16 x 16 pixels, or a CLIP folder or id (its image features)
        embedding='pixels',
    )
    # pin: steps that are saved and kept for good, besides the newest and the best
    c.checkpoint = _group(every=10, keep=2, pin=())
    c.search = _group(
        method='pg',  # best_of_n, smc, svdd, pg, psi, refine
        nfe=240,  # network evaluations a prompt
        prompts=4,  # searched together
        particles=0,  # K of pg (0: 4) and psi (0: what half of the budget buys)
        candidates=4,  # M of svdd and refine
        designs=0,  # B of refine; 0: at most 4, as many as leave half of the budget for rounds
        chains=0,  # of psi; 0: at most 4
        from_level=0.6,  # noise level that refine's rounds begin at: the nearest of the grid
        kernel='',  # of the sampler; '': rollout.kernel. 'ode': without noise, for best_of_n
        every=1,  # weigh every n-th state on the way
        # temperatures, in units of the reward's spread within a prompt, measured on first samples
        temperature=0.5,  # of the target of smc, pg and psi
        beta=0.0,  # the same in the reward's own units; 0: as `temperature` says
        alpha=0.25,  # of the choice among candidates; 0: the best
        selection=0.5,  # of the designs' selection between refine's rounds
        incremental=False,  # refine: select by what a round gained
        keep_best=True,  # refine: the best design so far stays one of the set
        backward=False,  # pg: draw the ancestors of the path that is kept anew
        gradient=False,  # smc and psi: follow the gradient of a differentiable reward
        step_size=0.5,  # of psi's chain, above 0 and at most 4
        scheme='systematic',  # of resampling in smc and psi; or 'multinomial', 'ssp'
        threshold=0.5,  # smc, psi: resample where the ESS is below this share of K; 0: always
        potential='difference',  # of smc; or 'max', 'sum' (FK steering)
    )
    c.mesh = _group(data=-1, fsdp=1, tensor=1)
    c.lock()  # a configuration file cannot add keys by mistake, only rewards and their options
    c.reward.unlock()
    c.eval.panel.unlock()
    return c


def sd35(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
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


def identifying(config) -> dict:
    """The configuration as JSON values, without keys of the model and of rewards that change
    neither which they are.
    """
    c = json.loads(config.to_json_best_effort())
    without = lambda options, free: {
        key: value for key, value in options.items() if key not in free
    }
    of_rewards = lambda spec: {
        name: without(options, FREE_REWARD_KEYS) for name, options in spec.items()
    }
    c['eval']['panel'] = of_rewards(c['eval']['panel'])
    return {**c, 'model': without(c['model'], FREE_MODEL_KEYS), 'reward': of_rewards(c['reward'])}


def validate(config) -> None:
    """Raises ValueError naming the key, its value and what would do, for everything that can be
    known without weights or devices.
    """
    r, m = config.rollout, config.model
    _one_of('rollout.kernel', r.kernel, [k for k in KERNELS if k != 'ode'])
    _one_of('rollout.noise', r.noise, ('flow_grpo', 'constant', 'ddim'))
    _one_of('calibration.rule', config.calibration.rule, RULES)
    _one_of('rollout.log_prob', r.log_prob, LOG_PROBS)
    _one_of('credit.rule', config.credit.rule, CREDIT_RULES)
    _one_of('credit.combine', config.credit.combine, COMBINATIONS)
    _one_of('credit.std', config.credit.std, STD_SCOPES)
    _one_of('loss.kl_form', config.loss.kl_form, KL_FORMS)
    _one_of('optim.decay', config.optim.decay, ('constant', 'linear', 'cosine'))
    _one_of('model.attention', m.attention, IMPLEMENTATIONS)
    _one_of('model.remat', m.remat, ('none', *REMAT_POLICIES))
    _one_of('model.quantize', m.quantize, ('none', *FORMATS))
    _one_of('model.dtype', m.dtype, ('float32', 'bfloat16'))
    positive = {
        'iterations': config.iterations,
        'rollout.steps': r.steps,
        'rollout.prompts': r.prompts,
        'rollout.group': r.group,
        'rollout.prompts_per_batch': r.prompts_per_batch,
        'optim.updates': config.optim.updates,
        'optim.microbatch': config.optim.microbatch,
        'optim.max_bad': config.optim.max_bad,
        'ema.every': config.ema.every,
        'eval.every': config.eval.every,
        'eval.steps': config.eval.steps,
        'eval.shown': config.eval.shown,
        'eval.batch': config.eval.batch,
        'checkpoint.every': config.checkpoint.every,
        'checkpoint.keep': config.checkpoint.keep,
        'model.t5_length': m.t5_length,
        'credit.completion_every': config.credit.completion_every,
        **{
            f'calibration.{k}': config.calibration[k]
            for k in ('prompts', 'group', 'iterations', 'eps1', 'min_count', 'window')
        },
    }
    for key, value in positive.items():
        if value < 1:
            raise ValueError(f'{key}={value} must be at least 1')
    if r.group < 2:
        raise ValueError(
            f'rollout.group={r.group}: an advantage compares the pictures of one prompt; use at '
            'least 2'
        )
    _divides('rollout.prompts', r.prompts, 'rollout.prompts_per_batch', r.prompts_per_batch)
    _divides('rollout.prompts', r.prompts, 'optim.updates', config.optim.updates)
    if not 0 <= config.credit.completion_steps <= r.steps:
        raise ValueError(
            f'credit.completion_steps={config.credit.completion_steps}: expected 0 (all) to '
            f'rollout.steps={r.steps}'
        )
    if not 0 <= config.credit.gae_lambda <= 1:
        raise ValueError(
            f'credit.gae_lambda={config.credit.gae_lambda}: expected 0 (dense) to 1 (the terminal '
            'reward over the value)'
        )
    if not 0 <= config.loss.noise_power <= 4:
        raise ValueError(
            f'loss.noise_power={config.loss.noise_power}: expected 0 (all transitions alike) to 4'
        )
    if config.loss.kl_form == 'flow_grpo' and r.kernel != 'sde':
        raise ValueError(
            "loss.kl_form='flow_grpo' divides by the noise level of the sde kernel; with "
            "rollout.kernel='cps' use 'gaussian'"
        )
    if not r.level > 0:
        raise ValueError(
            f'rollout.level={r.level}: expected a positive noise level; without noise no '
            'transition can be trained'
        )
    if r.kernel == 'cps' and not (r.noise in ('constant', 'ddim') and 0 < r.level <= 1):
        raise ValueError(
            "rollout.kernel='cps' takes rollout.noise='constant' or 'ddim' and 0 < rollout.level "
            f'<= 1, found {r.noise!r}, {r.level}'
        )
    if r.noise == 'ddim' and r.kernel != 'cps':
        raise ValueError(
            "rollout.noise='ddim' is DDIM's eta, which is a table of rollout.kernel='cps'"
        )
    _check_noise(config)
    if config.full and config.lora.init_from:
        raise ValueError(
            'lora.init_from is set and full=True: merge the adapters into the base first '
            '(densegrpo_jax.export, merged)'
        )
    if config.full and m.quantize != 'none':
        raise ValueError(
            f'model.quantize={m.quantize!r} freezes the base, and full=True trains it: use one of '
            'them'
        )
    if not 0 <= config.optim.warmup < config.iterations:
        raise ValueError(
            f'optim.warmup={config.optim.warmup}: expected 0 or more, and fewer than '
            f'iterations={config.iterations}'
        )
    _check_search(config.search)
    if '://' in config.text_cache:
        raise ValueError(
            f'text_cache={config.text_cache!r}: expected a folder of this machine, such as one in '
            'a bucket that is mounted'
        )
    if not 0 <= config.ema.decay < 1:
        raise ValueError(f'ema.decay={config.ema.decay}: expected 0 <= decay < 1')


def _check_search(o) -> None:
    _one_of('search.method', o.method, ('best_of_n', 'smc', 'svdd', 'pg', 'psi', 'refine'))
    _one_of('search.kernel', o.kernel, ('', *KERNELS))
    _one_of('search.scheme', o.scheme, SCHEMES)
    _one_of('search.potential', o.potential, ('difference', 'max', 'sum'))
    for key in ('nfe', 'prompts', 'candidates', 'every'):
        if o[key] < 1:
            raise ValueError(f'search.{key}={o[key]} must be at least 1')
    for key in ('particles', 'designs', 'chains', 'beta', 'alpha'):
        if not 0 <= o[key] < math.inf:
            raise ValueError(f'search.{key}={o[key]} must be finite and not below 0')
    for key in ('temperature', 'selection'):
        if not 0 < o[key] < math.inf:
            raise ValueError(f'search.{key}={o[key]} must be positive and finite')
    if not 0 < o.step_size <= 4:
        raise ValueError(f'search.step_size={o.step_size}: expected above 0 and at most 4')
    for key in ('from_level', 'threshold'):
        if not 0 <= o[key] <= 1:
            raise ValueError(f'search.{key}={o[key]}: expected 0 to 1')


def _check_noise(config) -> None:
    noise, c = config.noise, config.calibration
    if noise.psi_path and noise.calibrate:
        raise ValueError(
            f'noise.psi_path={noise.psi_path!r} and noise.calibrate=True: take the table of that '
            'file, or make one; not both'
        )
    if noise.interpolate and not noise.psi_path:
        raise ValueError(
            'noise.interpolate=True is for the table of a file, and noise.psi_path is empty'
        )
    if not 0 < c.low < c.high:
        raise ValueError(
            f'calibration.low={c.low} and calibration.high={c.high}: expected 0 < low < high'
        )
    if config.rollout.kernel == 'cps' and c.low >= 1:
        raise ValueError(f'calibration.low={c.low}: eta of the cps kernel is at most 1')
    for key in ('eps2', 'z', 'tolerance'):
        if not c[key] > 0:
            raise ValueError(f'calibration.{key}={c[key]} must be positive')


def _one_of(key: str, value, allowed) -> None:
    if value not in allowed:
        raise ValueError(f'{key}={value!r} is not known; choose one of {sorted(allowed)}')


def _divides(key: str, whole: int, part_key: str, part: int) -> None:
    if whole % part:
        divisors = [d for d in range(1, whole + 1) if whole % d == 0]
        raise ValueError(
            f'{part_key}={part} does not divide {key}={whole}; it may be one of {divisors}'
        )
