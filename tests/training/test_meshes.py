"""An iteration over eight devices, data and parameters split in every way, equals one device:
pictures, loss, gradients, the update.
"""

import jax
import numpy as np
import optax
import pytest

from configs import tiny_ocr
from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.networks import flux2, zimage
from densegrpo_jax.runtime import sharding
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.streams import key_data
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import check, load
from densegrpo_jax.sampling.state import init_state
from densegrpo_jax.training.learner import make_credit, make_update
from tests import miniature

SMALL = {
    'rollout.prompts': 2,
    'rollout.group': 8,
    'rollout.prompts_per_batch': 2,
    'rollout.steps': 3,
    'optim.microbatch': 16,
    'lora.rank': 2,
    'lora.alpha': 4.0,
    'model.height': 16,
    'model.width': 32,
}
# Branches with a merged step, two strides and two seeds for a prompt.
BRANCHES = {
    **METHODS['temp_flow'].overrides,
    'plan.seeds': 2,
    'plan.merge': (2, 1),
    'plan.strides': (1, 2),
    'loss.beta': 0.0,
}
# FLUX.2 [klein], whose fused layers are cut across their parts.
KLEIN = {'model.t5_length': 24, 'model.guidance': 1.0, 'lora.targets': flux2.LORA_TARGETS}
ZIMAGE = KLEIN | {'lora.targets': zimage.LORA_TARGETS}
# Classifier-free guidance puts the rows of the empty prompt beside those of a batch that is split.
GUIDED = {'model.guidance': 4.0, 'model.cfg_normalization': 0.9}
PROMPTS = ['A neon sign that says "ONE"', 'A paper note with the word "TWO"']


class Iteration:
    """The parts of `training.run` on one mesh, with plain gradient descent of rate 1: the policy
    moves by minus the gradient.
    """

    def __init__(self, config, sizes, devices):
        mesh = make_mesh(dict(zip(('data', 'fsdp', 'tensor'), sizes)), devices)
        session = load(check(config, mesh), PROMPTS)
        self.pipeline, self.params = session.pipeline, session.params
        schedule, self.tx = make_schedule(self.pipeline, config), optax.sgd(1.0)
        self.fresh = lambda base: init_state(self.pipeline, self.tx, jax.random.key(0), base)
        rules = self.pipeline.sharding_rules
        self.start = lambda: sharding.init_sharded(
            self.fresh, mesh, self.params['transformer'], rules=rules
        )
        self.text = session.conditioning(PROMPTS), session.negative
        self._ids = group_ids_of([config.rollout.group] * len(PROMPTS))
        self._rollout, self._levels = (
            make_rollout(self.pipeline, config, schedule, mesh),
            schedule.noise_levels,
        )
        self._credit, self._update = (
            make_credit(config, schedule, mesh),
            make_update(self.pipeline, config, self.tx, mesh),
        )

    def sample(self):
        """Pictures [S, B, H, W, 3] and the scored transitions; the reward is the brightness of the
        left half.
        """
        key = key_data(jax.random.key(1))
        rollout, images, finite = self._rollout(
            self.params, self.start().policy, *self.text, key, np.arange(2), self._levels
        )
        images = np.asarray(images)
        rewards = images[:, :, :, : images.shape[3] // 2].mean((2, 3, 4)).astype(np.float32) / 255
        return images, self._credit([rollout], rewards, np.asarray(finite), self._ids)[0]

    def update(self, batch):
        """Loss, and the gradient of every adapter."""
        before = jax.device_get(self.start().policy)
        state, metrics = self._update(self.start(), self.params, *self.text, batch)
        self.deviation = float(metrics['ratio_deviation_first'])
        return float(metrics['loss']), jax.tree.map(
            lambda a, b: a - b, before, jax.device_get(state.policy)
        )


@pytest.fixture(
    scope='module',
    params=[
        pytest.param((miniature.random_flux, {}), id='trajectories'),
        pytest.param((miniature.random_flux, BRANCHES), id='branches', marks=pytest.mark.slow),
        pytest.param((miniature.random_klein, KLEIN | GUIDED), id='klein', marks=pytest.mark.slow),
        pytest.param(
            (miniature.random_zimage, ZIMAGE | GUIDED), id='zimage', marks=pytest.mark.slow
        ),
    ],
)
def one(tmp_path_factory, request):
    """Configuration; one device's pictures, transitions (on the host), loss and gradients."""
    config = tiny_ocr.get_config()
    write, changes = request.param
    config.update_from_flattened_dict({**SMALL, **changes})
    config.model.path = str(write(tmp_path_factory.mktemp('model')))
    alone = Iteration(config, (1, 1, 1), jax.devices()[:1])
    images, batch = alone.sample()
    batch = jax.device_get(batch)
    loss, gradients = alone.update(batch)
    assert alone.deviation <= 1e-6
    return config, images, batch, loss, gradients


def close(found, expected, tolerance):
    """Relative to the largest entry of each array."""
    for path, want in jax.tree_util.tree_leaves_with_path(expected):
        have = found
        for key in path:
            have = have[key.key]
        assert np.abs(have - want).max() <= tolerance * np.abs(want).max() + 1e-9, (
            jax.tree_util.keystr(path)
        )


slow = lambda *sizes: pytest.param(sizes, marks=pytest.mark.slow)


@pytest.mark.parametrize('sizes', [slow(1, 8, 1), slow(8, 1, 1), slow(2, 4, 1), (2, 2, 2)])
def test_equals_one_device(one, sizes, monkeypatch):
    monkeypatch.setattr(sharding, 'MIN_SHARD_BYTES', 1024)  # the miniature's matrices are split too
    config, images, batch, loss, gradients = one
    mesh = Iteration(config, sizes, jax.devices()[:8])
    split = [
        leaf
        for leaf in jax.tree.leaves(mesh.params['transformer'])
        if not leaf.sharding.is_fully_replicated
    ]
    assert len(split) > 10 or sizes == (8, 1, 1)
    # The same transitions: loss and gradients.
    found_loss, found = mesh.update(batch)
    # 0 up to rounding: the ratios are 1 and the advantages of a group sum to 0
    np.testing.assert_allclose(found_loss, loss, atol=1e-6)
    close(found, gradients, 1e-4)
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradients)) > 1e-4
    # Its own samples, scored and credited: the whole iteration.
    found_images, found_batch = mesh.sample()
    assert np.abs(found_images.astype(int) - images.astype(int)).max() <= 1
    np.testing.assert_allclose(found_batch.log_prob, batch.log_prob, rtol=1e-4, atol=1e-5)
    # a pixel that rounds the other way moves a reward by 1e-5
    close(mesh.update(found_batch)[1], gradients, 2e-2)


def test_samples_of_a_seed_begin_alike(one):
    config, images, batch, *_ = one
    if config.plan.kind != 'branch':
        pytest.skip('each sample has its own noise')
    assert len(images) == 2  # both branches end at state 2, and both strides go on by 2, 3
    starts = batch.x.reshape(2, 2, 2, 4, -1)  # steps, prompts, seeds, samples
    np.testing.assert_array_equal(starts, np.repeat(starts[:, :, :, :1], 4, 3))
    assert np.abs(starts[:, :, 0] - starts[:, :, 1]).max() > 1
    ends = batch.x_next.reshape(2, 2, 2, 4, -1)
    assert np.abs(ends[:, :, :, 0] - ends[:, :, :, 1]).max() > 0.1
