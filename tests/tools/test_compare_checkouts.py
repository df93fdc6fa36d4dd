"""What the comparison of two checkouts calls equal, without training anything."""

import importlib
import json
import pathlib
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from ml_collections import ConfigDict
from PIL import Image

from tools import compare_artifacts as artifacts
from tools import compare_checkouts as checkouts
from tools.compare_cases import CASES, SMALL

ROOT = pathlib.Path(__file__).parents[2]


def found(a, b, tolerance=0.0):
    return artifacts.compare_arrays('x', np.asarray(a), np.asarray(b), tolerance)


def test_without_tolerance_one_bit_is_a_difference():
    a = np.array([0.0, 1.0, np.nan], np.float32)
    assert not found(a, a.copy())
    (one,) = found(a, np.array([0.0, np.nextafter(np.float32(1), np.float32(2)), np.nan], 'f4'))
    assert one.max_abs == pytest.approx(2**-23) and '1 of 3' in one.what and '[1]' in one.what
    (zero,) = found(a, np.array([-0.0, 1.0, np.nan], np.float32))
    assert zero.what == 'only bits differ' and zero.max_abs == 0


def test_the_tolerance_is_relative_to_the_largest_of_the_array():
    a = np.array([1e-9, 100.0])
    assert not found(a, a + [5e-5, 0], 1e-6)  # far off for itself, nothing beside 100
    (one,) = found(a, a + [5e-4, 0], 1e-6)
    assert one.max_abs == pytest.approx(5e-4) and one.max_rel == pytest.approx(5e-6)


@pytest.mark.parametrize(
    'a, b',
    [
        pytest.param([1.0, np.nan], [1.0, 2.0], id='nan'),
        pytest.param([1.0, np.inf], [1.0, 2.0], id='infinity'),
        pytest.param([1, 2], [1, 3], id='integers'),
        pytest.param([True], [False], id='booleans'),
        pytest.param([1.0], [1.0, 1.0], id='shape'),
        pytest.param(np.float32([1]), np.float64([1]), id='dtype'),
        pytest.param(['a'], ['b'], id='text'),
        pytest.param(['a'], ['ab'], id='text of another width'),
    ],
)
def test_what_no_tolerance_excuses(a, b):
    assert found(a, b, 0.9) and not found(a, a, 0.9)


def test_names_that_only_one_side_has():
    texts = [str(d) for d in artifacts.compare_tables('run', {'a': 1, 'b': 2}, {'b': 2, 'c': 3}, 0)]
    assert texts == ['run:a: only before', 'run:c: only after']


def test_json_without_times_and_settings_may_gain_keys():
    a = {'seconds': 3.0, 'meta': {'seconds': 1, 'step': [1, None]}, 'fingerprint': {'old': 1}}
    b = {'seconds': 4.0, 'meta': {'seconds': 2, 'step': [1, None]}, 'fingerprint': {'new': 1}}
    differences, notes = artifacts.split_notes(artifacts.compare_json('meta', a, b, 0))
    assert not differences and len(notes) == 2
    b['meta']['step'] = [2, None]
    (one,) = artifacts.split_notes(artifacts.compare_json('meta', a, b, 0))[0]
    assert one.where == 'meta:meta.step' and '1 before, 2 after' in one.what
    a, b = {'seconds_per_iteration': 1.0}, {'seconds_per_iteration': 2.0}  # of a plan: no time
    assert artifacts.compare_json('plan.json', a, b, 0)


def test_settings_that_differ_are_no_note():
    found = artifacts.compare_json('run/config.json', {'seed': 1}, {'seed': 2, 'more': 0}, 0)
    differences, notes = artifacts.split_notes(found)
    assert [d.where for d in differences] == ['run/config.json:seed']
    assert [d.where for d in notes] == ['run/config.json:more']
    one_sided = artifacts.compare_json('merged/transformer/config.json', {}, {'heads': 2}, 0)
    assert artifacts.split_notes(one_sided)[0]  # a model's own configuration


def test_metrics_step_by_step():
    rows = [{'step': 0, 'eval': 1.0}, {'step': 1, 'loss': 2.0, 'seconds/update': 1.0}]
    other = [{'step': 0, 'eval': 1.0}, {'step': 1, 'loss': 2.0, 'seconds/update': 9.0}]
    compare = lambda b: [d.where for d in artifacts.compare_rows('m', rows, b, 0)]
    (one,) = artifacts.compare_rows('m', rows, [rows[0], {**rows[1], 'loss': 2.5}], 0)
    assert '1 of 1 values differ, first step 1: 2 before, 2.5 after' in one.what
    assert compare(other) == []
    assert compare([rows[0], {**rows[1], 'loss': 2.5}]) == ['m:loss']
    assert compare([rows[0], {**rows[1], 'kl': 2.5}]) == ['m:kl']
    assert compare([{**rows[0], 'loss': 2.0}, {'step': 1}]) == ['m:loss']  # in another row
    assert compare(rows[:1]) == ['m']
    assert artifacts.compare_rows('m', rows, [rows[0], {'step': 1, 'cost': 2.0}], 0)
    assert not artifacts.compare_rows(
        'm', rows, [rows[0], {'step': 1, 'cost': 2.0}], 0, [('^loss$', 'cost')]
    )


def test_the_hash_of_a_recorded_policy_is_left_out():
    row = lambda policy: [{'policy': policy, 'prompt': 0}]
    assert not artifacts.compare_rows('r', row('step 3 0a1b2c3d'), row('step 3 ffffff'), 0)
    assert artifacts.compare_rows('r', row('step 3 0a1b2c3d'), row('step 4 0a1b2c3d'), 0)


def test_text_by_its_numbers():
    compare = lambda a, b, tolerance: artifacts.compare_text('t', a, b, tolerance)
    assert not compare('mean 0.5000001, n 3', 'mean 0.5000002, n 3', 1e-6)
    assert compare('mean 0.5000001, n 3', 'mean 0.5000002, n 3', 0)
    assert compare('mean 0.5', 'median 0.5', 1e-6)
    (one,) = compare('a\nb\nc', 'a\nx\nc', 0)
    assert 'line 2' in one.what and "'b'" in one.what


def test_pixels():
    image = np.full((2, 2, 3), 7, np.uint8)
    near, far = image.copy(), image.copy()
    near[0, 0, 0], far[0, 0, 0] = 8, 9
    assert artifacts.compare_pixels('p', image, near, 0)
    assert not artifacts.compare_pixels('p', image, near, 1e-6)
    assert artifacts.compare_pixels('p', image, far, 1e-6)


@pytest.fixture
def folder(tmp_path):
    """What a run leaves behind, small."""
    run = tmp_path / 'one' / 'run'
    (run / 'tensorboard').mkdir(parents=True)
    (run / 'tensorboard' / 'events').write_bytes(b'\xff\x00 time')
    (run / 'metrics.jsonl').write_text('{"loss": 1.0, "seconds/update": 3.0, "step": 1}\n')
    (run / 'scores.csv').write_text('policy,score\nbase,0.5\n')
    Image.fromarray(np.full((2, 2, 3), 7, np.uint8)).save(run / 'sheet.png')
    np.savez(run / 'step_1.npz', images=np.zeros(3), prompts=np.array(['a', 'b']))
    safetensors.numpy.save_file({'down': np.ones((2, 3), np.float32)}, run / 'lora.safetensors')
    for step in (1, 2):
        checkpoint = run / 'checkpoints' / str(step)
        state = {'policy/a': np.full(3, step, np.float32), 'step': np.int32(step)}
        ocp.PyTreeCheckpointer().save(checkpoint / 'state', state)
        (checkpoint / 'meta').mkdir()
        document = {'meta': {'seconds': 1.0}, 'score': 0.5, 'digests': {'policy/a': 1}, 'seal': 'a'}
        (checkpoint / 'meta' / 'metadata').write_text(json.dumps(document))
    return tmp_path / 'one'


def compared(a, b, **options):
    comparison = artifacts.Comparison(0, **options)
    comparison.folders(a, b)
    return comparison


def copied(folder):
    return pathlib.Path(shutil.copytree(folder, folder.parent / 'two'))


def test_a_copy_is_equal_but_for_times(folder):
    other = copied(folder)
    (other / 'run' / 'metrics.jsonl').write_text('{"loss": 1.0, "seconds/update": 4, "step": 1}\n')
    (other / 'run' / 'tensorboard' / 'events').write_bytes(b'another time')
    (other / 'run' / 'command.txt').write_text('/a/place python -m densegrpo_jax.main')
    document = {'meta': {'seconds': 2.0}, 'score': 0.5, 'digests': {'policy/a': 1}, 'seal': 'b'}
    (other / 'run' / 'checkpoints' / '1' / 'meta' / 'metadata').write_text(json.dumps(document))
    comparison = compared(folder, other)
    assert not comparison.differences
    assert comparison.counts == {'arrays': 3, 'rows': 1, 'files': 5}


def test_every_kind_of_file_is_looked_into(folder):
    other = copied(folder)
    run = other / 'run'
    (run / 'scores.csv').write_text('policy,score\nbase,0.6\n')
    Image.fromarray(np.full((2, 2, 3), 9, np.uint8)).save(run / 'sheet.png')
    np.savez(run / 'step_1.npz', images=np.zeros(3), prompts=np.array(['a', 'c']))
    safetensors.numpy.save_file({'down': np.zeros((2, 3), np.float32)}, run / 'lora.safetensors')
    (run / 'metrics.jsonl').write_text('{"loss": 1.5, "step": 1}\n')
    state = {'policy/a': np.array([2, 2, 3], np.float32), 'step': np.int32(2)}
    ocp.PyTreeCheckpointer().save(run / 'checkpoints' / '2' / 'state', state, force=True)
    (run / 'new.txt').write_text('more')
    assert {d.where for d in compared(folder, other).differences} == {
        'run/scores.csv',
        'run/sheet.png',
        'run/step_1.npz:prompts',
        'run/lora.safetensors:down',
        'run/metrics.jsonl:loss',
        'run/checkpoints/2:policy/a',
        'run/new.txt',
    }
    comparison = compared(folder, other, ignore='')
    ignored = compared(folder, other, ignore='policy/a')
    assert len(ignored.differences) == len(comparison.differences) - 1 and ignored.notes


def test_checkpoints_of_other_steps_or_damaged(folder):
    other = copied(folder)
    shutil.rmtree(other / 'run' / 'checkpoints' / '1')
    (one,) = compared(folder, other).differences
    assert one.what == 'steps [1, 2] before, [2] after'
    (other / 'run' / 'checkpoints' / '2' / 'meta' / 'metadata').unlink()
    assert 'cannot be read' in compared(folder, other).differences[-1].what
    (other / 'run' / 'lora.safetensors').write_bytes(b'cut')
    told = {d.where: d.what for d in compared(folder, other).differences}
    assert 'cannot be read' in told['run/lora.safetensors']


def test_arrays_under_another_name(folder):
    other = copied(folder)
    state = {'adapters/a': np.full(3, 2, np.float32), 'step': np.int32(2)}
    newest = other / 'run' / 'checkpoints' / '2' / 'state'
    ocp.PyTreeCheckpointer().save(newest, state, force=True)
    assert len(compared(folder, other).differences) == 2
    assert not compared(folder, other, renames=[('^policy/', 'adapters/')]).differences


def test_ratios_are_of_pairs():
    result = checkouts.ratios([1.0, 2.0, 4.0], [1.1, 2.0, 4.0])
    assert result['median'] == 1.0 and result['most'] == pytest.approx(1.1)
    assert result['quartiles'] == pytest.approx([1.0, 1.05])
    assert checkouts.ratios([2.0], [1.0])['quartiles'] == [0.5, 0.5]


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['--only=dense,nothing'], '--only=nothing: no such case'),
        (['--tolerance=2'], '--tolerance=2'),
        (['--rename=a'], 'expected OLD=>NEW'),
        (['--iterations=1'], '--iterations'),
    ],
)
def test_arguments_that_cannot_be_used(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        checkouts.parse(arguments)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_neither_a_folder_nor_a_revision(tmp_path, capsys):
    assert checkouts.main([f'--before={tmp_path / "none"}', '--after=.']) == 2
    assert 'neither a folder nor a git revision' in capsys.readouterr().err


def test_the_command_line_of_a_case():
    checkout = checkouts.Checkout('after', ROOT, '', 'python', None)
    case = CASES['calibrate']
    name, *arguments = case.commands[-1]
    line = checkout.command(case, name, arguments, {'case': '/runs/c'})
    assert line[:4] == ['python', '-m', 'densegrpo_jax.main', '--config=configs/tiny_ocr.py']
    assert '--config.noise.psi_path=/runs/c/psi/psi.json' in line and '--cpu_devices=1' in line
    assert '--config.reward={"jpeg": {"weight": 1000.0}}' in line
    assert not [part for part in line if '{case}' in part]


@pytest.mark.parametrize('name', CASES)
def test_every_override_names_a_key_of_its_recipe(name):
    module = CASES[name].recipe.removesuffix('.py').replace('/', '.')
    config = importlib.import_module(module).get_config()
    for key in {**SMALL, **CASES[name].overrides}:
        value = config
        for part in key.split('.'):
            assert isinstance(value, ConfigDict) and part in value, f'{name}: {key}'
            value = value[part]
