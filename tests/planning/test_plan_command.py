"""The plan command's arithmetic and its two answers, on the miniature with the CPU's compiler
standing in.
"""

import pathlib
import shlex

import jax
import pytest
from ml_collections.config_flags import config_path

from densegrpo_jax.config.loading import load
from densegrpo_jax.config.validation import validate
from densegrpo_jax.planning import search
from densegrpo_jax.planning.advice import advice
from densegrpo_jax.planning.lowering import ASSUMED_PROMPTS, Phase, evaluation_rows, phases
from densegrpo_jax.planning.plan import compiled_row, plan, plan_search, table
from densegrpo_jax.planning.topology import CHIPS, parse
from densegrpo_jax.runtime.mesh import make_mesh, mesh_shape
from densegrpo_jax.sampling.conditioning import evaluated_prompts
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import open_base
from tests.planning.planned import small

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def result():
    config = small()
    config.data.update(eval='prompts.txt', eval_prompts=0)  # a plan reads no file
    return plan(config, parse('v5e:2x4')._replace(compiler='no_such_compiler'), utilisation=0.5)


def test_a_plan_adds_up(result):
    assert (
        result['estimated_on_cpu']
        and result['devices'] == 8
        and result['fits']
        and result['advice'] == []
    )
    assert set(result['phases']) == {'rollout', 'update', 'evaluation'}
    chip = CHIPS['v5e']
    for row in result['phases'].values():
        assert 0 < result['resident_gib'] < row['gib'] < chip.gib and row['tflop'] > 0
    rollout = result['phases']['rollout']
    # one batch an iteration, nothing repeated
    assert rollout['compute_s'] == pytest.approx(rollout['tflop'] * 1e12 / chip.flops / 0.5)
    low, high = result['chip_hours']
    assert (
        low
        <= high
        == pytest.approx(
            (result['seconds_per_iteration'] + result['collective_seconds']) * 60 * 8 / 3600
        )
    )
    text = table(result)
    assert (
        'it fits' in text
        and 'an estimate only' in text
        and 'rollout' in text
        and 'little effort' not in text
    )
    assert 'evaluation counts 1,024 prompts' in text.splitlines()[-1]
    assert 'little effort' in table({**result, 'quick': True})


@pytest.mark.parametrize(
    'name, asked, expected',
    [
        ('tiny', 0, 320),
        ('tiny', 1000, 320),  # a run draws no more than there are
        ('tiny', 7, 7),
        ('scenes', 0, 1024),
        ('scenes', 5000, 1024),
        ('prompts.txt', 5000, 5000),  # it is not read
        ('prompts.txt', 0, None),
    ],
)
def test_the_prompts_of_an_evaluation_are_counted_without_making_scenes(
    monkeypatch, name, asked, expected
):
    made = lambda *_, **__: pytest.fail('scenes are made')
    monkeypatch.setattr('densegrpo_jax.sampling.conditioning.scene_prompts', made)
    config = small()
    config.data.update(eval=name, eval_prompts=asked)
    assert evaluated_prompts(config) == expected
    assert evaluation_rows(config, 1)[0] == (expected or ASSUMED_PROMPTS)


def test_what_does_not_fit_is_said_with_a_way_out(result):
    gib = {name: row['gib'] for name, row in result['phases'].items()}
    config = small()
    gib['update'] = 40.0
    lines = advice(
        config, parse('v5e:2x4'), gib, resident=2**30, mesh={'data': 2, 'fsdp': 1, 'tensor': 1}
    )
    assert (
        lines[0] == 'update: config.optim.microbatch=2 instead of 8'
        and "config.model.remat='full'" in lines[1]
        and 'splash' in lines[2]
    )
    lines = advice(
        config, parse('h100:2'), {}, resident=70 * 2**30, mesh={'data': 2, 'fsdp': 1, 'tensor': 1}
    )
    assert lines == [
        'weights, optimiser and latents alone take 70.0 of 74 GiB: config.mesh.data=1 '
        'config.mesh.fsdp=2'
    ]
    text = table({**result, 'fits': False, 'advice': lines})
    assert 'IT DOES NOT FIT' in text and lines[0] in text


def test_advice_for_an_evaluation_is_of_the_rows_that_it_draws():
    config, one = small(), {'data': 1, 'fsdp': 1, 'tensor': 1}
    config.eval.batch, config.data.eval_prompts = 192, 64
    told = lambda gib: advice(config, parse('h100:1'), {'evaluation': gib}, 50 * 2**30, one)[0]
    assert told(100.0) == 'evaluation: config.eval.batch=16 instead of 192'
    config.guard.update(on=True, images=32)  # which eval.batch has to hold
    assert told(1000.0) == 'evaluation: config.eval.batch=32 instead of 192'
    config.guard.update(images=5, prompts=64)  # 38 prompts together are 190 rows
    assert told(100.0) == 'evaluation: config.eval.batch=38 instead of 192'


def test_advice_is_what_a_plan_takes(result):
    """Batches that divide over the mesh, a mesh of the devices that there are, no key that another
    one forbids, no line twice.
    """
    config, v5e, shape = small(), parse('v5e:2x4'), {'data': 4, 'fsdp': 2, 'tensor': 1}
    # of 4 samples: over 8 pieces, 2 prompts at a time
    config.rollout.update(prompts=8, prompts_per_batch=8)
    config.optim.microbatch = config.eval.batch = 32
    gib = dict.fromkeys(result['phases'], 1000.0)
    lines = advice(config, v5e, gib, resident=2**30, mesh=shape)
    assert [line for line in lines if 'instead of' in line and 'remat' not in line] == [
        'rollout: config.rollout.prompts_per_batch=2 instead of 8',
        'update: config.optim.microbatch=8 instead of 32',
        'evaluation: config.eval.batch=8 instead of 32',
    ]
    assert len(lines) == len(set(lines)) == 5
    assert advice(config, v5e, gib, resident=20 * 2**30, mesh=shape) == [
        'weights, optimiser and latents alone take 20.0 of 15.75 GiB: config.mesh.data=1 '
        'config.mesh.fsdp=8'
    ]
    alone = dict.fromkeys(shape, 1)
    assert advice(config, parse('h100:1'), gib, 80 * 2**30, alone)[0].endswith(
        "more devices, or config.model.quantize='int8'"
    )
    config.full = True
    assert advice(config, parse('h100:1'), gib, 80 * 2**30, alone)[0].endswith(': more devices')


def test_advice_keeps_groups_whole(result):
    """Groups of 4: two of them fit into 8 rows; one is as few as a listwise loss can have."""
    config, v5e, shape = small(), parse('v5e:2x4'), {'data': 2, 'fsdp': 1, 'tensor': 1}
    config.loss.kind, config.optim.microbatch = 'list', 16
    gib = {'update': 1000.0}
    assert advice(config, v5e, gib, 2**30, shape, 4)[0] == (
        'update: config.optim.microbatch=4 instead of 16'
    )
    config.optim.microbatch = 4
    assert advice(config, v5e, gib, 2**30, shape, 4)[0] == (
        "update: config.optim.microbatch=4 holds one whole group, as loss.kind='list' needs: more "
        'devices, or a smaller config.rollout.group'
    )
    said = 'optim.microbatch=4 is 2 transitions a device'
    assert table({**result, 'warnings': [said]}).endswith(said)


@pytest.mark.slow
def test_operations_follow_the_configuration():
    def flops(**overrides):
        config = small()
        config.update_from_flattened_dict(overrides)
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        _, pipeline = open_base(config, mesh)
        return {
            name: phase.flops
            for name, phase in phases(
                config, pipeline, make_schedule(pipeline, config), mesh
            ).items()
        }

    dense, sparse = flops(), flops(**{'credit.rule': 'sparse'})
    # 3 velocities and 2 decodes against 2 and 1
    assert dense['rollout'] > 1.4 * sparse['rollout'] and dense['update'] == sparse['update']
    full, referenced = flops(full=True), flops(**{'loss.beta': 0.1})
    # 3 passes instead of 2, without the adapters' own products
    assert 1.3 < full['update'] / dense['update'] < 1.5
    assert referenced['update'] == pytest.approx(1.5 * dense['update'])


@pytest.mark.parametrize(
    ('changes', 'key'),
    [
        ({'rollout.prompts_per_batch': 1}, 'rollout.prompts_per_batch'),
        ({'guard.on': True, 'guard.images': 9}, 'guard.images=9: all .* eval.batch=8 holds fewer'),
    ],
)
def test_geometry_is_checked_first(changes, key):
    config = small()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=key):
        plan(config, parse('v5e:2x4')._replace(compiler='no_such_compiler'), utilisation=0.5)


def test_the_slices_to_copy_are_those_of_the_plans():
    """docs/scaling.md: with the devices of each row the command divides over its slice, and a row
    of the plans has its seconds and says that it fits.
    """
    page = (ROOT / 'docs' / 'scaling.md').read_text()
    (command,) = (
        shlex.split(line)
        for line in page.splitlines()
        if line.startswith('    bash launch/tpu.sh watch')
    )
    given = dict(part[2:].split('=', 1) for part in command if '=' in part)
    recipe, of_command = given['config'].split(':devices=')
    generations = {'v5litepod': 'v5e', 'v6e': 'v6e', 'v5p': 'v5p'}
    rows = [
        [cell.strip().strip('`') for cell in line.strip('|').split('|')]
        for line in page.splitlines()
        if line.startswith(('| `v5litepod-', '| `v6e-', '| `v5p-'))
    ]
    assert len(rows) == 7 and (given['type'], of_command) in [(row[0], row[2]) for row in rows]
    for name, chips, devices, seconds, hours in rows:
        generation = name.partition('-')[0]
        whole = generation == 'v5p'  # every chip holds the weights
        topology = parse(f'{generations[generation]}:{chips}')
        assert topology.count == int(devices)
        config = load(f'{ROOT / recipe}:devices={devices}')
        for flag, value in given.items():
            key = flag.removeprefix('config.')
            if key != flag and not (whole and key == 'mesh.fsdp'):
                config_path.set_value(key, config, config_path.get_type(key, config)(value))
        validate(config)
        data, fsdp, _ = mesh_shape(config.mesh, topology.count)
        assert (fsdp == 1) == whole
        for batch in (
            config.rollout.prompts_per_batch * config.rollout.group,
            config.optim.microbatch,
            config.eval.batch,
        ):
            assert batch % (data * fsdp) == 0
        if 'not compiled' in hours:
            continue
        plan = next(
            r
            for r in page.splitlines()
            if f'`{topology.name}`' in r and f'flux_ocr.py:devices={topology.count}`' in r
        )
        assert config.model.attention in plan and 'yes, of' in plan and f'| {seconds}' in plan
        assert fsdp == 1 or f'fsdp {fsdp}' in plan


def test_attention_whose_library_is_absent_is_named():
    def lower():
        raise RuntimeError('cuDNN not found.')

    with pytest.raises(ValueError, match="'cudnn': cuDNN was not found; pip install"):
        compiled_row(Phase(lower, 1, 1.0), parse('h100:1'), 0.0, 0.5)


def test_a_search_is_planned_without_weights():
    """What the plan counts is what the search spends; gradients are refused."""
    config = small()
    config.search.update(method='svdd', nfe=9, candidates=3, prompts=2)
    topology = parse('v5e:2x4')._replace(compiler='no_such_compiler')
    found = plan_search(config, topology, 0.5)
    # T = 2: 1 + 3 evaluations a design, two designs
    assert (found['evaluations'], found['rows']) == (8, 6) and found['fits']
    step, decoding = found['phases']['step'], found['phases']['decoding']
    chip = CHIPS['v5e']
    # 8 evaluations of 12 rows together, of two prompts
    assert step['compute_s'] == pytest.approx(8 / 12 * step['tflop'] * 1e12 / chip.flops / 0.5)
    assert 0 < found['resident_gib'] < min(step['gib'], decoding['gib'])
    text = search.table(found)  # of a few MiB, which are no zeros of GiB
    assert 'search by svdd: 8 network evaluations' in text and 'MiB/device' in text
    assert ' 0.00 ' not in text and ' 0.0 ' not in text
    config.search.update(method='smc', gradient=True)
    with pytest.raises(ValueError, match='search.gradient=True cannot be planned'):
        plan_search(config, topology, 0.5)
