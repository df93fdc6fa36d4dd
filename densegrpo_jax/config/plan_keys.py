"""Keys of the rollout's plan: its shape, and what the shapes decide."""

from __future__ import annotations

from densegrpo_jax.config.key import Key, choice, number, part, positive, whole
from densegrpo_jax.core.plan_kinds import ACTIVE, PLAN_KINDS

PLAN = {
    'kind': part(
        'trajectory',
        "Shape of a rollout (the command plan is something else): 'trajectory'; 'branch': one "
        'noisy step at a time, from a silent trajectory that the samples of a prompt share '
        "(G2RPO); 'tree': trajectories that begin together and split (BranchGRPO).",
        PLAN_KINDS,
    ),
    'active': choice(
        'window',
        "Trained transitions: all of rollout.first ... rollout.last, or of these the 'first_half' "
        'of the grid.',
        ACTIVE,
    ),
    'seeds': whole(
        1,
        'With one initial noise for several samples: the number of initial noises of a prompt; '
        'rollout.group / plan.seeds samples share each (TempFlow-GRPO).',
    ),
    'strides': Key(
        (1,),
        "'branch': complete every branch once for each stride, with every stride-th grid point; "
        'the advantages are added before they are clipped.',
        item=int,
        length=1,
    ),
    'merge_tau': number(
        0.0,
        "'branch': a step whose entropy per element h has e^h at most this is merged with those "
        'after it (E-GRPO); 0: none.',
        0,
    ),
    'merge': Key(
        (),
        "'branch': the length of the noisy step at each active transition, instead of merge_tau.",
        item=int,
    ),
    'splits': Key(
        (0,),
        "'tree': steps at which every trajectory splits in two; at the first, into all that the "
        'later ones leave.',
        item=int,
        length=1,
    ),
    'split_noise': positive(
        4.0,
        "Weight of a child's own noise at a split, against 1 for that which its siblings share.",
    ),
}

# Turns any configuration into one that samples single trajectories, of the same active transitions.
AS_TRAJECTORY = {f'plan.{name}': key.default for name, key in PLAN.items() if name != 'active'}
