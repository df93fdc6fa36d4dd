"""The original single-file checkpoints of FLUX.1 (flux1-dev.safetensors) and FLUX.2 [klein]
(flux-2-klein-4b.safetensors), read as if their tensors had Diffusers' names and shapes.

Nothing is copied or converted up front: each name stands for some rows of a stored tensor, and only
the parts that a device needs are read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from densegrpo_jax.networks.flux import FluxConfig
from densegrpo_jax.networks.flux2 import Flux2Config
from densegrpo_jax.pipelines.weights.stored import Rows

PREFIX = 'model.diffusion_model.'  # of files that ComfyUI wrote


class Original(NamedTuple):
    """Where the layers of an original checkpoint are in Diffusers.

    outside: original name -> Diffusers name, for layers that are equal in both. stacks: original
    stack -> (stack in Diffusers, {original layer: its layers in Diffusers, by rows}, {norm: norm}).
    """

    outside: dict[str, str]
    stacks: dict[str, tuple[str, dict[str, tuple[str, ...]], dict[str, str]]]


_DOUBLE_NORMS = {
    'img_attn.norm.query_norm': 'attn.norm_q',
    'img_attn.norm.key_norm': 'attn.norm_k',
    'txt_attn.norm.query_norm': 'attn.norm_added_q',
    'txt_attn.norm.key_norm': 'attn.norm_added_k',
}
_SINGLE_NORMS = {'norm.query_norm': 'attn.norm_q', 'norm.key_norm': 'attn.norm_k'}
_DOUBLE_ATTENTION = {
    'img_attn.qkv': ('attn.to_q', 'attn.to_k', 'attn.to_v'),
    'img_attn.proj': ('attn.to_out.0',),
    'txt_attn.qkv': ('attn.add_q_proj', 'attn.add_k_proj', 'attn.add_v_proj'),
    'txt_attn.proj': ('attn.to_add_out',),
}
FLUX = Original(
    outside={
        'img_in': 'x_embedder',
        'txt_in': 'context_embedder',
        'final_layer.linear': 'proj_out',
        'time_in.in_layer': 'time_text_embed.timestep_embedder.linear_1',
        'time_in.out_layer': 'time_text_embed.timestep_embedder.linear_2',
        'guidance_in.in_layer': 'time_text_embed.guidance_embedder.linear_1',
        'guidance_in.out_layer': 'time_text_embed.guidance_embedder.linear_2',
        'vector_in.in_layer': 'time_text_embed.text_embedder.linear_1',
        'vector_in.out_layer': 'time_text_embed.text_embedder.linear_2',
    },
    stacks={
        'double_blocks': (
            'transformer_blocks',
            {
                'img_mod.lin': ('norm1.linear',),
                'txt_mod.lin': ('norm1_context.linear',),
                **_DOUBLE_ATTENTION,
                'img_mlp.0': ('ff.net.0.proj',),
                'img_mlp.2': ('ff.net.2',),
                'txt_mlp.0': ('ff_context.net.0.proj',),
                'txt_mlp.2': ('ff_context.net.2',),
            },
            _DOUBLE_NORMS,
        ),
        'single_blocks': (
            'single_transformer_blocks',
            {
                'linear1': ('attn.to_q', 'attn.to_k', 'attn.to_v', 'proj_mlp'),
                'linear2': ('proj_out',),
                'modulation.lin': ('norm.linear',),
            },
            _SINGLE_NORMS,
        ),
    },
)
FLUX2 = Original(
    outside={
        'img_in': 'x_embedder',
        'txt_in': 'context_embedder',
        'final_layer.linear': 'proj_out',
        'time_in.in_layer': 'time_guidance_embed.timestep_embedder.linear_1',
        'time_in.out_layer': 'time_guidance_embed.timestep_embedder.linear_2',
        'double_stream_modulation_img.lin': 'double_stream_modulation_img.linear',
        'double_stream_modulation_txt.lin': 'double_stream_modulation_txt.linear',
        'single_stream_modulation.lin': 'single_stream_modulation.linear',
    },
    stacks={
        'double_blocks': (
            'transformer_blocks',
            {
                **_DOUBLE_ATTENTION,
                'img_mlp.0': ('ff.linear_in',),
                'img_mlp.2': ('ff.linear_out',),
                'txt_mlp.0': ('ff_context.linear_in',),
                'txt_mlp.2': ('ff_context.linear_out',),
            },
            _DOUBLE_NORMS,
        ),
        'single_blocks': (
            'single_transformer_blocks',
            {'linear1': ('attn.to_qkv_mlp_proj',), 'linear2': ('attn.to_out',)},
            _SINGLE_NORMS,
        ),
    },
)


def is_original(keys) -> bool:
    """Whether these are the keys of an original checkpoint."""
    return any(key.removeprefix(PREFIX).startswith('double_blocks.') for key in keys)


def as_diffusers(
    tensors: dict[str, Any], config: FluxConfig | Flux2Config, original: Original
) -> dict[str, Any]:
    """Diffusers' key -> the stored rows, for every tensor of an original checkpoint.

    Keys of no known layer keep their names, so that the network's table reports them.
    """
    rest = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    result, width = {}, config.hidden_dim

    def move(source: str, target: str, kinds=('weight', 'bias')):
        for kind in kinds:
            if f'{source}.{kind}' in rest:
                result[f'{target}.{"weight" if kind == "scale" else kind}'] = rest.pop(
                    f'{source}.{kind}'
                )

    def split(source: str, targets: list[str]):
        for kind in ('weight', 'bias'):
            tensor, row = rest.pop(f'{source}.{kind}', None), 0
            for target in targets if tensor is not None else ():
                size = 4 * width if target.endswith('proj_mlp') else width
                result[f'{target}.{kind}'] = Rows(tensor, (row, row + size))
                row += size

    for source, target in original.outside.items():
        move(source, target)
    for kind in ('weight', 'bias'):  # shift and scale change places
        if (tensor := rest.pop(f'final_layer.adaLN_modulation.1.{kind}', None)) is not None:
            result[f'norm_out.linear.{kind}'] = Rows(tensor, (width, 2 * width), (0, width))
    for (stack, (ours, layers, norms)), length in zip(
        original.stacks.items(), (config.num_layers, config.num_single_layers)
    ):
        for i in range(length):
            source, target = f'{stack}.{i}', f'{ours}.{i}'
            for name, members in layers.items():
                if len(members) == 1:
                    move(f'{source}.{name}', f'{target}.{members[0]}')
                else:
                    split(f'{source}.{name}', [f'{target}.{member}' for member in members])
            for name, norm in norms.items():
                move(f'{source}.{name}', f'{target}.{norm}', ('scale',))
    return result | rest
