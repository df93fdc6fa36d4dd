"""The original single-file layouts of FLUX.1, FLUX.2 and Z-Image against Diffusers' own conversion,
and loading a network from such a file.
"""

import jax
import numpy as np
import pytest
import safetensors.numpy

from densegrpo_jax.networks import flux
from densegrpo_jax.pipelines.folder import check_params, load_params, load_pipeline, open_pipeline
from densegrpo_jax.pipelines.weights import originals
from densegrpo_jax.pipelines.weights.stored import Rows
from tests import miniature


class Held:
    """A tensor in memory with the interface of a stored one."""

    def __init__(self, array):
        self.array = array

    def get_shape(self):
        return list(self.array.shape)

    def get_dtype(self):
        return 'F32'

    def __getitem__(self, index):
        return self.array[index]


def check_loads_as(folder, pipeline, file, want):
    """Asserts that `file` loads as the tensors `want`, of torch, do from the folder."""
    safetensors.numpy.save_file(
        {k: np.ascontiguousarray(v.numpy()) for k, v in want.items()},
        folder / 'transformer' / 'diffusion_pytorch_model.safetensors',
    )
    expected = load_params(folder, pipeline, ('transformer',))
    found = load_params(folder, pipeline, ('transformer',), transformer_file=file)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def original_shapes(width, columns, double, single, head):
    """Key -> shape of an original checkpoint; `columns` stands for every input width."""
    rows = {
        'img_in': width,
        'txt_in': width,
        'final_layer.linear': 64,
        'final_layer.adaLN_modulation.1': 2 * width,
    }
    rows |= {
        f'{e}_in.{part}_layer': width
        for e in ('time', 'guidance', 'vector')
        for part in ('in', 'out')
    }
    norms = {}
    for i in range(double):
        for s in ('img', 'txt'):
            block = f'double_blocks.{i}.{s}'
            rows |= {
                f'{block}_mod.lin': 6 * width,
                f'{block}_attn.qkv': 3 * width,
                f'{block}_attn.proj': width,
                f'{block}_mlp.0': 4 * width,
                f'{block}_mlp.2': width,
            }
            norms |= {f'{block}_attn.norm.{n}_norm.scale': (head,) for n in ('query', 'key')}
    for i in range(single):
        block = f'single_blocks.{i}'
        rows |= {
            f'{block}.modulation.lin': 3 * width,
            f'{block}.linear1': 7 * width,
            f'{block}.linear2': width,
        }
        norms |= {f'{block}.norm.{n}_norm.scale': (head,) for n in ('query', 'key')}
    return (
        {f'{k}.weight': (n, columns) for k, n in rows.items()}
        | {f'{k}.bias': (n,) for k, n in rows.items()}
        | norms
    )


def test_equals_the_conversion_of_diffusers():
    torch = pytest.importorskip('torch')
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    # Diffusers converts only the released width; two columns stand for every input width, because
    # only rows are split.
    config = flux.FluxConfig(num_layers=1, num_single_layers=2, guidance_embeds=True)
    rng = np.random.default_rng(0)
    original = {
        k: rng.standard_normal(s, np.float32)
        for k, s in original_shapes(config.hidden_dim, 2, 1, 2, 128).items()
    }
    want = convert_flux_transformer_checkpoint_to_diffusers(
        {k: torch.from_numpy(v) for k, v in original.items()}
    )
    held = {originals.PREFIX + k: Held(v) for k, v in original.items()}
    got = originals.as_diffusers(held, originals.FLUX)
    assert got.keys() == want.keys()
    for key, tensor in got.items():
        assert tuple(tensor.get_shape()) == tuple(want[key].shape)
        np.testing.assert_array_equal(tensor[(slice(None),) * want[key].ndim], want[key].numpy())
        part = (slice(5, 70), slice(1, 2))[: want[key].ndim]
        np.testing.assert_array_equal(tensor[part], want[key].numpy()[part])


def test_a_network_loads_from_one_file(tmp_path):
    folder = miniature.random_flux(tmp_path / 'flux', double=2, single=2)
    pipeline, params = load_pipeline(folder, text_length=16, scan=True)
    stored = safetensors.numpy.load_file(
        folder / 'transformer' / 'diffusion_pytorch_model.safetensors'
    )
    shapes = original_shapes(pipeline.transformer.config.hidden_dim, 1, 2, 2, 16)
    # Every Diffusers tensor is written to the rows that it stands for.
    original = {}

    class Recorder:
        def __init__(self, key):
            self.key = key

        def get_shape(self):
            return list(shapes[self.key])

    views = originals.as_diffusers({k: Recorder(k) for k in shapes}, originals.FLUX)
    for name, view in views.items():
        source, ranges = (
            (view._tensor.key, view._ranges)
            if isinstance(view, Rows)
            else (view.key, [(0, view.get_shape()[0])])
        )
        value, row = stored[name], 0
        target = original.setdefault(
            source, np.zeros((shapes[source][0], *value.shape[1:]), np.float32)
        )
        for start, stop in ranges:
            target[start:stop] = value[row : row + stop - start]
            row += stop - start
    safetensors.numpy.save_file(original, tmp_path / 'flux1.safetensors')
    again = load_params(
        folder, pipeline, ('transformer',), transformer_file=tmp_path / 'flux1.safetensors'
    )
    jax.tree.map(np.testing.assert_array_equal, again['transformer'], params['transformer'])

    del original['single_blocks.1.linear1.weight']
    safetensors.numpy.save_file(
        original | {'odd.weight': np.zeros(1)}, tmp_path / 'broken.safetensors'
    )
    with pytest.raises(
        ValueError,
        match=r'(?s)missing.*single_transformer_blocks\.1\.attn\.to_k.*unexpected.*odd\.weight',
    ):
        load_params(
            folder, pipeline, ('transformer',), transformer_file=tmp_path / 'broken.safetensors'
        )
    with pytest.raises(FileNotFoundError, match='model.transformer_file'):
        load_params(
            folder, pipeline, ('transformer',), transformer_file=tmp_path / 'absent.safetensors'
        )


def flux2_original(config, rng):
    """Random tensors with the names of FLUX.2's original release."""
    width, head, mlp = config.hidden_dim, config.attention_head_dim, config.mlp_dim
    shapes = {
        'img_in': (width, config.in_channels),
        'txt_in': (width, config.joint_attention_dim),
        'time_in.in_layer': (width, config.timestep_guidance_channels),
        'time_in.out_layer': (width, width),
        'double_stream_modulation_img.lin': (6 * width, width),
        'double_stream_modulation_txt.lin': (6 * width, width),
        'single_stream_modulation.lin': (3 * width, width),
        'final_layer.adaLN_modulation.1': (2 * width, width),
        'final_layer.linear': (config.in_channels, width),
    }
    norms = []
    for i in range(config.num_layers):
        for s in ('img', 'txt'):
            block = f'double_blocks.{i}.{s}'
            shapes |= {
                f'{block}_attn.qkv': (3 * width, width),
                f'{block}_attn.proj': (width, width),
                f'{block}_mlp.0': (2 * mlp, width),
                f'{block}_mlp.2': (width, mlp),
            }
            norms.append(f'{block}_attn.norm')
    for i in range(config.num_single_layers):
        block = f'single_blocks.{i}'
        shapes |= {
            f'{block}.linear1': (3 * width + 2 * mlp, width),
            f'{block}.linear2': (width, width + mlp),
        }
        norms.append(f'{block}.norm')
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    return {f'{name}.weight': draw(*shape) for name, shape in shapes.items()} | {
        f'{name}.{which}_norm.scale': draw(head) for name in norms for which in ('query', 'key')
    }


@pytest.mark.parametrize('prefix', ['', originals.PREFIX])
def test_flux2_loads_from_one_file_as_diffusers_converts_it(prefix, tmp_path):
    torch = pytest.importorskip('torch')
    from diffusers.loaders.single_file_utils import (
        convert_flux2_transformer_checkpoint_to_diffusers,
    )

    folder = miniature.random_klein(tmp_path / 'klein', double=2)
    pipeline = open_pipeline(folder, text_length=16, scan=True)
    original = flux2_original(pipeline.transformer.config, np.random.default_rng(0))
    file = tmp_path / 'flux-2-klein.safetensors'
    safetensors.numpy.save_file({prefix + k: v for k, v in original.items()}, file)
    want = convert_flux2_transformer_checkpoint_to_diffusers(
        {k: torch.from_numpy(v) for k, v in original.items()}
    )
    check_loads_as(folder, pipeline, file, want)


def z_image_original(config, rng):
    """Random tensors with the names of Z-Image's original release, as ComfyUI ships it."""
    width, head = config.dim, config.dim // config.n_heads
    inner, cond = int(width / 3 * 8), config.cond_dim
    both = {
        'x_embedder': (width, 4 * config.in_channels),
        'final_layer.linear': (4 * config.in_channels, width),
        'final_layer.adaLN_modulation.1': (width, cond),
        'cap_embedder.1': (width, config.cap_feat_dim),
        't_embedder.mlp.0': (1024, 256),
        't_embedder.mlp.2': (cond, 1024),
    }
    weights = {
        'x_pad_token': (1, width),
        'cap_pad_token': (1, width),
        'cap_embedder.0.weight': (config.cap_feat_dim,),
        'norm_final.weight': (width,),  # the release has it, and nothing reads it
    }
    stacks = {
        'noise_refiner': config.n_refiner_layers,
        'context_refiner': config.n_refiner_layers,
        'layers': config.n_layers,
    }
    for block in (f'{name}.{i}' for name, length in stacks.items() for i in range(length)):
        if not block.startswith('context'):
            both[f'{block}.adaLN_modulation.0'] = 4 * width, cond
        weights |= {
            f'{block}.attention.qkv.weight': (3 * width, width),
            f'{block}.attention.out.weight': (width, width),
            f'{block}.feed_forward.w1.weight': (inner, width),
            f'{block}.feed_forward.w2.weight': (width, inner),
            f'{block}.feed_forward.w3.weight': (inner, width),
            **{f'{block}.attention.{part}_norm.weight': (head,) for part in 'qk'},
            **{
                f'{block}.{part}_norm{i}.weight': (width,)
                for part in ('attention', 'ffn')
                for i in (1, 2)
            },
        }
    weights |= {f'{name}.weight': shape for name, shape in both.items()}
    weights |= {f'{name}.bias': shape[:1] for name, shape in both.items()}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in weights.items()}


@pytest.mark.parametrize('scan, prefix', [(True, ''), (False, originals.PREFIX)])
def test_z_image_loads_from_one_file_as_diffusers_converts_it(scan, prefix, tmp_path):
    torch = pytest.importorskip('torch')
    from diffusers.loaders.single_file_utils import (
        convert_z_image_transformer_checkpoint_to_diffusers,
    )

    folder = miniature.random_zimage(tmp_path / 'zimage')
    pipeline = open_pipeline(folder, text_length=16, scan=scan)
    original = z_image_original(pipeline.transformer.config, np.random.default_rng(0))
    file = tmp_path / 'z_image_turbo.safetensors'
    safetensors.numpy.save_file({prefix + k: v for k, v in original.items()}, file)
    want = convert_z_image_transformer_checkpoint_to_diffusers(
        {prefix + k: torch.from_numpy(v) for k, v in original.items()}
    )
    check_loads_as(folder, pipeline, file, want)


def test_misfits_of_a_z_image_file_are_listed(tmp_path):
    folder = miniature.random_zimage(tmp_path / 'zimage')
    pipeline = open_pipeline(folder, text_length=16, scan=True)
    original = z_image_original(pipeline.transformer.config, np.random.default_rng(0))
    original['layers.7.attention.out.weight'] = original.pop('layers.1.attention.out.weight')
    original['layers.0.attention.qkv.weight'] = original['layers.0.attention.qkv.weight'][:-1]
    original['odd.weight'] = np.zeros(1)
    safetensors.numpy.save_file(original, tmp_path / 'broken.safetensors')
    with pytest.raises(ValueError) as error:
        check_params(
            folder, pipeline, ('transformer',), transformer_file=tmp_path / 'broken.safetensors'
        )
    missing, unexpected, shapes = str(error.value).splitlines()[1:4]
    assert 'missing (1): layers.1.attention.to_out.0.weight' in missing
    assert 'unexpected (2): layers.7.attention.to_out.0.weight, odd.weight' in unexpected
    assert 'layers.0.attention.to_q.weight is [23, 24], expected [24, 24]' in shapes
