"""Methods through whole runs: counts, first ratio, a stopped run that goes on with the same bits,
and one iteration on eight devices that moves the policy as one device does.
"""

import functools

import jax
import pytest

from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.runtime.mesh import make_mesh
from tests.programs import shared_programs  # noqa: F401
from tests.training.small_run import (
    SMOOTH,
    after_one_iteration,
    equal,
    final_state,
    moved_alike,
    trained,
)

pytestmark = pytest.mark.usefixtures('exact_runs', 'shared_programs')

SHORT = {
    **SMOOTH,
    'rollout.steps': 4,  # three transitions are trained
    'rollout.prompts_per_batch': 4,
    'optim.microbatch': 16,
    'eval.every': 50,
    'ema.every': 8,
}
SAMPLES = 16  # of an iteration, four of a prompt

# method -> changes, rows of a sample that are trained, evaluations of a sample by hand. Completions
# of states 0, 1, 2 have 3, 2, 1 evaluations more than their state's own; state 3 is the sample.
CASES = {
    # the window moves by one each iteration, over three places
    'mix': ({'moving.width': 1, 'moving.stay': 1}, 1, 4),
    # three branches from two silent trajectories of a prompt
    'temp_flow': ({'plan.seeds': 2}, 3, 3 / 2 + 3 + 2 + 1),
    # the first step goes to state 2
    'e_grpo': ({'plan.merge_tau': 0.0, 'plan.merge': (2, 1)}, 2, 2 / 4 + 2 + 2),
    # with the second stride one evaluation more at 3 of the grid 1, 3, 4, none for 2, 4
    'g2rpo': ({}, 2, 2 / 4 + 3 + 2 + 1),
    # 1 at state 0, 2 at state 1, then 4; more noise than its own, so that rounding is small
    # against it
    'branch': (
        {'plan.splits': (0, 1), 'rollout.noise': 'flow_grpo', 'rollout.level': 0.7},
        3,
        (1 + 2 + 4 + 4) / 4,
    ),
    'dance': ({}, 1, 4),  # 60 % of three, rounded down
    'dense_grpo': ({}, 3, 4 + 3 + 2 + 1),
    'flow_grpo': ({}, 3, 4),
    'flow_grpo_weighted': ({}, 3, 4),
    'flow_cps': ({}, 3, 4),
    'coca': ({}, 3, 4),
    'coca_weighted': ({}, 3, 4),
    'guard': ({}, 3, 4),
    'lire': ({}, 3, 4),
    'sdpo': ({}, 3, 4),
    'nft': ({'loss.draws': 2}, 2, 4),
    'winners': ({}, 1, 4),
    # the first transition has no noise; three steps are all that its end has left
    'stepwise': ({'credit.completion_steps': 3}, 2, 4 + 2 + 1),
    'tp_grpo': ({}, 3, 4 + 3 + 2 + 1),
    'tp_grpo_code': ({}, 3, 4 + 3 + 2 + 1),
    'gae': ({}, 3, 4 + 3 + 2 + 1),
}
# Their tests are test_aegpo.py, test_d2_align.py and test_euphonium.py.
ELSEWHERE = {'aegpo', 'd2_align', 'euphonium'}


def each(*fast):
    """All methods; those that are not named are slow."""
    slow = pytest.mark.slow
    return [m if m in fast else pytest.param(m, marks=slow) for m in CASES]


def test_every_method_is_run():
    assert {*CASES} | ELSEWHERE == {*METHODS}


def settings_of(method):
    """The keys of a run, and whether it measures the KL to the reference: it has a form of its own
    where the row sets one, and on clean samples, whatever the row's beta.
    """
    row = METHODS[method].overrides
    settings = {**row, **SHORT, **CASES[method][0]}
    measured = 'loss.kl_form' in row or row.get('loss.kind') in ('nft', 'winners')
    return settings | ({'loss.beta': 0.01} if measured else {}), measured


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
    """method -> (folder, state, meta, metrics) of its run of two iterations; each is made once."""

    @functools.cache
    def run(method):
        path = tmp_path_factory.mktemp(method)
        (_, *state), metrics = trained(folder, path, iterations=2, **settings_of(method)[0])
        return path, *state, metrics

    return run


@pytest.mark.parametrize('method', each('g2rpo'))
def test_counts_and_continues_with_the_same_bits(folder, tmp_path, whole, method):
    _, per_sample, evaluations = CASES[method]
    settings, measured = settings_of(method)
    path, expected, meta, metrics = whole(method)
    stopped = after_one_iteration(path, tmp_path / 'stopped')
    (step, continued, its), _ = trained(folder, stopped, iterations=2, **settings)
    equal(continued, expected)
    assert step == 2 and its['nfe'] == meta['nfe'] == 2 * SAMPLES * evaluations
    for i, line in enumerate(metrics):
        rows = [line[key] for key in ('train/transitions', 'train/samples') if key in line]
        assert rows == [per_sample * SAMPLES]
        assert line['train/nfe'] == (i + 1) * SAMPLES * evaluations
        assert line.get('train/ratio_deviation_first', 0) <= 1e-6
        assert line['train/finite'] == 1 and line['train/grad_norm'] > 0
    assert not measured or metrics[1]['train/kl'] > 0


# tests/training/test_meshes.py compares a FLUX iteration part by part.
@pytest.mark.parametrize('method', each())
def test_an_iteration_on_eight_devices_moves_as_on_one(folder, tmp_path, whole, method):
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}, jax.devices())
    settings, _ = settings_of(method)
    (_, split, _), _ = trained(folder, tmp_path / 'split', mesh, iterations=1, **settings)
    _, alone, _ = final_state(after_one_iteration(whole(method)[0], tmp_path / 'alone'))
    # a pixel that rounds the other way moves a reward
    moved_alike(split, alone, 2e-2)
