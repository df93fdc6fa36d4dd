"""The weight table of a CLIP in OpenCLIP's own layout (open_clip_pytorch_model), the layout of
HPSv2's checkpoints.
"""

from typing import Any

from densegrpo_jax.networks.weight_rules import WeightRule, linear_rules, norm_rules
from densegrpo_jax.pipelines.weights.stored import Rows

PREFIX = 'model.'  # of files that were saved from inside another module


def split_attention(tensors: dict[str, Any]) -> dict[str, Any]:
    """Splits each joint input projection of attention into three: '.in_proj_weight' [3 D, D] ->
    '.q_proj.weight', ... [D, D].
    """
    result = {}
    for key, tensor in tensors.items():
        stem, joint, kind = key.rpartition('.in_proj_')
        if not joint:
            result[key] = tensor
            continue
        rows = tensor.get_shape()[0] // 3
        for i, name in enumerate('qkv'):
            result[f'{stem}.{name}_proj.{kind}'] = Rows(tensor, (i * rows, (i + 1) * rows))
    return result


def weight_rules() -> list[WeightRule]:
    """The table from the result of `split_attention` to the parameters of `clip.Clip`. Projections
    are not transposed here.
    """
    rules = [
        WeightRule('logit_scale', 'logit_scale'),
        WeightRule('token_embedding.weight', 'text_model/token_embedding/embedding', 'embedding'),
        WeightRule('positional_embedding', 'text_model/position_embedding/embedding', 'embedding'),
        WeightRule('text_projection', 'text_model/text_projection'),
        WeightRule('attn_mask', None),  # a buffer of old files
        *norm_rules('ln_final', 'text_model/final_layer_norm'),
        WeightRule('visual.class_embedding', 'vision_model/class_embedding'),
        WeightRule('visual.positional_embedding', 'vision_model/position_embedding'),
        WeightRule('visual.conv1.weight', 'vision_model/patch_embedding', 'conv'),
        WeightRule('visual.proj', 'vision_model/visual_projection'),
        *norm_rules('visual.ln_pre', 'vision_model/pre_norm'),
        *norm_rules('visual.ln_post', 'vision_model/post_norm'),
    ]
    for tower, ours in (('transformer', 'text_model'), ('visual.transformer', 'vision_model')):
        source, target = f'{tower}.resblocks.{{i}}', f'{ours}/layers'
        rules += norm_rules(f'{source}.ln_{{p:[12]}}', f'{target}/layer_norm{{p}}')
        rules += linear_rules(
            f'{source}.attn.{{p:[qkv]_proj|out_proj}}', f'{target}/self_attn/{{p}}'
        )
        rules += linear_rules(f'{source}.mlp.c_fc', f'{target}/mlp/fc1')
        rules += linear_rules(f'{source}.mlp.c_proj', f'{target}/mlp/fc2')
    return rules
