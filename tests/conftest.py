"""Test environment: eight fake CPU devices, exact f32 matmuls, no network."""

import gc
import os
import pathlib

from tests.compiler import QUICK

# Tests that start the commands as processes of their own use the compiler as users do.
OWN = f'--xla_force_host_platform_device_count=8 {QUICK}'
# What XLA_FLAGS held is added, and wins. It is kept for the processes that tests start, and for
# those of pytest-xdist.
ADDED = os.environ.setdefault('TESTS_XLA_FLAGS', os.environ.get('XLA_FLAGS', ''))
os.environ['XLA_FLAGS'] = f'{OWN} {ADDED}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('OMP_THREAD_LIMIT', '1')
# Nobody reads from which lines the operations of a compiled program come: a tenth of the time.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

import tests.shapes  # noqa: E402, F401  (what the hook names must be imported)
from tests.order import place  # noqa: E402

# The shapes that core's functions state are checked at every call.
install_import_hook('densegrpo_jax.core', 'tests.shapes.check')


def pytest_configure(config):
    if config.getoption('dist', 'no') != 'no':
        return  # This process only hands tests out to others, which start sooner without JAX here.
    import jax

    from tests import contexts

    jax.config.update('jax_default_matmul_precision', 'highest')
    contexts.share()


@pytest.fixture(scope='module', autouse=True)
def own_context():
    """The programs of another file do not stay in memory."""
    yield
    from tests import contexts

    contexts.renew()


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """A FLUX pipeline of a few thousand weights, which no test changes."""
    from tests import miniature

    return miniature.random_flux(tmp_path_factory.mktemp('flux'))


# Tracing makes many objects that live on; to look through them again and again takes a twentieth.
gc.set_threshold(200_000, 20, 100)


def pytest_collection_modifyitems(items):
    root = pathlib.Path(__file__).parent
    items.sort(key=lambda item: place(item.path, root))  # stable: files stay in one piece
