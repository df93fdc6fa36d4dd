"""The original single-file checkpoints of FLUX.1 (flux1-dev.safetensors), FLUX.2 [klein]
(flux-2-klein-4b.safetensors) and Z-Image (z_image_turbo_bf16.safetensors), read as if their tensors
had Diffusers' names and shapes.

Nothing is copied or converted up front: each name stands for some rows of a stored tensor, and only
the parts that a device needs are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from densegrpo_jax.pipelines.weights.stored import Rows

PREFIX = 'model.diffusion_model.'  # of files that ComfyUI wrote


class Original(NamedTuple):
    """Where the layers of an original checkpoint are in Diffusers.

    outside: original name -> Diffusers name, for layers that are equal in both. stacks: original
    stack -> (stack in Diffusers, {original layer: its layers in Diffusers, by rows}, {norm: norm}).
    shares: layers that have more than one part of the rows of a joined layer, by the last component
    of their names. swapped: layers whose halves, shift and scale, change places. unused: layers
    that no network reads. same: adapters of kohya's scripts name the layers as Diffusers does.
    """

    outside: dict[str, str]
    stacks: dict[str, tuple[str, dict[str, tuple[str, ...]], dict[str, str]]]
    shares: Mapping[str, int] = {}
    swapped: Mapping[str, str] = {}
    unused: tuple[str, ...] = ()
    same: bool = False


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
    shares={'proj_mlp': 4},
    swapped={'final_layer.adaLN_modulation.1': 'norm_out.linear'},
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
    swapped={'final_layer.adaLN_modulation.1': 'norm_out.linear'},
)


def _z_image_stack(name: str, modulated: bool = True):
    """The same layers as in Diffusers, but for the attention's."""
    feed_forward = (f'feed_forward.w{i}' for i in (1, 2, 3))
    same = (*feed_forward, *(('adaLN_modulation.0',) * modulated))
    attention = {
        'attention.qkv': ('attention.to_q', 'attention.to_k', 'attention.to_v'),
        'attention.out': ('attention.to_out.0',),
    }
    norms = {f'attention.{part}_norm': f'attention.norm_{part}' for part in 'qk'}
    return name, attention | {layer: (layer,) for layer in same}, norms


Z_IMAGE = Original(
    outside={
        'x_embedder': 'all_x_embedder.2-1',
        'final_layer.linear': 'all_final_layer.2-1.linear',
        'final_layer.adaLN_modulation.1': 'all_final_layer.2-1.adaLN_modulation.1',
    },
    stacks={
        'noise_refiner': _z_image_stack('noise_refiner'),
        'context_refiner': _z_image_stack('context_refiner', modulated=False),
        'layers': _z_image_stack('layers'),
    },
    unused=('norm_final',),
)
SD15 = Original({}, {}, same=True)  # whole checkpoints of it are not read


def block_layers(original: Original, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Original name of every layer of the blocks -> its layers in Diffusers, by rows.

    names: Diffusers' names of a network's layers, which say how many blocks there are.
    """
    found = {name: (name,) for name in names} if original.same else {}
    for stack, (ours, layers, _) in original.stacks.items():
        blocks = (re.match(rf'{re.escape(ours)}\.(\d+)\.', name) for name in names)
        for i in sorted({int(match[1]) for match in blocks if match}):
            for name, members in layers.items():
                found[f'{stack}.{i}.{name}'] = tuple(f'{ours}.{i}.{member}' for member in members)
    return found


def split_rows(
    rows: int, members: Sequence[str], shares: Mapping[str, int]
) -> list[tuple[int, int]]:
    """The rows of a joined layer that belong to each of its `members`, names in Diffusers.

    shares: `Original.shares`.
    """
    parts = [shares.get(member.rpartition('.')[2], 1) for member in members]
    ends = [rows * sum(parts[:i]) // sum(parts) for i in range(len(parts) + 1)]
    return list(zip(ends, ends[1:]))


def is_original(keys: Iterable[str], original: Original) -> bool:
    """Whether these are the keys of an original checkpoint: some layers have names that Diffusers
    does not give.
    """
    only = tuple(f'{name}.' for name in original.outside)
    return any(key.removeprefix(PREFIX).startswith(only) for key in keys)


def as_diffusers(tensors: dict[str, Any], original: Original) -> dict[str, Any]:
    """Diffusers' key -> the stored rows, for every tensor of an original checkpoint.

    Keys of no known layer keep their names, so that the network's table reports them.
    """
    rest = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    result: dict[str, Any] = {}

    def move(source: str, *targets: str, swap: bool = False):
        for kind in ('weight', 'bias', 'scale'):
            if (tensor := rest.pop(f'{source}.{kind}', None)) is None:
                continue
            views, rows = [tensor], tensor.get_shape()[0]
            if swap:
                views = [Rows(tensor, (rows // 2, rows), (0, rows // 2))]
            elif len(targets) > 1:
                views = [Rows(tensor, part) for part in split_rows(rows, targets, original.shares)]
            for target, view in zip(targets, views):
                result[f'{target}.{"bias" if kind == "bias" else "weight"}'] = view

    for source, target in original.outside.items():
        move(source, target)
    for source, target in original.swapped.items():
        move(source, target, swap=True)
    for stack, (ours, layers, norms) in original.stacks.items():
        blocks = (re.match(rf'{re.escape(stack)}\.(\d+)\.', key) for key in rest)
        for i in sorted({int(match[1]) for match in blocks if match}):
            for name, members in [*layers.items(), *((n, (norm,)) for n, norm in norms.items())]:
                move(f'{stack}.{i}.{name}', *(f'{ours}.{i}.{member}' for member in members))
    for name in original.unused:
        rest.pop(f'{name}.weight', None)
    return result | rest
