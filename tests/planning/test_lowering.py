"""The programs that a plan writes down are those of the configuration's loss."""

import jax
import numpy as np

from configs import tiny_ocr
from densegrpo_jax.core.losses import CLEAN, LOSSES, Loss, loss_sums
from densegrpo_jax.core.roles import REF
from densegrpo_jax.planning.lowering import phases
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.sampler import make_schedule
from densegrpo_jax.sampling.session import open_base


def update_of(mesh, **changes):
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict(
        {'model.height': 16, 'model.width': 32, 'optim.microbatch': 48, **changes}
    )
    _, pipeline = open_base(config, mesh)
    schedule = make_schedule(pipeline, config)
    return phases(config, pipeline, schedule, mesh)['update'], schedule


def test_an_update_is_that_of_its_batch_and_roles(monkeypatch):
    regression = lambda outputs, batch: loss_sums(batch.s, batch.mask)
    monkeypatch.setitem(LOSSES, 'regression', Loss(regression, CLEAN, needs=(REF,)))
    mesh = make_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
    of_steps, schedule = update_of(mesh)
    of_samples, _ = update_of(
        mesh, **{'loss.kind': 'regression', 'credit.rule': 'sparse', 'loss.noise_power': 0.0}
    )
    steps = int(np.sum(schedule.masks.trained))
    # a forward and a backward pass a step; and one more forward pass, of the reference, a sample
    np.testing.assert_allclose(of_steps.flops / of_samples.flops, steps * 2 / 3, rtol=1e-6)
