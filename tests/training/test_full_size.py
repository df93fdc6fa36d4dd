"""Rollout and update of FLUX.1-dev and SD3.5-M at full size, compiled ahead of time for eight devices from shapes alone (slow)."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / 'tests'), str(ROOT / 'configs')]

import flux_ocr  # noqa: E402
import sd35_ocr  # noqa: E402

from densegrpo_jax.core.rollout import Transitions  # noqa: E402
from densegrpo_jax.models.pipeline import NEGATIVE  # noqa: E402
from densegrpo_jax.models.released import released_pipeline  # noqa: E402
from densegrpo_jax.parallel.mesh import batch_sharding, make_mesh  # noqa: E402
from densegrpo_jax.parallel.sharding import shardings, with_shardings  # noqa: E402
from densegrpo_jax.training.loading import network_options  # noqa: E402
from densegrpo_jax.training.sampling import make_rollout, make_schedule  # noqa: E402
from densegrpo_jax.training.state import init_state, optimiser  # noqa: E402
from densegrpo_jax.training.update import make_update  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize('module', [flux_ocr, sd35_ocr], ids=lambda module: module.__name__)
def test_compiles_for_eight_devices(module):
    config = module.get_config('devices=8')
    config.mesh.update(data=1, fsdp=8)
    dtype, mesh = jnp.bfloat16, make_mesh(config.mesh)
    pipeline = released_pipeline(config.model.path, **network_options(config, mesh))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), pipeline.abstract_params(['transformer', 'vae']))
    params = with_shardings(shapes, shardings(shapes, mesh))
    row = lambda *shape, d=jnp.float32: jax.ShapeDtypeStruct(shape, d, sharding=batch_sharding(mesh))
    whole = lambda *shape, d=jnp.float32: jax.ShapeDtypeStruct(shape, d)
    if pipeline.GUIDANCE == 'cfg':
        params[NEGATIVE] = pipeline.conditioning_shapes(1)
    tx, schedule = optimiser(config), make_schedule(pipeline, config)
    state = jax.eval_shape(lambda base: init_state(pipeline, tx, jax.random.key(0), base), shapes['transformer'])
    state = with_shardings(state, shardings(state, mesh))
    r = config.rollout
    key = jax.eval_shape(lambda: jax.random.key(0))
    rollout = make_rollout(pipeline, config, schedule, mesh).lower(
        params, state.policy, pipeline.conditioning_shapes(r.prompts_per_batch), key, whole(r.prompts_per_batch, d=jnp.int32)
    )
    report('rollout', module.__name__, rollout.compile())

    rows = int(schedule.plan.trained.sum()) * r.prompts * r.group
    latent = pipeline.latent_shape(config.model.height, config.model.width)
    fields = dict(x=row(rows, *latent), x_next=row(rows, *latent), mask=row(rows, d=jnp.bool), prompt_id=row(rows, d=jnp.int32),
                  segment_id=row(rows, d=jnp.int32))  # fmt: skip
    batch = Transitions(**{f: fields.get(f, row(rows)) for f in Transitions._fields})
    update = make_update(pipeline, config, tx, mesh).lower(state, params, pipeline.conditioning_shapes(r.prompts), batch)
    report('update', module.__name__, update.compile())


def report(phase, name, compiled):
    """One line with what a device holds; the arguments must be a fraction of the whole."""
    memory = compiled.memory_analysis()
    gib = {k: np.round(getattr(memory, f'{k}_size_in_bytes') / 2**30, 2) for k in ('argument', 'temp', 'output')}
    print(f'{name} {phase}: per device {gib} GiB (temporaries as the CPU compiler lays them out)')
    assert gib['argument'] < 24 / 4
