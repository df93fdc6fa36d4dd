"""The rows of `methods` whose samples share a part of their trajectory: branches and trees."""

from __future__ import annotations

from collections.abc import Mapping

from densegrpo_jax.config.method_row import ONE_START, Method

BRANCH_METHODS: Mapping[str, Method] = {
    'g2rpo': Method(
        {
            **ONE_START,
            'plan.kind': 'branch',
            'plan.active': 'first_half',
            'plan.strides': (1, 2),
            'credit.rule': 'branch',
            'rollout.noise': 'flow_grpo',
            'rollout.level': 0.7,
        },
        'One noisy step at a time: the samples of a prompt leave one silent trajectory at the same '
        'step and are completed with every and with every second grid point; the advantages add.',
        'G2RPO, arXiv 2510.01982',
        'Branches of the first half of the grid, normalisation per stride and per reward among '
        'siblings, the sum before the clip to ±5, clip range 1e-4, no KL. Strides 1 and 2 are '
        'those of both scripts.',
        'A completion with stride λ has ⌈(T − k − 1)/λ⌉ steps, evenly spaced in the index, as many '
        'as in the code; grids of paper and code differ from ours and from each other. Population '
        'std with eps. One update trains all active steps together; paper and code take one '
        'optimiser step for each of them in turn.',
        'A/G + Σ (T − k − 1) over the active steps k, the last of which is A − 1, and '
        '⌈(T − k − 1)/λ⌉ − 1 more for each further stride λ whose grid differs; the G samples '
        'share the trajectory of A evaluations',
    ),
    'e_grpo': Method(
        {
            **ONE_START,
            'plan.kind': 'branch',
            'plan.active': 'first_half',
            'plan.strides': (1,),
            'plan.merge_tau': 2.2,
            'credit.rule': 'branch',
            'rollout.noise': 'flow_grpo',
            'rollout.level': 0.7,
        },
        "G2RPO's branches, with noisy steps of low entropy merged with those after them, until one "
        'step adds enough noise to tell samples apart.',
        'E-GRPO, arXiv 2601.00423',
        'Entropy of a step of the sde kernel, merging, active steps, normalisation among siblings, '
        'clip range 1e-4, no KL, τ = 2.2.',
        'τ bounds e^h of one element, the reading in which the published thresholds differ. A '
        'merged step ends at the last noisy state at most. A branch goes on from the end of its '
        'step; the code goes on from the state after its start. τ was tuned at T = 16; other grids '
        'have other entropies. One update trains all active steps together; the paper takes one '
        'optimiser step for each. The released configuration trains strides 1 and 2, as `g2rpo`, '
        'and its lists of merges are all ones, so that it merges nothing; the paper has stride 1.',
        'A/G + Σ (T − k − l_k) over the active steps k of length l_k, the last of which is A − 1',
    ),
    'temp_flow': Method(
        {
            'plan.kind': 'branch',
            'plan.active': 'window',
            'plan.strides': (1,),
            'plan.seeds': 4,
            'credit.rule': 'branch',
            'credit.siblings': 'seed',
            'credit.std': 'group',
            'loss.noise_power': 1.0,
            'loss.clip_range': 1e-4,
            'loss.beta': 0.004,
            'loss.kl_form': 'gaussian',
            'rollout.kernel': 'sde',
            'rollout.noise': 'flow_grpo',
            'rollout.level': 0.7,
            'rollout.shared_noise': True,
        },
        'Branches at every step from four trajectories of a prompt; a transition weighs as much as '
        'the std of its noise.',
        'TempFlow-GRPO, arXiv 2508.04324',
        'Branches, four seeds, weights ∝ std with mean 1 over the trained transitions, KL 0.004 '
        'over the variance of the step.',
        'Samples are compared within a seed; `credit.siblings=prompt` and with it '
        '`credit.std=global` are the other two forms of its code. Transitions into an almost clean '
        'latent are left out, which are two on the grid of SD3.5; so the weights are 2.1 times the '
        'std there, where its code has 2.25. Its 1.73 for FLUX belongs to noise of 0.9 and T = 10.',
        '4A/G + Σ (T − k − 1) over the active steps k, the last of which is A − 1',
    ),
    'branch': Method(
        {
            'plan.kind': 'tree',
            'plan.splits': (0, 2),
            'plan.split_noise': 4.0,
            'credit.rule': 'sparse',
            'credit.std': 'group',
            'loss.noise_power': 0.0,
            'loss.clip_range': 1e-3,
            'loss.beta': 0.0,
            'loss.kl_form': 'gaussian',
            'rollout.kernel': 'sde',
            'rollout.noise': 'constant',
            'rollout.level': 0.3,
            'rollout.shared_noise': True,
        },
        'The samples of a prompt are the leaves of a tree: they begin together and split at chosen '
        'steps; a transition gets the mean reward of the leaves below it.',
        'BranchGRPO, arXiv 2509.06040',
        'Splits, value of a node = plain mean of its leaves, normalisation over the nodes of a '
        "depth, noise of siblings (ξ + 4η)/√17 (the paper's), constant noise 0.3, clip range 1e-3.",
        'Its code scales the noise of siblings by 4 and keeps the std of the log-probability. The '
        'first split is into as many as the later ones leave (G/2 with two splits); these are two '
        'in the paper, with 16 samples, T = 20 and splits 0, 3, 6, 9. Every leaf trains its whole '
        'path, so that depths count alike. All noisy transitions are trained; its script trains a '
        'part of 0.6, and `moving.steps`, which chooses parts, is refused with trees. Pruning, the '
        'softmax of log-probabilities and ODE steps between splits are not built.',
        'Σ 1/n_k over the steps k, at which n_k samples are still one',
    ),
}
