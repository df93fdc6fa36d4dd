"""Training all weights: the same loop with the base as the trained tree and a frozen copy as the
reference; and its export.
"""

import gc
import shutil

import jax
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.export import export
from densegrpo_jax.sampling.loading import load_policy
from densegrpo_jax.sampling.session import check, load_weights, open_base
from densegrpo_jax.training.run import run
from tests.programs import shared_programs, sharing  # noqa: F401
from tests.training.small_run import FEW, one_device, rows

pytestmark = pytest.mark.usefixtures('shared_programs')

SMALL = {
    'iterations': 2,
    'rollout.prompts': 2,
    'rollout.group': 4,
    'rollout.prompts_per_batch': 2,
    'rollout.steps': 3,
    'optim.microbatch': 8,
    'eval.every': 2,
    'eval.batch': 4,
    'eval.steps': 2,
    'eval.shown': 2,
    'data.train': FEW,
    'data.eval_prompts': 4,
    'model.height': 16,
    'model.width': 32,
    'full': True,
    'loss.beta': 0.1,
    'ema.decay': 0.0,
}


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    """(config, workdir) of a finished run."""
    config, workdir = tiny_ocr.get_config(), tmp_path_factory.mktemp('full') / 'run'
    config.model.path = str(folder)
    config.update_from_flattened_dict(SMALL)
    config.reward = {'jpeg': {'weight': 1.0}}
    with sharing():
        run(config, workdir, one_device(), StopRequest())
    return config, workdir


def test_trains_every_weight_against_a_frozen_reference(trained):
    config, workdir = trained
    first, second = rows(workdir)[1:]
    # the policy starts as the reference
    assert first['train/ratio_deviation_first'] <= 1e-6 and first['train/kl'] <= 1e-10
    assert second['train/kl'] > 100 * first['train/kl']  # and leaves it
    mesh = one_device()
    checked = check(config, mesh)
    params = load_weights(checked)
    policy, step = load_policy(checked.pipeline, config, mesh, workdir, 'latest')
    assert step == 2 and jax.tree.structure(policy) == jax.tree.structure(params['transformer'])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), policy, params['transformer'])
    assert np.mean(jax.tree.leaves(moved)) > 0.9


def test_goes_on_without_a_second_state_beside_the_restored_one(trained, tmp_path, monkeypatch):
    """At full size there is room for one."""
    config, workdir = trained
    shutil.copytree(workdir, tmp_path / 'run')
    restore, sizes = Checkpoints.restore_latest, []
    live = lambda: (gc.collect(), sum(array.nbytes for array in jax.live_arrays()))[1]

    def measuring(self, wanted):
        before, restored = live(), restore(self, wanted)
        sizes.append(
            (before - others, sum(leaf.nbytes for leaf in jax.tree.leaves(restored.state)))
        )
        return restored

    monkeypatch.setattr(Checkpoints, 'restore_latest', measuring)
    others = live()
    run(config, tmp_path / 'run', one_device(), StopRequest())
    [(before, state)] = sizes
    # the base's weights alone; policy, average and both moments are four times the transformer's
    assert before < state / 2


def test_exports_a_pipeline_and_refuses_an_adapter(trained, tmp_path):
    config, workdir = trained
    with pytest.raises(ValueError, match='--layout=merged'):
        export(config, workdir, tmp_path / 'lora')
    export(config, workdir, tmp_path / 'merged', layout='merged', checkpoint='latest')
    mesh = one_device()
    policy, _ = load_policy(open_base(config, mesh)[1], config, mesh, workdir, 'latest')
    _, params = load_pipeline(tmp_path / 'merged', text_length=16)
    jax.tree.map(np.testing.assert_array_equal, params['transformer'], policy)
    card = (tmp_path / 'merged' / 'README.md').read_text()
    assert 'FluxPipeline.from_pretrained' in card and 'Evaluation score before' in card
    assert (tmp_path / 'merged' / 'reward_curve.png').is_file()
