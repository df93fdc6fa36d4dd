"""What keys name of networks. Imports no Flax: mistakes in keys, --help and the first line of a run
need not wait for it.
"""

import jax

# The layers of joint attention by their names in the checkpoints.
JOINT_ATTENTION = (
    'attn.to_q',
    'attn.to_k',
    'attn.to_v',
    'attn.to_out.0',
    'attn.add_q_proj',
    'attn.add_k_proj',
    'attn.add_v_proj',
    'attn.to_add_out',
)
# Where adapters are trained: attention of all blocks, feed-forward of the double blocks.
FLUX_TARGETS = (
    *JOINT_ATTENTION,
    'ff.net.0.proj',
    'ff.net.2',
    'ff_context.net.0.proj',
    'ff_context.net.2',
)

# What a block keeps for its gradient, beside its inputs.
REMAT_POLICIES = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'attention': jax.checkpoint_policies.save_only_these_names('attention'),
}

# Of a quantised base.
FORMATS = ('int8', 'nf4')
