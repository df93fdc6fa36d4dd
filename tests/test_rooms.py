"""The rooms of the package: each import points to the same room or to one further down, and every
module can be imported.
"""

import ast
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'densegrpo_jax'

# From the top of the house to its ground; commands (modules beside the rooms) stand above all.
ROOMS = (
    'preflight',
    'planning',
    'training',
    'guard',
    'search',
    'calibration',
    'viewing',
    'evaluation',
    'sampling',
    'config',
    'rewards',
    'pipelines',
    'networks',
    'data',
    'runtime',
    'core',
)
MODULES = sorted(p.relative_to(ROOT) for p in PACKAGE.rglob('*.py'))


def room(parts):
    """The place in ROOMS of a module's path parts inside the package; -1 for a command."""
    return ROOMS.index(parts[0]) if len(parts) > 1 or parts[0] in ROOMS else -1


def imported(path):
    """Parts of the modules of this package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f'{node.module}.{a.name}' for a in node.names]
        for name in names:
            top, *parts = name.split('.')
            assert top not in ('experiments', 'tools', 'tests', 'benchmarks'), (
                f'{path} imports {name}: the package stands without it'
            )
            if top == 'densegrpo_jax' and parts and parts[0] in ROOMS:
                yield name, parts


@pytest.mark.parametrize('module', [m for m in MODULES if len(m.parts) > 2], ids=str)
def test_imports_point_down(module):
    own = room(module.parts[1:])
    above = [name for name, parts in imported(ROOT / module) if room(parts) < own]
    assert not above, f'{module} stands below what it imports: {above}'


def test_rooms_are_those_that_are_there():
    there = {p.name for p in PACKAGE.iterdir() if (p / '__init__.py').exists()}
    assert there <= set(ROOMS)


def test_every_module_can_be_imported():
    for module in MODULES:
        name = '.'.join(module.with_suffix('').parts)
        importlib.import_module(name.removesuffix('.__init__'))
