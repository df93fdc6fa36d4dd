"""Compiled programs that the runs of one test process share: the fixture `shared_programs`.

A run makes its encoders, rollout, credit, update and evaluation anew, and traces and compiles them,
also if the run before had the same configuration; so it does with the program that draws its first
adapters, which are kept as they were drawn, and with the trial of a method's parts, of which it is
kept that they passed. Figures are kept too. A module whose tests make many runs of few
configurations takes the fixture:

    from tests.programs import shared_programs

    pytestmark = pytest.mark.usefixtures('shared_programs')

A fixture of a module runs before it and opens `sharing()` itself. A test that changes what is
traced, or brings code of its own, takes `own_programs`: its runs share among themselves alone,
apart from the programs of the networks, which no method changes.

The programs are pure functions of what they are made from, which is their key here. Of the
configuration that is what READ names, and a program is made from a configuration that has nothing
else: one that reads more ends with an error, instead of being shared wrongly. Process rewards have
no key, and a user's own code has one within a test only: other runs with such parts make their own
programs.
"""

import collections
import contextlib
import functools
import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from densegrpo_jax.calibration import loop
from densegrpo_jax.config.method import own_parts
from densegrpo_jax.evaluation import divergence, evaluate, evaluator
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.sampling import conditioning, draw
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.search import model as searched
from densegrpo_jax.search import run as search
from densegrpo_jax.training import report, rounds, run
from densegrpo_jax.viewing.folder import CURVE
from tests.compiled import key_of

MAKERS = (
    (rounds, 'make_rollout'),
    (rounds, 'make_credit'),
    (run, 'make_update'),
    (run, 'try_parts'),
    (run, 'make_sampler'),
    (evaluator, 'make_sampler'),
    (evaluate, 'make_sampler'),
    (draw, 'make_sampler'),
    (search, 'make_sampler'),
    (divergence, 'make_rollout'),
    (loop, 'make_rollout'),
)
# The keys and whole groups on which a program depends. Those of `lora` are in the pipeline.
NETWORK = ('model', 'lora', 'full')
SHARED_STATES = ('rollout.group', 'rollout.shared_noise', 'plan.seeds')
KERNEL = ('rollout.kernel', 'rollout.log_prob')
READ = {
    'start_state': (*NETWORK, 'loss.kind', 'seed'),
    'make_sampler': NETWORK,
    'make_rollout': (*NETWORK, *SHARED_STATES, *KERNEL, 'loss.kind', 'loss.cfg'),
    'make_credit': (
        *('credit', 'rollout.prompts', 'rollout.group', 'plan.seeds'),
        *('loss.kind', 'loss.noise_power', 'loss.step_decay'),
    ),
    'make_update': (
        *(*NETWORK, *SHARED_STATES, *KERNEL, 'rollout.prompts', 'loss', 'optim', 'ema', 'seed'),
        *('credit.outcome_weight', 'credit.process_weight'),
        *('guard.on', 'guard.action', 'guard.brake'),
    ),
    'try_parts': ('plan', 'credit', 'loss', *KERNEL, 'rollout.noise', 'rollout.group'),
}
KEPT = 12  # programs of each kind


def _nothing():
    return {name: collections.OrderedDict() for name in (*READ, 'encode', 'searched', 'figures')}


_programs = _nothing()


@pytest.fixture
def shared_programs(monkeypatch):
    """Runs of equal configurations share their programs."""
    _share(monkeypatch, _programs, own=False)


@pytest.fixture
def own_programs(monkeypatch):
    """Runs of equal configurations in one test share their programs."""
    _share(monkeypatch, _nothing(), own=True)


@contextlib.contextmanager
def sharing(*further):
    """What the fixture `shared_programs` does, for fixtures of a module. further: as MAKERS has
    them.
    """
    with pytest.MonkeyPatch.context() as patch:
        _share(patch, _programs, False, *further)
        yield


def _share(monkeypatch, programs, own, *further):
    for module, name in (*MAKERS, *further):
        kept = _programs if READ[name] == NETWORK else programs
        make = functools.partial(_shared, kept, own, name, getattr(module, name))
        monkeypatch.setattr(module, name, make)
    start = functools.partial(_started, programs, own, run.start_state)
    monkeypatch.setattr(run, 'start_state', start)
    encode = functools.partial(_encode, _programs, conditioning.compiled_encode)
    monkeypatch.setattr(conditioning, 'compiled_encode', encode)
    of_search = functools.partial(_searched, _programs, searched._programs)
    monkeypatch.setattr(searched, '_programs', of_search)
    curve = functools.partial(_curve, _programs, report.curve)
    monkeypatch.setattr(report, 'curve', curve)
    monkeypatch.setattr(loop, 'draw', functools.partial(_psi, _programs, loop.draw))


def _shared(kept, own, name, make, *args):
    config = next(a for a in args if isinstance(a, ConfigDict))
    if config.guide.source != 'none' or (own_parts(config) and not own):
        return make(*args)
    read = read_by(name, config)
    programs, key = kept[name], tuple(_key(read if a is config else a) for a in args)
    if name == 'make_update' and config.optim.decay != 'constant':
        key = *key, config.iterations  # by the optimiser
    if name == 'try_parts':  # which are numbers to it
        levels = [a.noise_levels for a in args if isinstance(a, Schedule)]
        key = *key, *(np.asarray(each).tobytes() for each in levels)
    of = lambda: make(*(ConfigDict(read) if a is config else _read(a) for a in args))
    return _kept(programs, key, of)


def _started(kept, own, start_state, config, pipeline, tx, mesh, base):
    """The first state of a run; of fresh adapters, which depend on no weights, as it was drawn."""
    if config.full or config.lora.init_from or (own_parts(config) and not own):
        return start_state(config, pipeline, tx, mesh, base)

    def drawn():
        leaves, tree = jax.tree.flatten(start_state(config, pipeline, tx, mesh, base))
        return tree, [(jax.device_get(leaf), leaf.sharding) for leaf in leaves]

    key = tuple(map(_key, (read_by('start_state', config), pipeline, mesh)))
    tree, leaves = _kept(kept['start_state'], key, drawn)
    return jax.tree.unflatten(tree, [jax.device_put(*leaf) for leaf in leaves])


def _encode(kept, make, pipeline, mesh):
    key = key_of(pipeline, pipeline.text_encoders), _key(mesh)
    return _kept(kept['encode'], key, lambda: make(pipeline, mesh))


def _searched(kept, make, pipeline, mesh, *options):
    key = _key(pipeline), _key(mesh), *options
    return _kept(kept['searched'], key, lambda: make(pipeline, mesh, *options))


def _curve(kept, curve, workdir, evaluations, name):
    """Of runs with as many evaluations the first draws its curve, and the others get that one."""
    path = workdir / CURVE
    of = lambda: curve(workdir, evaluations, name).read_bytes()
    path.write_bytes(_kept(kept['figures'], (name, len(evaluations)), of))
    return path


def _psi(kept, draw, document, path):
    key = len(document['history']), tuple(document['geometry']['calibrated'])
    path.write_bytes(_kept(kept['figures'], key, lambda: draw(document, path).read_bytes()))
    return path


def _kept(programs, key, make):
    if key not in programs:
        programs[key] = make()
        if len(programs) > KEPT:
            programs.popitem(last=False)
    programs.move_to_end(key)
    return programs[key]


def read_by(name, config):
    """What of a configuration the programs of a maker depend on, as nested dicts."""
    whole, found = config.to_dict(), {}
    for key in READ[name]:
        group, _, inner = key.partition('.')
        if inner:
            found.setdefault(group, {})[inner] = whole[group][inner]
        else:
            found[group] = whole[group]
    if 'model' in found:
        found['model'] = {k: v for k, v in found['model'].items() if k != 'path'}
    return found


def _read(value):
    """Of a schedule what programs depend on."""
    return value._replace(moving=None) if isinstance(value, Schedule) else value


def _key(value):
    """A hashable value that tells apart what leads to different programs."""
    if isinstance(value, Pipeline):
        return key_of(value)
    if isinstance(value, Mesh):
        return value.axis_names, value.devices.shape, tuple(d.id for d in value.devices.flat)
    if isinstance(value, Schedule):
        # The noise levels are an argument of the programs.
        arrays = (np.asarray(a).tolist() for a in (value.sigmas, *value.masks))
        return json.dumps([*arrays]), value.plan, value.guide_steps
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, default=repr)
    if callable(getattr(value, 'update', None)):  # the optimiser, which the configuration decides
        return None
    assert isinstance(value, int | None), f'{value!r} has no key: extend tests/programs.py'
    return value
