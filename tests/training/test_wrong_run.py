"""A run that is read or continued with other parts than it was made with, or with damaged ones."""

import errno
import json
import logging
import os
import shutil

import numpy as np
import pytest

from densegrpo_jax.evaluation.evaluate import evaluate
from densegrpo_jax.evaluation.panel import choose
from densegrpo_jax.pipelines.folder import params_digest
from densegrpo_jax.pipelines.weights import content
from densegrpo_jax.pipelines.weights.content import content_digest
from densegrpo_jax.rewards.local.jpeg import JpegReward
from densegrpo_jax.runtime import outputs
from densegrpo_jax.runtime.checkpoint_errors import CheckpointDamaged, CheckpointMismatch
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.metrics import JsonlWriter
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.draw import draw
from densegrpo_jax.sampling.export import export
from densegrpo_jax.sampling.session import check
from densegrpo_jax.sampling.state import follow_rules, optimiser, state_shapes
from densegrpo_jax.training.resume import check_earlier, check_keys
from densegrpo_jax.training.run import run
from densegrpo_jax.viewing.run_data import read_run
from tests.fake_hosts import on_hosts
from tests.programs import shared_programs, sharing  # noqa: F401
from tests.training.small_run import make_config, one_device

pytestmark = pytest.mark.usefixtures('shared_programs')

WEIGHTS = 'diffusion_pytorch_model.safetensors'


def train(config, workdir, **options):
    one = one_device()
    return run(config, workdir, one, StopRequest(), **options)


@pytest.fixture(scope='module')
def made(folder, tmp_path_factory):
    """(folder of the base, work directory) of a run of one update, which no test changes."""
    workdir = tmp_path_factory.mktemp('made') / 'run'
    with sharing():
        train(make_config(folder, iterations=1), workdir)
    return folder, workdir


@pytest.fixture
def own(made, tmp_path):
    """Copies of both, and the configuration of the run on the copy of the base."""
    base, workdir = tmp_path / 'base', tmp_path / 'run'
    shutil.copytree(made[0], base)
    shutil.copytree(made[1], workdir, ignore=shutil.ignore_patterns('lock'))
    return base, workdir, make_config(made[0], iterations=2)


def test_a_disk_without_room_for_a_checkpoint_is_named_before_anything_is_encoded(
    own, tmp_path, monkeypatch
):
    _, workdir, config = own
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(ValueError, match='a checkpoint takes .* whose disk has 0.00 MiB left'):
        train(config, tmp_path / 'another')
    assert not (tmp_path / 'another' / 'text').exists()
    before = sorted(workdir.rglob('*'))
    with pytest.raises(ValueError, match='a checkpoint takes'):
        train(config, workdir)
    assert sorted(workdir.rglob('*')) == before


def readers(config, workdir, tmp_path):
    """Everything that reads a run's policy."""
    return (
        lambda: draw(config, ['x'], workdir=workdir),
        lambda: export(config, workdir, tmp_path / 'adapter'),
        lambda: export(config, workdir, tmp_path / 'merged', layout='merged'),
        lambda: evaluate(config, choose(['1'], str(workdir)), tmp_path / 'out', kl_prompts=0),
    )


def other_weights(path):
    """Changes the last numbers of a safetensors file."""
    stored = bytearray(path.read_bytes())
    stored[-64:] = np.zeros(16, np.float32).tobytes()
    path.write_bytes(stored)


@pytest.mark.parametrize('key, value', [('alpha', 8.0), ('rank', 4)])
def test_adapters_of_another_meaning_are_refused_by_every_reader(own, tmp_path, key, value):
    _, workdir, config = own
    config.lora[key] = value
    for read in readers(config, workdir, tmp_path):
        with pytest.raises(CheckpointMismatch, match=f'lora.{key}: '):
            read()
    assert not (tmp_path / 'out' / 'text').exists()  # refused before any prompt was encoded


def test_a_run_goes_on_with_changed_code_of_ones_own_if_told_to(
    made, tmp_path, monkeypatch, caplog
):
    file, workdir = tmp_path / 'own_mended.py', tmp_path / 'run'
    file.write_text('from densegrpo_jax.rewards.local.jpeg import JpegReward as Mine\n')
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config(made[0], iterations=1)
    config.reward = {'mine': {'kind': 'own_mended:Mine'}}
    # the module stays imported, as a process has one version: scores of 0 stand for the old one's
    with monkeypatch.context() as patch:
        patch.setattr(JpegReward, '_sign', 0.0, raising=False)
        patch.setattr(JpegReward, '__init__', lambda self: setattr(self, '_quality', 95))
        patch.setattr(JpegReward, 'range', (-np.inf, 0.0), raising=False)
        old = train(config, workdir)['evaluations']
    assert [step for step, *_ in old] == [0, 1] and all(mean == 0 for _, mean, _ in old)
    file.write_text(file.read_text() + '# mended\n')
    config.iterations = 2
    with pytest.raises(CheckpointMismatch, match='code of your own.reward.mine: .*--own_code=warn'):
        train(config, workdir)
    caplog.set_level(logging.INFO)
    summary = train(config, workdir, own_code='warn')
    [[step, told]] = summary['other_code']
    assert step == 1 and told.startswith('code of your own.reward.mine: ')
    assert f'goes on from iteration 1 with other code of your own: {told}' in caplog.text
    # what the old code scored, higher, neither competes for the best nor is the start
    assert summary['evaluations_by_other_code'] == old
    assert [step for step, *_ in summary['evaluations']] == [1, 2]
    assert summary['before']['mean'] < 0 and summary['best']['mean'] < 0
    assert f'evaluation score after 1 {summary["before"]["mean"]:.4f}' in caplog.text
    assert (workdir / 'before_after.png').is_file()
    series = read_run(workdir)['series']
    assert [series[name][0] for name in ('eval/total', 'train/reward')] == [[1, 2], [2]]
    caplog.clear()
    assert train(config, workdir) == summary and 'other code' not in caplog.text


def test_another_base_is_said_by_every_reader_and_does_not_continue(own, tmp_path, caplog):
    base, workdir, config = own
    config.model.path = str(base)  # of the same bytes in another place: nothing is said
    caplog.set_level(logging.WARNING)
    draw(config, ['x'], workdir=workdir)
    assert 'other weights' not in caplog.text
    other_weights(base / 'vae' / WEIGHTS)
    drawn, _, *scoring = readers(config, workdir, tmp_path)
    for read in (drawn, *scoring):
        caplog.clear()
        read()
        assert 'was trained on other weights' in caplog.text


def earlier(config, workdir, stop=None):
    """What a start finds of the run, after all checks and before anything is loaded."""
    stop = stop or StopRequest()
    check_keys(config, workdir, stop.communicator.hosts)
    checked = check(config, one_device(), stop)
    tx = optimiser(config, checked.pipeline.transformer)
    shapes = state_shapes(checked.pipeline, tx, follow_rules(config))
    return check_earlier(checked, shapes, workdir)


def test_a_run_continues_on_the_base_and_prompts_that_it_began_with(own, tmp_path, monkeypatch):
    base, workdir, config = own
    path, config.model.path = config.model.path, str(base)
    config.data.train = str(shutil.copy(config.data.train, tmp_path / 'words.txt'))
    assert earlier(config, workdir) == (1, [])  # the same bytes in other places
    other_weights(base / 'transformer' / WEIGHTS)
    with pytest.raises(CheckpointMismatch, match='(?s)model.path: .*weights of the base: '):
        train(config, workdir)
    config.model.path = path
    monkeypatch.setattr('densegrpo_jax.sampling.session.resolve_folder', lambda name, **_: base)
    with pytest.raises(CheckpointMismatch, match='weights of the base: ') as found:
        train(config, workdir)
    assert 'model.path' not in str(found.value)


def test_a_run_continues_with_the_weights_that_its_reward_began_with(own, tmp_path, monkeypatch):
    _, workdir, config = own
    files = [tmp_path / 'reward.safetensors']
    files[0].write_bytes(b'as published')
    monkeypatch.setattr(JpegReward, 'weight_files', lambda self: files, raising=False)
    train(config, workdir)  # what it had in the first update is not on record
    files = [shutil.copy(files[0], tmp_path / 'copy.safetensors')]
    assert earlier(config, workdir) == (2, [])
    (tmp_path / 'copy.safetensors').write_bytes(b'of a later day')
    told = r'(?s)weights of rewards\.jpeg: .* there, .* here\nUse .* the files .*another --workdir'
    with pytest.raises(CheckpointMismatch, match=told) as found:
        train(config, workdir)
    assert str(found.value).count('\n') == 2  # nothing else


@pytest.mark.parametrize(
    'file', ['scheduler/scheduler_config.json', 'tokenizer/tokenizer_config.json']
)
def test_other_settings_of_a_base_are_refused_before_its_weights_are_fetched(
    own, monkeypatch, file
):
    base, workdir, config = own
    config.model.path = str(base)
    (base / file).write_text((base / file).read_text() + '\n')
    with pytest.raises(CheckpointMismatch, match='settings and tokenizers of the base: '):
        earlier(config, workdir)
    fetched = lambda *_, **__: pytest.fail('the weights are looked for')
    monkeypatch.setattr('densegrpo_jax.training.run.check_weights', fetched)
    with pytest.raises(CheckpointMismatch, match='model.path: '):
        train(config, workdir)


def test_a_process_may_have_the_base_elsewhere_when_a_run_continues(own):
    """The checkpoint names the place of process 0, of a run whose facts were not yet recorded."""
    base, workdir, config = own
    document = workdir / 'checkpoints' / '1' / 'meta' / 'metadata'
    stored = json.loads(document.read_text())
    del stored['seal'], stored['fingerprint']['settings and tokenizers of the base']
    document.write_text(json.dumps(stored))

    def on_host(hosts, configs):
        return earlier(configs[hosts.index], workdir, StopRequest(Communicator(hosts)))

    elsewhere, otherwise = make_config(base, iterations=2), make_config(base, iterations=2, seed=7)
    assert on_hosts(lambda hosts: on_host(hosts, [config, elsewhere])) == [(1, [])] * 2
    for error in on_hosts(lambda hosts: on_host(hosts, [elsewhere, otherwise])):
        assert isinstance(error, CheckpointMismatch)
        assert ('model.path: ' in str(error)) != ('seed: ' in str(error))


def test_a_long_file_is_compared_by_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(content, 'WHOLE', 1000)
    monkeypatch.setattr(content, 'BLOCK', 10)
    monkeypatch.setattr(content, 'BLOCKS', 5)
    path = tmp_path / 'a.safetensors'
    digest = lambda data: (path.write_bytes(data), content_digest([path]))[1]
    data = bytes(range(256)) * 8
    whole = digest(data)
    for place, same in ((0, False), (509, False), (len(data) - 1, False), (100, True)):
        changed = bytearray(data)
        changed[place] ^= 1
        assert (digest(bytes(changed)) == whole) == same, place
    assert digest(data + b'x') != whole


def test_files_that_are_not_read_do_not_count(own, tmp_path):
    folder, _, config = own
    copy = shutil.copytree(folder, tmp_path / 'copy')
    shutil.copy(copy / 'vae' / WEIGHTS, copy / 'vae' / 'model.fp16.safetensors')
    pipeline = check(config, one_device()).pipeline
    assert params_digest(copy, pipeline) == params_digest(folder, pipeline)


def test_damage_is_named_by_every_reader(own, tmp_path):
    _, workdir, config = own
    shutil.rmtree(workdir / 'checkpoints' / '1' / 'state')
    for read in readers(config, workdir, tmp_path)[:3]:
        with pytest.raises(CheckpointDamaged, match='The checkpoint of step 1 .* is damaged'):
            read()


@pytest.mark.parametrize(
    'content', ['{}', '{"evaluations": [[1, "a", 2]]}', '[]', '{"evaluations": 5}']
)
def test_a_summary_of_another_form_is_named_before_anything_is_written(own, tmp_path, content):
    _, workdir, config = own
    (workdir / 'summary.json').write_text(content)
    with pytest.raises(ValueError, match='summary.json'):
        export(config, workdir, tmp_path / 'adapter')
    assert not (tmp_path / 'adapter').exists()


def test_an_export_into_the_checkpoints_is_refused(own):
    _, workdir, config = own
    with pytest.raises(ValueError, match='name a folder outside it'):
        export(config, workdir, workdir / 'checkpoints' / '1')


def test_what_an_earlier_start_left_damaged_does_not_end_a_run(own, caplog):
    _, workdir, config = own
    (workdir / 'samples' / 'step_000000.npz').unlink()
    files = sorted((workdir / 'text').rglob('*.safetensors'))
    before = {path: path.read_bytes() for path in files}
    for path in files[::2]:
        path.write_bytes(before[path][:-10])
    files[1].write_bytes(b'')
    caplog.set_level(logging.WARNING)
    assert train(config, workdir)['updates'] == 2
    assert 'before_after.png is left out' in caplog.text
    assert json.loads((workdir / 'summary.json').read_text())['updates'] == 2
    assert not (workdir / 'before_after.png').exists()
    assert {path: path.read_bytes() for path in files} == before
    assert caplog.text.count('is damaged; its prompt is encoded anew') == len(files[::2]) + 1


def test_the_last_update_is_saved_although_metrics_cannot_be_written(own, monkeypatch, caplog):
    """As where the size of files is limited."""
    _, workdir, config = own

    def full(*given):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), 'metrics.jsonl')

    with monkeypatch.context() as patch:
        for name in ('write_scalars', 'flush', 'close'):
            patch.setattr(JsonlWriter, name, full)
        with pytest.raises(OSError, match='File too large'):
            train(config, workdir)
    assert 'could not be saved' not in caplog.text
    assert (workdir / 'checkpoints' / '2').is_dir()
    assert train(config, workdir)['updates'] == 2


def test_processes_whose_work_directories_are_not_one_are_refused(tmp_path, monkeypatch):
    """Each would write its part of a checkpoint to a folder of its own."""
    monkeypatch.setattr(outputs, 'SHARED_SECONDS', 0.1)

    def on_host(hosts):
        workdir = tmp_path / str(hosts.index)
        workdir.mkdir()
        run(make_config('nowhere'), workdir, one_device(), StopRequest(Communicator(hosts)))

    for error in on_hosts(on_host):
        assert 'is not the folder of that name that process 0 writes to' in str(error)
