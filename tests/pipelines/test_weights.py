"""Weight tables: round trips against files torch wrote, shards, prefixes, shardings, and errors
that name what is wrong.
"""

import json
import shutil
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from densegrpo_jax.networks import flux
from densegrpo_jax.networks.weight_rules import WeightRule
from densegrpo_jax.pipelines.weights import files as weights
from tests.networks.block_stacks import unstack_blocks

NAME = 'diffusion_pytorch_model.safetensors'
RULES = [
    WeightRule('in.weight', 'in/kernel', 'linear'),
    WeightRule('conv.{k:weight|bias}', 'conv/{k}', 'conv'),
    WeightRule('blocks.{i}.{p:up|down}.weight', 'blocks/{p}/kernel', 'linear'),
    WeightRule('blocks.{i}.scale', 'blocks/scale'),
    WeightRule('position_ids', None),
]
UNSCANNED = [
    WeightRule('in.weight', 'in/kernel', 'linear'),
    WeightRule('conv.{k:weight|bias}', 'conv/{k}', 'conv'),
    WeightRule('blocks.{i}.{p:up|down}.weight', 'blocks_{i}/{p}/kernel', 'linear'),
    WeightRule('blocks.{i}.scale', 'blocks_{i}/scale'),
]


def tensors(blocks=12):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    result = {'in.weight': normal(8, 3), 'conv.weight': normal(2, 3, 5, 4)}
    for i in range(blocks):
        result |= {
            f'blocks.{i}.up.weight': normal(16, 8),
            f'blocks.{i}.down.weight': normal(8, 16),
            f'blocks.{i}.scale': normal(8),
        }
    return result


def abstract(blocks=12):
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return {
        'in': {'kernel': leaf(3, 8)},
        'conv': {'weight': leaf(5, 4, 3, 2)},
        'blocks': {
            'up': {'kernel': leaf(blocks, 8, 16)},
            'down': {'kernel': leaf(blocks, 16, 8)},
            'scale': leaf(blocks, 8),
        },
    }


def write(folder, arrays, name=NAME):
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(arrays, folder / name)
    return folder


def test_values_and_block_order(tmp_path):
    stored = tensors()
    params = weights.load_weights(
        write(tmp_path, stored | {'position_ids': np.arange(3)}), RULES, abstract()
    )
    np.testing.assert_array_equal(params['in']['kernel'], stored['in.weight'].T)
    np.testing.assert_array_equal(
        params['conv']['weight'][1, 2], stored['conv.weight'][:, :, 1, 2].T
    )
    for i in range(12):  # numeric order, not that of strings
        np.testing.assert_array_equal(
            params['blocks']['up']['kernel'][i], stored[f'blocks.{i}.up.weight'].T
        )
    assert isinstance(params['in']['kernel'], jax.Array)


def test_scanned_and_unscanned_tables_agree(tmp_path):
    params = weights.load_weights(write(tmp_path, tensors()), RULES, abstract())
    flat = unstack_blocks(params, 'blocks')
    jax.tree.map(
        np.testing.assert_array_equal, weights.load_weights(tmp_path, UNSCANNED, flat), flat
    )


@pytest.mark.parametrize('scan', [False, True], ids=['unscanned', 'scanned'])
def test_round_trip_of_a_file_torch_wrote(scan, tmp_path):
    pytest.importorskip('torch')
    diffusers = pytest.importorskip('diffusers')
    config = dict(
        in_channels=8,
        num_layers=2,
        num_single_layers=11,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=[4, 2, 2],
    )
    module = diffusers.FluxTransformer2DModel(**config)
    module.save_pretrained(tmp_path / 'single')
    module.save_pretrained(tmp_path / 'sharded', max_shard_size='100KB')
    assert len(list((tmp_path / 'sharded').glob('*.safetensors'))) > 1
    net = flux.FluxTransformer(flux.FluxConfig.from_json(config), scan=scan)
    zeros = lambda *shape: jnp.zeros(shape)
    shapes = jax.eval_shape(
        net.init,
        jax.random.key(0),
        zeros(1, 1, 8),
        zeros(1, 1, 12),
        zeros(1, 10),
        zeros(1),
        zeros(1),
        zeros(1, 3),
        zeros(1, 3),
    )['params']
    rules = net.weight_rules()
    params = weights.load_weights(tmp_path / 'single', rules, shapes)
    jax.tree.map(
        np.testing.assert_array_equal,
        weights.load_weights(tmp_path / 'sharded', rules, shapes),
        params,
    )
    weights.save_weights(tmp_path / 'ours', rules, params)
    assert (tmp_path / 'ours' / NAME).read_bytes() == (tmp_path / 'single' / NAME).read_bytes()
    weights.save_weights(tmp_path / 'ours', rules, params, max_shard_bytes=50_000)
    shutil.copy(tmp_path / 'single' / 'config.json', tmp_path / 'ours')
    reopened = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / 'ours').state_dict()
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(reopened[key].numpy(), value.numpy())


def test_shards_and_index(tmp_path):
    stored = tensors()
    params = weights.load_weights(write(tmp_path / 'a', stored), RULES, abstract())
    target = write(tmp_path / 'b', stored)  # an earlier single file of the same name
    written = weights.save_weights(target, RULES, params, max_shard_bytes=2000)
    # no stale file, no partial file
    assert sorted(p.name for p in target.iterdir()) == sorted(p.name for p in written)
    assert all(p.stat().st_size < 2000 + 2000 for p in written[:-1]) and len(written) > 5
    index = json.loads((target / f'{NAME}.index.json').read_text())
    assert set(index['weight_map']) == set(stored)
    assert index['metadata']['total_size'] == sum(a.nbytes for a in stored.values())
    jax.tree.map(
        np.testing.assert_array_equal, weights.load_weights(target, RULES, abstract()), params
    )
    weights.save_weights(target, RULES, params)
    assert [p.name for p in target.iterdir()] == [NAME]


def test_bfloat16_without_torch(tmp_path):
    stored = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors().items()}
    params = weights.load_weights(write(tmp_path, stored), RULES, abstract())
    assert params['in']['kernel'].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params['in']['kernel'], stored['in.weight'].T)
    wide = weights.load_weights(tmp_path, RULES, abstract(), dtype=jnp.float32)
    np.testing.assert_array_equal(
        wide['blocks']['scale'][3], stored['blocks.3.scale'].astype(np.float32)
    )
    weights.save_weights(tmp_path / 'back', RULES, wide, dtype=jnp.bfloat16)
    again = safetensors.numpy.load_file(tmp_path / 'back' / NAME)
    assert set(again) == set(stored) and all(
        (again[k] == stored[k]).all() and again[k].dtype == ml_dtypes.bfloat16 for k in stored
    )


EIGHT_BITS = [('float8_e4m3fn', 'F8_E4M3'), ('float8_e5m2', 'F8_E5M2')]


@pytest.mark.parametrize(('kind', 'name'), EIGHT_BITS)
def test_eight_bit_floats_stand_for_themselves(tmp_path, kind, name):
    """As in transformer files that were cast; safetensors makes no numpy arrays of them."""
    dtype, header, data, stored = np.dtype(getattr(ml_dtypes, kind)), {}, b'', tensors(2)
    for key, value in stored.items():
        part = value.astype(dtype).tobytes()
        entry = {'dtype': name, 'shape': value.shape}
        header[key] = entry | {'data_offsets': [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    (tmp_path / NAME).write_bytes(struct.pack('<Q', len(text)) + text + data)
    loaded = weights.load_weights(tmp_path, RULES, abstract(2), dtype=np.float32)
    rounded = stored['in.weight'].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(loaded['in']['kernel'], rounded.T)
    down = stored['blocks.1.down.weight'].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(loaded['blocks']['down']['kernel'][1], down.T)


@pytest.mark.parametrize('kind', ['int64', 'bool', 'uint8'])
def test_weights_that_are_no_floats_are_refused(tmp_path, kind):
    stored = tensors(2) | {'position_ids': np.arange(3)}  # not a weight
    safetensors.numpy.save_file(stored, tmp_path / NAME)
    weights.check_weights(tmp_path, RULES, abstract(2))
    stored['in.weight'] = stored['in.weight'].astype(kind)
    safetensors.numpy.save_file(stored, tmp_path / NAME)
    with pytest.raises(ValueError, match=r'not of floats \(1\): in\.weight is [IBU]'):
        weights.check_weights(tmp_path, RULES, abstract(2))


def test_shardings(tmp_path):
    write(tmp_path, tensors())
    plain = weights.load_weights(tmp_path, RULES, abstract())
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ('data', 'fsdp'))
    specs = {
        'in': {'kernel': P(None, 'fsdp')},
        'conv': {'weight': P()},
        'blocks': {
            'up': {'kernel': P('data', 'fsdp')},
            'down': {'kernel': P(None, ('data', 'fsdp'))},
            'scale': P('fsdp'),
        },
    }
    shardings = jax.tree.map(
        lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, P)
    )
    params = weights.load_weights(
        tmp_path, RULES, abstract(), shardings=shardings, dtype=jnp.float32
    )
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    jax.tree.map(
        lambda p, s: p.sharding == s or pytest.fail(f'{p.sharding} is not {s}'), params, shardings
    )
    assert params['blocks']['up']['kernel'].addressable_shards[0].data.shape == (6, 2, 16)
    weights.save_weights(tmp_path / 'back', RULES, params)  # a sharded tree saves like any other
    assert safetensors.numpy.load_file(tmp_path / 'back' / NAME).keys() == tensors().keys()
    one = weights.load_weights(tmp_path, RULES, abstract(), shardings=NamedSharding(mesh, P()))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(one))


def test_prefix_is_optional(tmp_path):
    plain = weights.load_weights(
        write(tmp_path, tensors()), RULES, abstract(), prefix='text_model.'
    )
    weights.save_weights(tmp_path / 'p', RULES, plain, prefix='text_model.')
    assert all(
        k.startswith('text_model.') for k in safetensors.numpy.load_file(tmp_path / 'p' / NAME)
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        weights.load_weights(tmp_path / 'p', RULES, abstract(), prefix='text_model.'),
        plain,
    )
    write(tmp_path, tensors() | {'text_model.in.weight': tensors()['in.weight']})
    with pytest.raises(ValueError, match='doubled .1.: in.weight and text_model.in.weight'):
        weights.load_weights(tmp_path, RULES, abstract(), prefix='text_model.')


def test_everything_that_does_not_fit_is_in_one_error(tmp_path):
    stored = tensors()
    del stored['blocks.5.up.weight'], stored['in.weight']
    zeros = lambda *shape: np.zeros(shape, np.float32)
    stored |= {
        'extra.weight': zeros(2),
        'blocks.12.scale': zeros(8),
        'blocks.3.scale': zeros(9),
        'blocks.4.down.weight': zeros(16, 8),
    }
    with pytest.raises(ValueError) as error:
        weights.load_weights(write(tmp_path, stored), RULES, abstract())
    message = str(error.value)
    assert str(tmp_path) in message
    for line in (
        'missing (2): in.weight, blocks.5.up.weight',
        'unexpected (2): blocks.12.scale, extra.weight',
        'blocks.3.scale is [9], expected [8]',
        'blocks.4.down.weight is [16, 8], expected [8, 16]',
    ):
        assert line in message
    with pytest.raises(ValueError, match='without a rule .1.: other'):
        weights.load_weights(
            write(tmp_path, tensors()),
            RULES,
            abstract() | {'other': jax.ShapeDtypeStruct((1,), jnp.float32)},
        )
    with pytest.raises(ValueError, match='no rule writes these parameters: other'):
        weights.save_weights(tmp_path, RULES, {'other': jnp.zeros(1)})


def test_damaged_and_absent_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        weights.load_weights(tmp_path / 'none', RULES, abstract())
    (tmp_path / 'pytorch_model.bin').write_bytes(b'x')
    with pytest.raises(FileNotFoundError, match='pytorch_model.bin.*safetensors'):
        weights.load_weights(tmp_path, RULES, abstract())
    data = (write(tmp_path, tensors()) / NAME).read_bytes()
    for size in (0, 5, 100, len(data) // 2, len(data) - 1):
        (tmp_path / NAME).write_bytes(data[:size])
        with pytest.raises(
            ValueError, match=rf'{NAME} \({size} bytes\) is not a complete safetensors file'
        ):
            weights.load_weights(tmp_path, RULES, abstract())
    (tmp_path / NAME).write_bytes(data)
    params = weights.load_weights(tmp_path, RULES, abstract())
    *shards, index = weights.save_weights(tmp_path, RULES, params, max_shard_bytes=4000)
    hidden = shards[1].rename(tmp_path / 'elsewhere')
    with pytest.raises(FileNotFoundError, match=shards[1].name):
        weights.load_weights(tmp_path, RULES, abstract())
    hidden.rename(shards[1])
    content = json.loads(index.read_text())
    content['weight_map']['ghost.weight'] = shards[0].name
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='lists.*ghost.weight'):
        weights.load_weights(tmp_path, RULES, abstract())
    index.write_text('{"weight')
    with pytest.raises(ValueError, match='index.json is not valid JSON'):
        weights.load_weights(tmp_path, RULES, abstract())


def test_two_hosts_with_equal_process_numbers_write_the_same_file(tmp_path, monkeypatch):
    """The second begins and ends while the first one is writing."""
    save, path, arrays = safetensors.numpy.save_file, tmp_path / NAME, {'x': np.arange(3.0)}

    def meanwhile(*args, **options):
        save(*args, **options)
        monkeypatch.setattr(safetensors.numpy, 'save_file', save)
        weights.write_file(path, arrays)

    monkeypatch.setattr(safetensors.numpy, 'save_file', meanwhile)
    weights.write_file(path, arrays)
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)['x'], arrays['x'])


def test_others_may_read_what_they_may_read_of_any_file(tmp_path):
    (tmp_path / 'any').touch()
    path = weights.write_file(tmp_path / NAME, {'x': np.arange(3.0)})
    assert path.stat().st_mode == (tmp_path / 'any').stat().st_mode


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    params = weights.load_weights(write(tmp_path, tensors()), RULES, abstract())
    before = (tmp_path / NAME).read_bytes()

    def full_disk(arrays, path, metadata):
        path.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(safetensors.numpy, 'save_file', full_disk)
    with pytest.raises(OSError, match='could not write.*No space left'):
        weights.save_weights(tmp_path, RULES, params)
    assert [p.name for p in tmp_path.iterdir()] == [NAME] and (
        tmp_path / NAME
    ).read_bytes() == before


def test_rules_are_checked():
    assert WeightRule('a.{i}.b', 'a_{i}/b').read('a.3.b') == ('a_3/b', None)
    assert WeightRule('a.{i}.b', 'a/b').read('a.3.b') == ('a/b', 3)
    assert (
        WeightRule('a.{i}.b', 'a/b').read('a.x.b') is None
        and WeightRule('a.{i}.b', 'a/b').read('xa.3.b') is None
    )
    # a dot is a dot
    assert WeightRule('axb', 'q').read('a.b') is None and WeightRule('a.b', 'q').read('axb') is None
    assert (
        WeightRule('a.{i}.{p:x|y}', 'a/{p}').write('a/y', 4) == 'a.4.y'
        and WeightRule('a.{p:x|y}', 'a/{p}').write('a/z') is None
    )
    with pytest.raises(ValueError, match='transform'):
        WeightRule('a', 'b', 'transpose')
    for source, target in (('a.{i}.{j}', 'b'), ('a', 'b/{i}')):
        with pytest.raises(ValueError, match='fields'):
            WeightRule(source, target)
