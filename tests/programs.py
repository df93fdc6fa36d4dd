"""Compiled programs that the runs of one test process share: the fixture `shared_programs`.

A run makes its rollout, credit, update and evaluation anew, and traces and compiles them, also if
the run before had the same configuration. A module whose tests make many runs of few configurations
takes the fixture:

    from tests.programs import shared_programs

    pytestmark = pytest.mark.usefixtures('shared_programs')

A test that changes what is traced, or brings code of its own, takes `own_programs`: its runs share
among themselves alone.

The programs are pure functions of what they are made from, which is their key here; only how long a
run is, when it saves and what it reports stay out. Process rewards have no key, and a user's own
code has one within a test only: other runs with such parts make their own programs.
"""

import collections
import functools
import json

import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from densegrpo_jax.calibration import loop
from densegrpo_jax.config.method import own_code
from densegrpo_jax.evaluation import divergence, evaluate, evaluator
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.sampling import draw
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.training import rounds, run

MAKERS = (
    (rounds, 'make_rollout'),
    (rounds, 'make_credit'),
    (run, 'make_update'),
    (run, 'make_sampler'),
    (evaluator, 'make_sampler'),
    (evaluate, 'make_sampler'),
    (draw, 'make_sampler'),
    (divergence, 'make_rollout'),
    (loop, 'make_rollout'),
)
# What a program depends on, if not on all groups of the configuration.
GROUPS = {'make_sampler': ('model', 'lora')}
# Keys and groups that none depends on.
ASIDE = ('checkpoint', 'data', 'label', 'reward', 'reward_workers', 'text_cache')
ASIDE_OF = {'eval': ('every', 'shown', 'batch', 'best'), 'model': ('path',)}
ACTS = ('on', 'action', 'brake')  # the keys of the guard that an update depends on
KEPT = 12  # programs of each kind

_programs = {name: collections.OrderedDict() for _, name in MAKERS}


@pytest.fixture
def shared_programs(monkeypatch):
    """Runs of equal configurations share their programs."""
    _share(monkeypatch, _programs, own=False)


@pytest.fixture
def own_programs(monkeypatch):
    """Runs of equal configurations in one test share their programs."""
    _share(monkeypatch, {name: collections.OrderedDict() for _, name in MAKERS}, own=True)


def _share(monkeypatch, programs, own):
    for module, name in MAKERS:
        make = functools.partial(_shared, programs, own, name, getattr(module, name))
        monkeypatch.setattr(module, name, make)


def _shared(kept, own, name, make, *args):
    config = next(a for a in args if isinstance(a, ConfigDict))
    if config.guide.source != 'none' or (own_code(config) and not own):
        return make(*args)
    groups = GROUPS.get(name, list(config))
    programs, key = kept[name], tuple(_key(a, groups) for a in args)
    if key not in programs:
        programs[key] = make(*args)
        if len(programs) > KEPT:
            programs.popitem(last=False)
    programs.move_to_end(key)
    return programs[key]


def _key(value, groups):
    """A hashable value that tells apart what leads to different programs."""
    if isinstance(value, ConfigDict):
        held = {k: v for k, v in value.to_dict().items() if k in groups and k not in ASIDE}
        for group in held.keys() & ASIDE_OF.keys():
            held[group] = {k: v for k, v in held[group].items() if k not in ASIDE_OF[group]}
        if 'guard' in held:
            held['guard'] = {k: held['guard'][k] for k in ACTS}
        return json.dumps(held, sort_keys=True, default=repr)
    if isinstance(value, Pipeline):
        configs = json.dumps([value.configs, value.scheduler], sort_keys=True)
        return type(value), value.text_length, configs, repr(value.modules)
    if isinstance(value, Mesh):
        return value.axis_names, value.devices.shape, tuple(d.id for d in value.devices.flat)
    if isinstance(value, Schedule):
        # The noise levels are an argument of the programs.
        arrays = (np.asarray(a).tolist() for a in (value.sigmas, *value.masks))
        return json.dumps([*arrays]), value.plan, repr(value.moving), value.guided
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    if callable(getattr(value, 'update', None)):  # the optimiser, which the configuration decides
        return None
    assert isinstance(value, int | None), f'{value!r} has no key: extend tests/programs.py'
    return value
