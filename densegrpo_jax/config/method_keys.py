"""Keys of the method: rollout, noise and its calibration, credit, loss."""

from __future__ import annotations

from densegrpo_jax.config.key import MACHINE, choice, number, part, positive, switch, text, whole
from densegrpo_jax.core.advantages import CENTRES, STD_SCOPES
from densegrpo_jax.core.calibration import RULES
from densegrpo_jax.core.combine import COMBINATIONS
from densegrpo_jax.core.credit_rules import CREDIT_RULES
from densegrpo_jax.core.grpo_loss import KL_FORMS
from densegrpo_jax.core.guide import PROCESS_CREDITS
from densegrpo_jax.core.kernels import KERNELS
from densegrpo_jax.core.losses import LOSSES
from densegrpo_jax.core.noise_tables import NOISE_TABLES
from densegrpo_jax.core.pair_loss import PAIRS
from densegrpo_jax.core.roles import OLD_DECAYS
from densegrpo_jax.core.sde_step import LOG_PROBS

STEPS = 1000  # most denoising steps of a trajectory

ROLLOUT = {
    'steps': whole(6, 'T: transitions of a trajectory.', 1, STEPS),
    'prompts': whole(48, 'P: prompts in an iteration.'),
    'group': whole(24, 'G: samples of each prompt; an advantage compares them.', 2),
    'prompts_per_batch': whole(
        48,
        'Prompts sampled together; their scoring overlaps the sampling of the next batch.',
        kind=MACHINE,
    ),
    'kernel': part(
        'cps',
        'Kernel of the stochastic transitions (core/kernels.py); losses on clean samples may have '
        "'ode', which adds no noise.",
        KERNELS,
    ),
    'noise': part(
        'constant',
        "Noise levels: 'flow_grpo' = level * sqrt(s / (1 - s)); 'constant' = level at every step "
        "(eta of cps); 'ddim' = DDIM's eta; 'ddim_like' = std level * s' * sqrt(1 - s), for cps.",
        NOISE_TABLES,
    ),
    'level': positive(0.8, 'Level of the noise; without noise no transition can be trained.', 1000),
    'shared_noise': switch(
        False,
        'One initial noise per prompt (DanceGRPO), or per seed (plan.seeds); transitions keep '
        "each sample's own noise.",
    ),
    'first': whole(0, 'First transition of the stochastic window.', 0, STEPS),
    'last': whole(0, 'End of the stochastic window, exclusive; 0 = T.', 0, STEPS),
    'noisy_end': switch(
        False, "Noise, untrained, in the transitions into clean latents too (Flow-GRPO's code)."
    ),
    'train_end': switch(
        False, 'Noise in the transitions into clean latents, and train them (the paper).'
    ),
    'log_prob': choice(
        'gaussian',
        "Log-probability of a transition: 'unscaled' is that of the CPS paper's code, with a clip "
        'range of 1e-5.',
        LOG_PROBS,
    ),
}

NOISE = {
    'psi_path': text(
        '',
        'JSON file of densegrpo_jax.calibrate: its psi instead of rollout.noise and rollout.level.',
    ),
    'interpolate': switch(
        False, 'Use psi on another grid or image size too, linear in the noise level.'
    ),
    'calibrate': switch(
        False, 'Calibrate first, into WORKDIR/psi.json, and train with the result.'
    ),
}

CALIBRATION = {
    'rule': choice(
        'scaled',
        "'paper' is Algorithm 1 as printed, with eps2=0.01 (core/calibration.py says what is wrong "
        'with it).',
        RULES,
    ),
    # The signs of one prompt's gains are not independent, so use many prompts with few samples. At
    # N = 96 one iteration shows an imbalance of one in ten.
    'prompts': whole(24, 'An iteration samples N = prompts * group trajectories.'),
    'group': whole(4, 'Samples of each prompt.'),
    'iterations': whole(60, 'At most.', high=100_000),
    'eps1': whole(2, "'paper': balanced where |p - q| < eps1."),
    # moves psi at most by a factor of e^3 = 20 in 60 iterations; the paper: 0.01
    'eps2': positive(0.05, "Step of psi; 'scaled': relative, 'paper': absolute, printed as 0.01."),
    'z': positive(1.0, "'scaled': balanced where |p - q| <= z sqrt(p + q)."),
    # Flow-GRPO's own first step reaches 3.7; eta of cps ends at 1 in any case.
    'low': positive(0.02, 'Lower bound of psi: a transition without exploration learns nothing.'),
    'high': positive(5.0, 'Upper bound of psi.'),
    'min_count': whole(8, "'scaled': with fewer non-zero gains psi stays."),
    'window': whole(10, 'Iterations to average, for the result and for the end.'),
    # For a walk without drift, with steps of eps2, the means differ by 0.8 eps2 sqrt(2 window / 3)
    # = 0.2 of a steady drift, which is eps2 window.
    'drift': positive(
        0.2,
        'Calibration ends once the means of two consecutive windows differ by less than this share '
        'of the largest drift, which steps all in one direction make; averaged over transitions.',
    ),
}

# What is read with each value of noise.calibrate, and with each calibration.rule.
CALIBRATE_HEEDED = {False: (), True: tuple(f'calibration.{name}' for name in CALIBRATION)}
RULE_HEEDED = {'scaled': ('calibration.z', 'calibration.min_count'), 'paper': ('calibration.eps1',)}

# The keys that each `credit.process` reads.
_WEIGHTS = ('credit.outcome_weight', 'credit.process_weight')
PROCESS_HEEDED = {'none': (), **dict.fromkeys(PROCESS_CREDITS, _WEIGHTS)}

CREDIT = {
    'rule': part(
        'dense', "How a sample's rewards become rewards of its transitions.", CREDIT_RULES
    ),
    'completion_steps': whole(
        0, 'n: ODE steps of a completion; 0 = all remaining grid points (n = t).', 0, STEPS
    ),
    'completion_every': whole(
        1, 'Complete and score every m-th state; interpolate the rewards between.', 1, STEPS
    ),
    'coca_window': whole(1, 'CoCA: transitions whose similarities are averaged.', 1, STEPS),
    'coca_alpha': number(
        0.0, "'coca_to_go': weight of the whole terminal reward against the share to come.", 0, 1
    ),
    # Shares add up to 1: advantages are up to T times smaller than other rules', so that loss.beta
    # weighs more against them.
    'coca_signed': switch(
        False,
        "Share out the normalised terminal reward (CoCA's code), instead of normalising the "
        'shares of the raw one.',
    ),
    'gae_lambda': number(
        0.5,
        "'gae': 0 is 'dense', 1 the terminal reward minus that of the state's completion.",
        0,
        1,
    ),
    'sdpo_gamma': number(0.99, "'sdpo': discount of the rewards of later predictions.", 0, 1),
    'combine': choice(
        'sum',
        "The form in which several rewards are added: 'sum' (raw scores), 'normalised' scores or "
        "'advantages' (core/combine.py).",
        COMBINATIONS,
    ),
    'std': choice(
        'group',
        "The divisor of rewards: the std within the group, 'global' (Flow-GRPO's code): the std of "
        "the transition over the batch, 'pooled': one std for all trained transitions, or 'joint': "
        'one for those of a group.',
        STD_SCOPES,
    ),
    'centre': choice(
        'step',
        "What is subtracted from a group's rewards: their mean at the transition, or 'joint': over "
        "all trained transitions, with std 'joint' or 'pooled' (Stepwise-Flow-GRPO).",
        CENTRES,
    ),
    'siblings': choice(
        'prompt',
        "The samples that are compared: those of a 'prompt', or of one 'seed' of it (plan.seeds).",
        ('prompt', 'seed'),
    ),
    'std_eps': number(1e-4, 'Added to the std.', 0),
    'clip': positive(5.0, 'Advantages are clipped to [-clip, clip].'),
    'process': choice(
        'none',
        'A second advantage of the transitions in guide.steps, by the process reward r: r of the '
        "state 'after' the step, of the one 'before' it (Euphonium's code), or the 'gain' across "
        'it. Each advantage has its own surrogate; the surrogates are added.',
        PROCESS_HEEDED,
    ),
    'outcome_weight': number(1.0, "Weight of the surrogate of the images' reward.", 0),
    'process_weight': number(1.0, 'Weight of the surrogate of the process reward.', 0),
}

LOSS = {
    'kind': part(
        'grpo',
        "What an update minimises; 'grpo' is the clipped surrogate, 'guard' that of GRPO-Guard's "
        "ratio, 'list' LIRE's listwise loss (a list for each transition; "
        "'list_trajectory': for all of a sample's), 'pair' SDPO's, 'nft' DiffusionNFT's "
        '(core/losses.py).',
        LOSSES,
    ),
    'clip_range': positive(1e-4, "Clip range of the ratio; 2e-6 to 4e-6 for 'guard'."),
    'noise_power': number(
        0.0,
        'Weight of a transition: the std of its noise to this power, scaled to a mean of 1; 1 = '
        'TempFlow-GRPO.',
        0,
        4,
    ),
    'list_temperature': number(
        0.0,
        "'list': the temperature of log-ratios (means over n elements) in the softmax of a group; "
        "0 = 2 / n, LIRE's on sums.",
        0,
    ),
    'list_reward_temperature': positive(
        1.0, "'list': the temperature of advantages in the softmax of a group."
    ),
    'pairs': choice('all', "'pair': the pairs of a group, or 'neighbours' 2i, 2i + 1.", PAIRS),
    'step_decay': number(
        1.0,
        'Weight of transition k: this to the power k, on top of noise_power; SDPO: 0.99.',
        0,
        1,
        above=True,
    ),
    'nft_strength': positive(
        1.0, "'nft': b, how far the policy leads the old one in the mixtures of the loss.", 1000
    ),
    'old_decay': choice(
        'rising',
        "'nft': what the old policy keeps of itself after iteration i: 'none'; 'rising' = "
        "min(0.001 i, 0.5); 'late' = 0 up to 75, then min(0.0075 (i - 75), 0.999).",
        OLD_DECAYS,
    ),
    'draws': whole(
        1,
        'Losses on clean samples: the noise levels, each with its noise, at which one is trained.',
        1,
        1000,
    ),
    'beta': number(0.0, 'Weight of the KL to the reference.', 0),
    'measure_kl': switch(
        False,
        'Log the KL to the reference with beta = 0 too; costs a forward pass of the reference.',
    ),
    'kl_form': choice(
        'gaussian', "'flow_grpo' divides by the noise level (its code, kernel 'sde').", KL_FORMS
    ),
    'cfg': switch(
        True,
        "The policy is the guided network; False: the prompt's own prediction, guidance only "
        'moves the samples (SD3.5).',
    ),
}
