"""The read-only tools on a random miniature: sampling and evaluation with and without a run's
adapters, and their errors.
"""

import csv
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import tiny_ocr
from densegrpo_jax.config.identity import differences
from densegrpo_jax.config.of_run import own_configuration
from densegrpo_jax.config.validation import validate
from densegrpo_jax.evaluation.evaluate import _kept, evaluate
from densegrpo_jax.evaluation.panel import choose, parts, settings
from densegrpo_jax.pipelines.weights.lora_reading import read_layers
from densegrpo_jax.rewards import REWARDS, RewardError, Scores, build_reward
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.conditioning import load_prompts
from densegrpo_jax.sampling.draw import draw
from densegrpo_jax.sampling.export import export
from densegrpo_jax.sampling.loading import load_policy
from densegrpo_jax.sampling.noise import geometry, write
from densegrpo_jax.sampling.session import check, load, open_base, open_shapes
from densegrpo_jax.sampling.state import init_state, optimiser, start_from
from densegrpo_jax.training.run import run
from tests.hub import hub
from tests.programs import shared_programs, sharing  # noqa: F401
from tests.training.small_run import make_config, one_device

pytestmark = pytest.mark.usefixtures('shared_programs')


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    """(config, work directory) of a one-update run."""
    changes = {'optim.learning_rate': 0.1, 'ema.decay': 0.0, 'data.eval_prompts': 10}
    config = make_config(folder, iterations=1, **changes)
    workdir = tmp_path_factory.mktemp('run')
    with sharing():
        run(config, workdir, one_device(), StopRequest())
    return config, workdir


def test_sample_with_and_without_adapters(trained):
    config, workdir = trained
    prompts = ['A neon sign that says "HELLO"', 'A chalkboard that reads "JAX"']
    both, captions = draw(config, prompts, workdir=workdir, copies=2, compare=True)
    assert both.shape == (8, 16, 32, 3) and captions[:2] == [
        f'base: {prompts[0]}',
        f'step 1: {prompts[0]}',
    ]
    alone, _ = draw(config, prompts, copies=2)
    np.testing.assert_array_equal(both[0::2], alone)  # same noise, same base
    assert np.any(both[1::2] != alone)  # the adapters do something
    other, _ = draw(config, prompts, copies=2, seed=1)
    assert np.any(other != alone)


class Brightness:
    """Mean of the picture in [0, 1]; pictures of every third prompt stay without a score."""

    name, names, range = 'brightness', ('brightness',), (0.0, 1.0)

    def check(self, prompts, metadata):
        pass

    def __call__(self, images, prompts, metadata):
        values = images.mean((1, 2, 3), dtype=np.float32) / 255
        valid = np.array([sum(map(ord, p)) % 3 > 0 for p in prompts])
        return Scores({'brightness': np.where(valid, values, np.nan)}, valid)


@pytest.fixture
def panel(trained, monkeypatch):
    """The configuration with a panel of one reward."""
    monkeypatch.setitem(REWARDS, 'brightness', Brightness)
    config = trained[0].copy_and_resolve_references()
    config.eval.panel = {'brightness': {}}
    return config


def test_evaluate_scores_every_prompt_with_everything_on_any_number_of_devices(
    trained, panel, tmp_path, monkeypatch
):
    workdir = shutil.copytree(trained[1] / 'checkpoints', tmp_path / 'run' / 'checkpoints').parent
    policies = choose(['best', 'latest'], str(workdir))
    assert [p.label for p in policies] == ['base', 'step 1']
    results = evaluate(panel, policies, tmp_path / 'eight', group=2, kl_prompts=3)['eval']
    one = one_device()
    (tmp_path / 'four.txt').write_text('a red cat\na blue dog\ntwo green birds\na lamp\n')
    panel.eval.panel_prompts = str(tmp_path / 'four.txt')
    # its run goes on meanwhile, and removes the checkpoint
    removing = lambda *given: shutil.rmtree(workdir) or load(*given)
    monkeypatch.setattr('densegrpo_jax.evaluation.evaluate.load', removing)
    apart = evaluate(panel, policies, tmp_path / 'one', group=2, mesh=one)
    assert {name: len(result.prompts) for name, result in apart['panel'].items()} == {
        'base': 4,
        'step 1': 4,
    }
    assert (
        list(apart['panel']['base'].scores) == ['brightness', 'diversity']
        and (tmp_path / 'one' / 'panel_scores.csv').is_file()
    )
    assert '4 prompts (' in (tmp_path / 'one' / 'summary.md').read_text()
    for policy, result in results.items():
        assert list(result.scores) == ['total', 'jpeg', 'brightness', 'diversity', 'kl']
        for name, values in apart['eval'][policy].scores.items():
            np.testing.assert_allclose(
                result.scores[name], values, rtol=1e-3, atol=1e-5, err_msg=name
            )

    rows = list(csv.DictReader((tmp_path / 'eight' / 'scores.csv').open()))
    assert len(rows) == 2 * 10 and sorted(
        int(r['index']) for r in rows if r['policy'] == 'base'
    ) == list(range(10))
    column = lambda policy, name: np.array([float(r[name]) for r in rows if r['policy'] == policy])
    base = column('base', 'total')
    assert np.isclose(base.mean(), results['base'].mean(), atol=1e-5)
    assert np.isclose(results['base'].standard_error(), base.std(ddof=1) / np.sqrt(10), atol=1e-5)
    missing = np.isnan(column('base', 'brightness'))
    # without a panel score, not without the others
    assert 0 < missing.sum() < 10 and np.isfinite(base[missing]).all()
    kl = column('step 1', 'kl')
    assert (
        (kl[:3] > 0).all() and np.isnan(kl[3:]).all() and not results['base'].scores['kl'][:3].any()
    )
    assert (column('base', 'diversity') > 0).all()

    summary = (tmp_path / 'eight' / 'summary.md').read_text()
    change = column('step 1', 'jpeg') - column('base', 'jpeg')
    assert f'{change.mean():+.4f} ± {change.std(ddof=1) / np.sqrt(10):.4f}' in summary
    assert f'({10 - missing.sum()} of 10)' in summary and '(3 of 10)' in summary
    for sheet in ('base.png', 'step_1.png', 'side_by_side.png'):
        assert (tmp_path / 'eight' / sheet).is_file()


def test_the_kl_of_a_run_without_its_own_noise_is_refused_first(trained, tmp_path, monkeypatch):
    config, workdir = trained[0].copy_and_resolve_references(), trained[1]
    checked = check(config, one_device(), needs=('test',))
    plain = settings(checked, {}, 1)
    config.noise.calibrate = True
    found = differences('evaluation', plain, settings(checked, {}, 1))
    assert found == [('noise of the KL', None, 'of each run')]
    monkeypatch.setattr('densegrpo_jax.evaluation.evaluate.load', None)  # before anything is loaded
    run = shutil.copytree(workdir / 'checkpoints', tmp_path / 'run' / 'checkpoints').parent
    evaluated = lambda: evaluate(
        config, choose(['best'], str(run)), tmp_path / 'out', kl_prompts=2, mesh=one_device()
    )
    with pytest.raises(ValueError, match=r'there is no psi file .*/psi\.json.*--kl_prompts=0'):
        evaluated()
    document = {'finished': True, 'history': [], 'psi': [0.7] * 3}
    here = geometry(config, checked.schedule.sigmas, checked.schedule.masks)
    write(run / 'psi.json', {**document, 'geometry': {**here, 'kernel': 'cps'}})
    with pytest.raises(ValueError, match=r"of the kernel 'cps'.*--kl_prompts=0"):
        evaluated()


def test_a_policy_that_waits_takes_no_memory_of_the_devices():
    """Several checkpoints are loaded before the first is scored."""
    sharding = NamedSharding(make_mesh({'data': 4, 'fsdp': 2, 'tensor': 1}), PartitionSpec('fsdp'))
    policy = {'a': jax.device_put(np.arange(4.0, dtype=np.float32), sharding)}
    waiting = _kept(policy, Hosts())
    policy['a'].delete()
    found = waiting()['a']
    np.testing.assert_array_equal(found, np.arange(4))
    assert found.sharding == sharding


def test_a_score_that_no_picture_has_is_an_error(panel, tmp_path):
    panel.data.eval_prompts, panel.eval.panel_prompts = 2, str(tmp_path / 'one.txt')
    (tmp_path / 'one.txt').write_text('abc\n')  # 97 + 98 + 99 is a multiple of 3
    with pytest.raises(RewardError, match="base, panel: not one image has a score 'brightness'"):
        evaluate(panel, choose([]), tmp_path / 'out', mesh=one_device())


def test_checkpoints_of_several_runs_are_told_apart(trained, tmp_path):
    config, workdir = trained
    other = shutil.copytree(workdir / 'checkpoints', tmp_path / 'other' / 'checkpoints').parent
    labels = [
        p.label
        for p in choose([f'{workdir}:best', f'{other}:1', 'latest'], str(workdir), base=False)
    ]
    assert labels == [f'{workdir.name} step 1', 'other step 1']
    named = [f'{workdir}:best', f'{other}:best']  # with the configuration of --workdir
    assert [p.label for p in choose(named, f'{workdir}/', base=False)] == labels
    with pytest.raises(ValueError, match='every --checkpoint names a run of its own'):
        choose(named[1:], str(workdir))
    with pytest.raises(ValueError, match='of which run'):
        choose(['best'])
    with pytest.raises(FileNotFoundError, match="no checkpoint '7'"):
        choose([f'{workdir}:7'])


def test_a_panel_is_checked_before_anything_is_loaded(panel, tmp_path):
    panel.eval.panel_prompts = 'panel'
    test = load_prompts(panel, 'eval')
    opened = lambda: parts(panel, test, build_reward(panel.reward))
    which = opened()
    assert {name: [r.name for r in part.rewards] for name, part in which.items()} == {
        'eval': ['composite'],
        'panel': ['brightness'],
    }
    assert (
        len(which['panel'].prompts) == 60
        and len({p.metadata['tag'] for p in which['panel'].prompts}) == 6
    )
    panel.eval.panel.brightness.weight = 2.0
    with pytest.raises(ValueError, match='eval.panel.brightness.weight=2.0'):
        opened()
    panel.eval.panel = {}
    with pytest.raises(ValueError, match="eval.panel_prompts='panel' has no reward"):
        validate(panel)
    panel.eval.update(panel={'jpeg': {}}, panel_prompts='')
    with pytest.raises(ValueError, match=r"\['jpeg'\] occur twice"):
        opened()


@pytest.mark.parametrize('layout', ['peft', 'kohya', 'merged'])
def test_export_writes_weights_and_a_card(trained, layout, tmp_path):
    config, workdir = trained
    made = export(config, workdir, tmp_path / 'out', layout=layout)
    assert made.exists()
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert (
        ('load_lora_weights' in card) == (layout != 'merged')
        and config.model.path in card
        and '1 updates' in card
    )
    assert (tmp_path / 'out' / 'config.json').is_file() and (
        tmp_path / 'out' / 'reward_curve.png'
    ).is_file()
    assert ('tags: [text-to-image, lora' in card) == (layout != 'merged')
    assert 'max_sequence_length=16,' in card
    if layout == 'merged':  # what was not trained is what it was, in its own precision
        for file in ('vae/diffusion_pytorch_model.safetensors', 'text_encoder_2/model.safetensors'):
            base = pathlib.Path(config.model.path) / file
            assert (tmp_path / 'out' / file).read_bytes() == base.read_bytes()


def test_an_export_tells_of_its_run_whatever_recipe_is_named(trained, tmp_path):
    config, workdir = trained
    recipe = config.copy_and_resolve_references()
    recipe.model.guidance, recipe.optim.learning_rate = 7.5, 3.0
    recipe.label = 'mine'
    told = own_configuration(workdir, recipe, ['label'])
    export(recipe, workdir, tmp_path, told=told)
    assert json.loads((tmp_path / 'config.json').read_text())['optim']['learning_rate'] == 0.1
    card = (tmp_path / 'README.md').read_text()
    assert '# mine, noise' in card and f'guidance_scale={config.model.guidance:g},' in card
    assert '| learning rate | 0.1 |' in card
    assert own_configuration(tmp_path / 'nowhere', recipe, ()) is recipe


def test_an_export_is_pushed_once_it_is_complete(trained, tmp_path, monkeypatch):
    config, workdir = trained
    with hub(monkeypatch, tmp_path / 'cache') as server:
        made = export(config, workdir, tmp_path / 'out', push_to='ada/tiny')
        with pytest.raises(ValueError, match="does not belong to 'bob'"):
            export(config, workdir, tmp_path / 'other', push_to='bob/tiny')
    assert not (tmp_path / 'other').exists()  # refused before anything was done
    repository = server.repositories['models/ada/tiny']
    sent = repository.branches['main']
    assert repository.private and sent[made.name] == made.read_bytes()
    assert {'config.json', 'reward_curve.png'} <= set(sent)
    card = sent['README.md'].decode()
    assert "load_lora_weights('ada/tiny'" in card and str(tmp_path / 'out') not in card
    assert 'base_model:' not in card  # the Hub knows no local folder


def test_an_export_takes_the_place_of_nothing(trained, tmp_path):
    """Neither of the base, nor of the run, nor of somebody's file; of an earlier export it does."""
    config, workdir = trained
    base = pathlib.Path(config.model.path)
    bytes_of = lambda folder: {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    before = bytes_of(base), bytes_of(workdir)
    for out, layout in ((base, 'merged'), (workdir, 'peft'), (workdir, 'merged')):
        with pytest.raises(ValueError, match='which this command reads'):
            export(config, workdir, out, layout=layout)
    assert (bytes_of(base), bytes_of(workdir)) == before
    (tmp_path / 'README.md').write_text('mine')
    with pytest.raises(ValueError, match='holds README.md, which this command did not write'):
        export(config, workdir, tmp_path)
    assert (tmp_path / 'README.md').read_text() == 'mine'
    for _ in range(2):
        export(config, workdir, tmp_path / 'exported')


def test_adapters_are_exported_without_the_base_and_a_missing_run_is_said_first(tmp_path):
    config = tiny_ocr.get_config()
    config.model.update(path='black-forest-labs/FLUX.1-dev', attention='splash')  # neither is here
    with pytest.raises(FileNotFoundError, match=f'No checkpoint folder {tmp_path / "no-run"}'):
        export(config, tmp_path / 'no-run', tmp_path / 'out')
    mesh = one_device()
    config.model.attention = 'xla'
    assert open_shapes(config, mesh).CLASS_NAME == 'FluxPipeline'


def test_adapters_of_a_quantised_run_are_merged_into_the_exact_base(trained, tmp_path):
    config, workdir = trained
    quantized = config.copy_and_resolve_references()
    quantized.model.quantize = 'int8'
    export(config, workdir, tmp_path / 'exact', layout='merged')
    export(quantized, workdir, tmp_path / 'quantized', layout='merged')
    files = sorted(
        f.relative_to(tmp_path / 'exact') for f in (tmp_path / 'exact').rglob('*.safetensors')
    )
    assert files
    for file in files:
        assert (tmp_path / 'exact' / file).read_bytes() == (
            tmp_path / 'quantized' / file
        ).read_bytes()
    # what the run was
    assert (
        json.loads((tmp_path / 'quantized' / 'config.json').read_text())['model']['quantize']
        == 'int8'
    )


def test_a_run_starts_from_an_exported_adapter(trained, tmp_path):
    config, workdir = trained
    export(config, workdir, tmp_path / 'out')
    mesh = one_device()
    _, pipeline = open_base(config, mesh)
    want, _ = load_policy(pipeline, config, mesh, workdir)
    base = pipeline.abstract_params()['transformer']
    tx = optimiser(config, pipeline.transformer)
    state = jax.jit(lambda: init_state(pipeline, tx, jax.random.key(0), base))()
    state = start_from(state, read_layers(tmp_path / 'out'), pipeline)
    for tree in (state.policy, state.ema):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), tree, want)


def test_missing_runs_and_checkpoints_are_named(trained, tmp_path):
    config, workdir = trained
    with pytest.raises(FileNotFoundError, match='checkpoints'):
        draw(config, ['x'], workdir=tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    with pytest.raises(FileNotFoundError, match='holds no checkpoint yet: the run saves its first'):
        draw(config, ['x'], workdir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint '7'"):
        draw(config, ['x'], workdir=workdir, checkpoint='7')
    with pytest.raises(ValueError, match="'best', 'latest'"):
        draw(config, ['x'], workdir=workdir, checkpoint='newest')
