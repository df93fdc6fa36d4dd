"""Parameters of equal blocks: one subtree per block, '<stack>_0', '<stack>_1', ..., or one,
'<stack>', with a leading block axis.
"""

import jax
import jax.numpy as jnp


def stack_blocks(tree: dict, *stacks: str) -> dict:
    """Unscanned to scanned layout; KeyError if the blocks of a stack are not numbered from 0
    without gaps.
    """
    tree = dict(tree)
    for stack in stacks:
        count = sum(name.rpartition('_')[0] == stack for name in tree)
        tree[stack] = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(tree.pop(f'{stack}_{i}') for i in range(count))
        )
    return tree


def unstack_blocks(tree: dict, *stacks: str) -> dict:
    """Inverse of `stack_blocks`."""
    tree = dict(tree)
    for stack in stacks:
        blocks = tree.pop(stack)
        for i in range(jax.tree.leaves(blocks)[0].shape[0]):
            tree[f'{stack}_{i}'] = jax.tree.map(lambda leaf: leaf[i], blocks)
    return tree
