"""Methods by name: a row of overrides on top of any recipe, as `--config=RECIPE:method=NAME`.

The recipe keeps its model, prompts, reward and amounts; a row sets what the method itself decides.
docs/config.md shows what each row sets, docs/methods.md its idea, its cost and what is our reading.
Rows of branches and trees are in `branch_methods`, of DanceGRPO and what builds on it in
`dance_methods`; METHODS is the one table of all. What the papers ran is in `published`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from densegrpo_jax.config.branch_methods import BRANCH_METHODS
from densegrpo_jax.config.dance_methods import DANCE_METHODS
from densegrpo_jax.config.method_row import Method

# The kernel of Flow-CPS with the log-probability and the clip range of its code.
_CPS_CODE = {
    'loss.noise_power': 0.0,
    'loss.beta': 0.0,
    'loss.kl_form': 'gaussian',
    'loss.clip_range': 1e-5,
    'rollout.kernel': 'cps',
    'rollout.noise': 'constant',
    'rollout.level': 0.8,
    'rollout.log_prob': 'unscaled',
}

_FLOW_GRPO = {
    'credit.rule': 'sparse',
    'credit.std': 'global',
    'loss.noise_power': 0.0,
    'loss.kl_form': 'flow_grpo',
    'rollout.kernel': 'sde',
    'rollout.noise': 'flow_grpo',
    'rollout.log_prob': 'gaussian',
}

FLOW_GRPO_LEVEL = 0.7  # of its noise table where a recipe has another; its code's for SD3.5

# All but TempFlow-GRPO, whose idea that is, and ours, named `..._weighted`, give transitions equal
# weights (loss.noise_power); those of `_CPS_CODE` weigh them by std^2 in their log-probability.
METHODS: Mapping[str, Method] = {
    'dense_grpo': Method(
        {'credit.rule': 'dense', 'loss.noise_power': 0.0},
        'Each transition gets what it added to the reward of the completed image.',
        'DenseGRPO, arXiv 2601.20218',
        'Completions and gains (Eq. 7 to 9), the clipped objective.',
        "Std, kernel, noise and form of the KL are the recipe's; Eq. 10 has `credit.std=group`, "
        'Eq. 6 `rollout.kernel=sde`, Eq. 4 `loss.kl_form=gaussian`. The command `calibrate` has '
        'Algorithm 1 as `calibration.rule=paper` with `calibration.eps2=0.01`; its default rule is '
        "ours. The transition into the clean image, and on SD3.5's grid the one before, add no "
        'noise and are not trained; `rollout.train_end` trains them.',
        'T + Σ (T − k − 1) over the completed states k',
    ),
    'flow_grpo': Method(
        _FLOW_GRPO,
        "Each transition gets the finished image's reward; the std is over the batch, as in the "
        "paper's code.",
        'Flow-GRPO, arXiv 2505.05470',
        'Noise table, log-probability averaged over elements, std over the batch and clip '
        'range of its code.',
        "The transition into the clean image, and on SD3.5's grid the one before, add no noise "
        '(its code adds some there); `rollout.train_end` trains them. The level of the noise is '
        "the recipe's if that has this table, and 0.7 otherwise; its configurations have 0.7 for "
        'SD3.5 and 0.9 for FLUX.',
        'T',
    ),
    'flow_grpo_weighted': Method(
        {**_FLOW_GRPO, 'loss.noise_power': 2.0},
        'Ours: Flow-GRPO, and transitions weighted by the square of their noise, so that all '
        'contribute gradients of equal size.',
        'no paper; from arXiv 2505.05470 and 2508.04324',
        'Flow-GRPO as above; weights std² in the place of the std that TempFlow-GRPO takes.',
        'It reaches the score of the demo with a tenth of its network evaluations, over three '
        'seeds of the miniature, where all weights are trained and an update takes 24 samples '
        '([the demo](results/demo/README.md#a-tenth-of-the-network-evaluations)); nothing is known '
        'of it on other models.',
        'T',
    ),
    'flow_cps': Method(
        {**_CPS_CODE, 'credit.rule': 'sparse', 'credit.std': 'global'},
        "Flow-GRPO on a kernel that adds no more noise than the next state has; its code's "
        'log-probability and clip range.',
        'Flow-CPS, arXiv 2509.05952',
        "Kernel (Eq. 10), its code's unscaled log-probability with clip range 1e-5, and noise 0.8 "
        '(its runs have 0.7 to 0.8).',
        'No KL to the reference. On policy the unscaled log-probability weighs a transition by '
        'std², as `loss.noise_power=2` does.',
        'T',
    ),
    'coca': Method(
        {'credit.rule': 'coca_to_go', 'credit.coca_signed': True, 'loss.noise_power': 0.0},
        "The finished image's advantage, shared out by how much each transition moved its "
        'prediction towards the image; no further image is scored.',
        'CoCA, arXiv 2505.19196',
        'Shares of the rise in similarity between prediction and final latent.',
        'The paper is about diffusion models and normalises rewards over time; here the '
        'shares scale the advantage of the finished image, and a share may be negative. A '
        'transition gets the sum of its own and all later shares; `credit.rule=coca_share` gives '
        'it its own alone. `credit.coca_alpha` mixes in the whole terminal reward.',
        'T',
    ),
    'coca_weighted': Method(
        {'credit.rule': 'coca_to_go', 'credit.coca_signed': True, 'loss.noise_power': 2.0},
        'Ours: shares as in `coca`, and transitions weighted by the square of their noise, so that '
        'all contribute gradients of equal size.',
        'no paper; from arXiv 2505.19196 and 2508.04324',
        'The shares of `coca`, of a transition and all later ones; weights std² in the place of '
        'the std that TempFlow-GRPO takes.',
        'It reaches the score of the demo with a third of its network evaluations, over three '
        'seeds of the miniature ([the demo](results/demo/README.md#with-adapters)); nothing is '
        'known of it on other models.',
        'T',
    ),
    'guard': Method(
        {
            'credit.rule': 'sparse',
            'credit.std': 'group',
            'loss.kind': 'guard',
            'loss.clip_range': 2e-6,
            'loss.noise_power': 0.0,
            'loss.beta': 0.0,
            'rollout.kernel': 'sde',
            'rollout.noise': 'flow_grpo',
            'rollout.level': 0.7,
            'rollout.log_prob': 'gaussian',
        },
        'The ratio is centred and scaled alike at all steps, so that clipping holds back all of '
        'them, on both sides.',
        'GRPO-Guard, arXiv 2510.22319',
        "Ratio log r' = mean(z Δμ), each step's loss divided by its length of the grid, clip range "
        '2e-6 (its GenEval runs; 4e-6 with PickScore), no KL.',
        'The keys `guard.*`, which watch for reward hacking, are something else. With one update '
        'per iteration, as in the recipes, the ratio is 1 and the method is PPO with the step '
        'weights σ / √Δ. `optim.updates` above 1, as in the published settings, reuses no sample: '
        'later updates train other prompts, off policy, against the means that the rollout keeps.',
        'T',
    ),
    'lire': Method(
        {
            'credit.rule': 'sparse',
            'credit.std': 'group',
            'loss.kind': 'list',
            'loss.noise_power': 0.0,
            'loss.beta': 0.0,
            'rollout.log_prob': 'gaussian',
        },
        'Listwise: within a group, the softmax of the log-ratios is to agree with that of the '
        'advantages.',
        'LIRE, arXiv 2405.13516',
        'Loss −Σ P R with its temperature of 2 on sums over elements; no clipping, no reference.',
        'LIRE is of language models. Here a list is the samples of a group at one transition, '
        'log-ratios take the place of log-probabilities (those of siblings differ by their noise '
        'alone, by 20 nats on the miniature), and advantages that of raw rewards. With any other '
        '`credit.rule` it is listwise too; `loss.kind=list_trajectory` has one list for all '
        'transitions. `loss.list_temperature` sets another temperature of log-ratios, '
        '`loss.list_reward_temperature` that of advantages.',
        'T',
    ),
    'sdpo': Method(
        {
            'credit.rule': 'sdpo',
            'credit.std': 'group',
            'loss.kind': 'pair',
            'loss.clip_range': 1e-4,
            'loss.noise_power': 0.0,
            'loss.step_decay': 0.99,
            'loss.beta': 0.0,
            'rollout.shared_noise': True,
        },
        'Three predictions of the clean image are scored, the others get a reward between theirs '
        'by similarity; pairs of samples of one initial noise fit the differences of their '
        'returns.',
        'SDPO, arXiv 2411.11727',
        'Anchor, interpolated rewards, returns with γ = 0.99 (`credit.sdpo_gamma`), the clipped '
        'square of the differences with its range 1e-4 and step weights 0.99^k; the last '
        'prediction is not decoded where it is the sample. A group shares its first prediction, '
        'so that the reward scores 2 G + 1 images.',
        'With one update per iteration, as in the recipes, the log-ratio is 0, and the gradient of '
        'the pairs is that of `loss.kind=grpo`, 4 G / (G − 1) times as long, which Adam takes '
        'away. All pairs of a group instead of single ones (`loss.pairs=neighbours`). Advantages '
        'are normalised in the group, where its code keeps returns of earlier iterations. The '
        "recipe's kernel stays: the source has SD-Turbo with DDIM, η = 1. To score completions "
        'instead of predictions is not built.',
        'T',
    ),
    'nft': Method(
        {
            'credit.rule': 'sparse',
            'credit.std': 'group',
            'loss.kind': 'nft',
            'loss.noise_power': 0.0,
            'loss.beta': 1e-4,
            'loss.draws': 10,
            'rollout.kernel': 'ode',
            'rollout.noise': 'constant',
            'rollout.shared_noise': False,
        },
        'On clean samples with fresh noise: good ones pull the velocity, bad ones push it away, '
        'measured from the old policy that sampled them.',
        'DiffusionNFT, arXiv 2509.16117',
        'Loss with b = 1, weights of the errors with their floor, r from advantages, the 1e-4 of '
        'the distance to the reference, the old policy and the schedules of its averages; samples '
        'by ODE from the old policy.',
        'Ten noise levels a sample, uniform in (0, 1), are our choice. The recipe keeps its '
        'guidance, which policy and old policy then both have; the paper trains without '
        '(`model.guidance=1` on SD3.5). Schedules count iterations. A sample whose advantage is 0 '
        'adds nothing. Not for Stable Diffusion 1.5, whose noise levels end within (0, 1), nor for '
        'models distilled to few steps (`flux2_klein_ocr`, `zimage_ocr`): its authors do not '
        'support them, because the loss is that of flow matching; train the base.',
        'T; the update evaluates policy, old policy and reference at every noise level',
    ),
    'winners': Method(
        {
            'loss.kind': 'winners',
            'credit.rule': 'sparse',
            'loss.noise_power': 0.0,
            'loss.beta': 0.0,
        },
        'The best image of each prompt is learned by the regression that the model was trained '
        'with: best-of-N search, distilled.',
        'RAFT, arXiv 2304.06767',
        'Flow-matching regression on the best sample of each prompt.',
        'The paper ranks answers of a language model and filters over all prompts; here every '
        'group of a prompt has its winner. With classifier-free guidance the guided velocity is '
        'fitted; `model.guidance=1` fits the plain one. SD1.5, which predicts the noise, is '
        'refused. Like `nft`, not for models distilled to few steps.',
        'T; the update evaluates the microbatches with winners (all samples with `loss.beta` above '
        '0 or `loss.measure_kl`)',
    ),
    'stepwise': Method(
        {
            'credit.rule': 'dense',
            'credit.completion_steps': 5,
            'credit.centre': 'joint',
            'credit.std': 'joint',
            'loss.noise_power': 0.0,
            'loss.beta': 0.0,
            'loss.kl_form': 'gaussian',
            'rollout.kernel': 'cps',
            'rollout.noise': 'ddim_like',
            'rollout.level': 0.8,
            'rollout.first': 1,
        },
        "DenseGRPO's gains by completions of five ODE steps, normalised over all transitions of a "
        'group together; a kernel that adds no noise at first.',
        'Stepwise-Flow-GRPO, arXiv 2603.28718',
        "Gains of completions with T' = 5 steps; one mean and one std over all gains of a group; "
        "std = η s' √(1 − s) of the noise.",
        'A completion begins with the velocity of its own state, so n steps take n − 1 further '
        'evaluations. η = 0.8 is ours. The first transition, which has no noise at s = 1, is '
        'neither trained nor normalised. There is no KL to the reference. With T = 6, as on the '
        'miniature, five steps are whole completions.',
        'T + Σ (min(5, T − k) − 1) over the completed states k',
    ),
    'tp_grpo': Method(
        {**_CPS_CODE, 'credit.rule': 'turning', 'credit.std': 'group'},
        'Gains as in DenseGRPO, but a transition that turns the reward to its final course also '
        'gets all that follows.',
        'TP-GRPO, arXiv 2602.06422',
        'Turning points by signs of neighbouring gains and of what follows; kernel, noise, '
        'log-probability and clip range of its FLUX configurations, which have T = 6 and groups of '
        '24 as our recipes. Of their 5 or 6 noisy transitions the kernel leaves the sixth silent.',
        'The unscaled log-probability weighs transitions by std², as in `flow_cps`. '
        'The bonuses are not balanced in number between rise and fall. With fewer trained '
        'transitions the first of the trajectory still counts as first. Noise of 0.8 is that of '
        'FLUX; its configurations have 0.7 for SD3.5.',
        'T + Σ (T − k − 1) over the completed states k',
    ),
    'tp_grpo_code': Method(
        {**_CPS_CODE, 'credit.rule': 'turning_code', 'credit.std': 'group'},
        "TP-GRPO as its code ships it: each transition gets the finished image's reward minus the "
        "ODE's, and a turning point its own gain on top.",
        'TP-GRPO, arXiv 2602.06422',
        'The rule that all shipped configurations set: no condition on what follows, bonus '
        'V_{k+1} − V_k with weight 1, nothing balanced or propagated.',
        'The unscaled log-probability weighs transitions by std², as in `flow_cps`. '
        'It mirrors the paper, whose transitions get gains and whose turning points get the long '
        'term; without turning points it is sparse credit with a baseline. Noise of 0.8 is that of '
        'FLUX; its configurations have 0.7 for SD3.5.',
        'T + Σ (T − k − 1) over the completed states k',
    ),
    **DANCE_METHODS,
    'd2_align': Method(
        {**_FLOW_GRPO, 'loss.beta': 0.0, 'd2.file': 'direction.npz', 'd2.omega': 1.5},
        'Flow-GRPO on a reward whose text embedding is moved along a learned direction, the '
        "model's average picture, so that rewarded pictures stay near it and stay diverse.",
        'D²-Align, arXiv 2512.24146',
        'The guided embedding, its scale 1.5, stage 1 in its objective and number of steps; the '
        'guided reward inside GRPO, which the paper also reports.',
        'The direction comes first, from `python -m densegrpo_jax.direction`, and `d2.file` names '
        'its file. Only for rewards with an embedding (PickScore, HPSv2, CLIPScore, and '
        '`configs/tiny_scene.py`); OCR is refused. Optimiser, batch and pictures of stage 1 are '
        "ours. The paper's own stage 2, backpropagation through the reward, is not built.",
        'T, and once `d2.pictures` by the ODE',
    ),
    **BRANCH_METHODS,
    'gae': Method(
        {'credit.rule': 'gae', 'credit.gae_lambda': 0.5, 'loss.noise_power': 0.0},
        'Between dense and sparse: a transition also gets part of what later ones added.',
        'GAE, arXiv 1506.02438',
        'A_k = d_k + λ A_{k+1} of the gains d, with λ = 0.5 and no discount.',
        'A value function is not learned: the rewards of the completions stand for it.',
        'T + Σ (T − k − 1) over the completed states k',
    ),
}


# Names that papers and other code use -> ours, for the error; none is taken for ours.
_NAMES_ELSEWHERE = {
    'cps': 'flow_cps',
    'dancegrpo': 'dance',
    'mixgrpo': 'mix',
    'branchgrpo': 'branch',
    'tempflowgrpo': 'temp_flow',
    'granulargrpo': 'g2rpo',
    'grpoguard': 'guard',
    'diffusionnft': 'nft',
    'stepwiseflowgrpo': 'stepwise',
    'raft': 'winners',
}


def apply_method(config, name: str):
    """Sets the overrides of a method, and its name in the label; returns the configuration.

    Raises:
      ValueError: no such method; the message lists the methods.
    """
    if name not in METHODS:
        plain = lambda text: ''.join(filter(str.isalnum, text.lower()))
        ours = {**{plain(known): known for known in METHODS}, **_NAMES_ELSEWHERE}
        close = [ours[plain(name)]] if plain(name) in ours else []
        close = close or difflib.get_close_matches(name, METHODS, 1)
        hint = f'did you mean {close[0]!r}? ' if close else ''
        raise ValueError(f'method={name} is not known; {hint}methods: {", ".join(METHODS)}')
    overrides, table = METHODS[name].overrides, config.rollout.noise
    config.rollout.update(first=0, last=0)  # a recipe's window is of its own credit
    config.update_from_flattened_dict(dict(overrides))
    if config.rollout.noise == 'flow_grpo' != table and 'rollout.level' not in overrides:
        config.rollout.level = FLOW_GRPO_LEVEL  # the recipe's is of another table
    earlier, _, last = config.label.rpartition(', ')
    if last == 'dense credit' or last in METHODS:  # this method takes its place
        config.label = earlier
    config.label = f'{config.label}, {name}'
    return config
