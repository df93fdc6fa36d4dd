"""A configuration opened, for tests of what recipes and published settings hold."""

from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import open_shapes


def opened(config, mesh=None):
    """The pipeline and the schedule; no weights are read. mesh: not that of the configuration."""
    pipeline = open_shapes(config, mesh or make_mesh(config.mesh))
    return pipeline, make_schedule(pipeline, config)
