"""Every program of FLUX.1-dev, SD3.5-M and SD1.5 at full size, compiled ahead of time for eight
devices from shapes alone (slow).
"""

import time

import numpy as np
import pytest

from configs import flux_ocr, sd15_pickscore, sd35_ocr
from densegrpo_jax.pipelines.released import released_pipeline
from densegrpo_jax.planning.lowering import phases
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import network_options


@pytest.mark.slow
@pytest.mark.parametrize(
    'module', [flux_ocr, sd35_ocr, sd15_pickscore], ids=lambda module: module.__name__
)
def test_compiles_for_eight_devices(module):
    config = module.get_config('devices=8')
    config.mesh.update(data=1, fsdp=8)
    mesh = make_mesh(config.mesh)
    pipeline = released_pipeline(config.model.path, **network_options(config, mesh))
    for name, phase in phases(config, pipeline, make_schedule(pipeline, config), mesh).items():
        began = time.monotonic()
        compiled = phase.lowered.compile()
        report(name, module.__name__, compiled, time.monotonic() - began)


def report(phase, name, compiled, seconds):
    """One line with what a device holds; the arguments must be a fraction of the whole."""
    memory = compiled.memory_analysis()
    gib = {
        k: np.round(getattr(memory, f'{k}_size_in_bytes') / 2**30, 2)
        for k in ('argument', 'temp', 'output')
    }
    print(
        f'{name} {phase}: compiled in {seconds:.0f} s; per device {gib} GiB (temporaries as the '
        'CPU compiler lays them out)'
    )
    assert gib['argument'] < 24 / 4
