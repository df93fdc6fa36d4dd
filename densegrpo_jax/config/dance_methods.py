"""The rows of `methods` that are DanceGRPO or build on it: trajectories from one initial noise per
prompt, of which an iteration trains a part.
"""

from __future__ import annotations

from collections.abc import Mapping

from densegrpo_jax.config.method_row import ONE_START, Method

DANCE_METHODS: Mapping[str, Method] = {
    'dance': Method(
        {
            **ONE_START,
            'credit.rule': 'sparse',
            'rollout.noise': 'constant',
            'rollout.level': 0.3,
            'moving.steps': 'subset',
            'moving.fraction': 0.6,
        },
        "Each transition gets the finished image's reward; noise is constant, the samples of a "
        'prompt begin alike, and a random part of the transitions is trained.',
        'DanceGRPO, arXiv 2505.07818',
        'Constant noise 0.3, one initial noise per prompt, std within the group, clip range 1e-4, '
        'advantages of several rewards added, 60 % of the transitions trained and never the last.',
        'One random subset per iteration, where its code draws one for every sample; adapters '
        "where the paper trains all weights (`full`). Its choice of each prompt's best and worst "
        'samples is not built.',
        'T',
    ),
    'mix': Method(
        {
            **ONE_START,
            'credit.rule': 'sparse',
            'rollout.noise': 'flow_grpo',
            'rollout.level': 0.7,
            'moving.steps': 'window',
            'moving.width': 4,
            'moving.stay': 25,
        },
        'Noise and training in a window of transitions that moves along the grid; the ODE before '
        'and behind it.',
        'MixGRPO, arXiv 2507.21802',
        'Window of 4, moved by one every 25 iterations and begun again at the end; one initial '
        'noise per prompt, advantages of several rewards added, clip range 1e-4, no KL.',
        'The window keeps its width and moves over the transitions that may be trained, so not '
        'into the clean image; the window of its code shrinks at the end of the grid. Shorter '
        'stays (`moving.stay_rule`) are rounded differently from its code. Dense credit in the '
        'window completes w − 1 states of every sample, and the first, which the samples of a '
        'prompt share, once for all of them; the last leads to the sample itself. MixGRPO-Flash, '
        'which shortens the ODE behind the window, is not built.',
        'T',
    ),
    'aegpo': Method(
        {
            **ONE_START,
            'credit.rule': 'sparse',
            'rollout.noise': 'constant',
            'rollout.level': 0.3,
            'moving.steps': 'entropy',
            'moving.width': 2,
            'budget.by': 'entropy',
            'budget.ratio': 2.0,
            'budget.warmup': 5,
        },
        "Reconstructed: DanceGRPO with noise only where the network's attention has the highest "
        'entropy, and more samples for the prompts on which it has moved most.',
        'AEGPO, arXiv 2602.06825',
        'Two groups of prompts split at the median, the larger twice the smaller (8 and 16 at a '
        'mean of 12); the transitions of the highest entropy explore.',
        'All equations are a reconstruction from the abstract and third-party summaries: entropy '
        'of the rows of all attention layers and heads over the log of the keys, at the image '
        "tokens, along one ODE path per prompt; the absolute change from the base model's; a "
        'moving average over iterations; the larger groups for the larger changes. Two '
        'transitions explore where the paper takes the top 4 of 16. The loss is the mean over all '
        'transitions, so that a prompt of more samples has a larger say in the update; equal '
        'weights per prompt, a choice of layers and a sample of the queries are not built. SD1.5 '
        'and Z-Image are refused.',
        'T, and 2 T for each prompt (the probe)',
    ),
    'euphonium': Method(
        {
            **ONE_START,
            'credit.rule': 'sparse',
            'credit.process': 'after',
            'rollout.noise': 'constant',
            'rollout.level': 0.25,
            'moving.steps': 'subset',
            'moving.fraction': 0.6,
            'guide.source': 'probe',
            'guide.file': 'process.npz',
            'guide.normalise': True,
            'guide.scale': 1.0,
        },
        'DanceGRPO whose late steps drift up the gradient of a process reward, a reward of noisy '
        'latents; the log-probability does not see the drift, and the process reward is a second '
        'advantage.',
        'Euphonium, arXiv 2602.04928',
        'Drift λ Δ ∇r outside mean and log-probability, as its code; two advantages, each '
        'normalised in the group and clipped to ±5, whose surrogates are added with weights 1 and '
        '1; constant noise 0.25, one initial noise per prompt, a random 60 % of the transitions '
        'and never the last.',
        'The process reward is ours: a ridge regression on the base network, from '
        '`python -m densegrpo_jax.process_reward`, which `guide.file` names; the paper trains one '
        'on 200,000 videos of HunyuanVideo and has no images. A step gets r of the state that it '
        'leads to; its code takes that of the state it leaves (`credit.process=before`). '
        'Gradients are normalised, so that a drift is std times the noise; its script leaves them '
        'as they are. [euphonium.md](euphonium.md)',
        'T, and one of the base at every state that drifts or is scored (here the states 3, 4 and '
        '5 of 6), the drifting ones with a gradient, about two evaluations more each; and once '
        '2 T + 1 for each of `guide.samples` rollouts',
    ),
}
