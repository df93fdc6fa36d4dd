"""Published settings: each opens on a recipe of its model, on the devices that it is for, with the
cost that its numbers give by hand.
"""

import re

import numpy as np
import pytest
from jax.sharding import AbstractMesh

from densegrpo_jax.config.loading import load
from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.config.published import FLUX, PUBLISHED, RECIPES, SD35
from densegrpo_jax.config.schema import KEYS
from densegrpo_jax.config.unread import unread
from densegrpo_jax.config.validation import validate
from densegrpo_jax.core.branch_plan import merged_targets
from densegrpo_jax.planning.chips import CHIPS
from densegrpo_jax.runtime.mesh import AXES, make_mesh, mesh_shape
from densegrpo_jax.runtime.trees import dotted
from densegrpo_jax.sampling.cost import of_sample
from densegrpo_jax.sampling.state import follow_rules, optimiser, state_shapes
from densegrpo_jax.training.announce import GIB, memory
from densegrpo_jax.training.geometry import check_geometry
from densegrpo_jax.training.rounds import check_rounds
from tests.config.opened import opened

ENTRIES = [(method, model) for method, of in PUBLISHED.items() for model in of]


def published(method, model, devices=8):
    return load(f'{RECIPES[model]}:devices={devices},method={method},settings=paper')


def values(config):
    return dotted(config.to_dict())


# Network evaluations of a sample, by hand from T, G and the rows' formulas.
NFE = {
    # the last two transitions of SD3.5 are silent: states 0 ... 7 are completed over 9 - k steps
    ('dense_grpo', SD35): 10 + sum(9 - k for k in range(8)),
    ('flow_grpo', FLUX): 6,
    ('flow_grpo', SD35): 10,
    ('coca', SD35): 10,
    ('guard', SD35): 10,
    ('nft', SD35): 10,
    # states 1 ... 7, by five steps or those that are left, the first of them the trajectory's
    ('stepwise', SD35): 10 + sum(min(5, 10 - k) - 1 for k in range(1, 8)),
    ('tp_grpo', SD35): 10 + sum(9 - k for k in range(9)),  # nine noisy transitions
    ('tp_grpo_code', SD35): 55,
    ('dance', FLUX): 16,
    ('mix', FLUX): 25,
    ('aegpo', FLUX): 16 + 2 * 16 / 12,  # policy and base are probed once for a prompt
    ('euphonium', FLUX): 16 + 4,  # and the base at the states 12 ... 15
    # the paper's 133.3 and 158.3 with one whole trajectory for 12 samples; here it ends at state 7
    ('g2rpo', FLUX): 8 / 12
    + sum(15 - k for k in range(8))
    + sum(-(-(15 - k) // 2) - 1 for k in range(8))
    + sum(-(-(15 - k) // 3) - 1 for k in range(8)),
    ('e_grpo', FLUX): 8 / 12 + sum(16 - k for k in range(8)) - sum((1, 1, 2, 2, 3, 3, 4, 4)),
    ('temp_flow', SD35): 4 * 9 / 24 + sum(9 - k for k in range(9)),
    ('branch', FLUX): (1 + 3 * 2 + 3 * 4 + 3 * 8 + 10 * 16) / 16,  # the page of the method: 203/16
}


@pytest.mark.parametrize('method, model', ENTRIES)
def test_every_entry_opens_on_its_model(method, model):
    config = published(method, model)
    validate(config)
    assert not unread(config)
    _, schedule = opened(config)
    assert of_sample(config, schedule).nfe == pytest.approx(NFE[method, model], rel=1e-12)
    found = values(config)
    overrides = PUBLISHED[method][model].overrides
    assert {key: found[key] for key in overrides} == overrides
    whose = PUBLISHED[method][model].borrowed
    assert config.label.endswith(f', {method}, published settings{whose and f" of {whose}"}')


@pytest.mark.parametrize('devices', [8, 16, 32])
@pytest.mark.parametrize('method, model', ENTRIES)
def test_every_entry_divides_over_its_devices(method, model, devices):
    config = published(method, model, devices)
    validate(config)
    assert config.mesh.fsdp == (devices if config.full else 1)
    pipeline, schedule = opened(config, make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1}))
    mesh = AbstractMesh(mesh_shape(config.mesh, devices), AXES)
    check_geometry(config, schedule, mesh)
    check_rounds(config, pipeline, schedule, mesh)


def test_what_is_published_is_of_methods_and_changes_amounts_alone():
    """The kernel, the credit and the loss are the method's own."""
    assert {*PUBLISHED} < {*METHODS} and {*NFE} == {*ENTRIES}
    parts = {'rollout.kernel', 'rollout.noise', 'credit.rule', 'loss.kind', 'plan.kind', 'reward'}
    for of in PUBLISHED.values():
        for entry in of.values():
            keys = {*entry.overrides}.union(*entry.by_reward.values())
            assert keys <= {*KEYS} and not keys & parts


@pytest.mark.parametrize('method, model', ENTRIES)
def test_every_entry_says_something(method, model):
    """It repeats no value of the row, and has more than defaults. A recipe may have all of it: ours
    for SD3.5-M have the settings of DenseGRPO.
    """
    entry, row = PUBLISHED[method][model], METHODS[method].overrides
    assert any(value != KEYS[key].default for key, value in entry.overrides.items())
    for amounts in (entry.overrides, *entry.by_reward.values()):
        assert not [key for key, value in amounts.items() if row.get(key) == value]


@pytest.mark.slow
def test_all_weights_are_split_over_the_devices():
    """So they fit eight H100, and whole on each device they do not."""
    config = published('dance', FLUX)
    pipeline, schedule = opened(config)
    state = state_shapes(pipeline, optimiser(config, pipeline.transformer), follow_rules(config))
    base, whole = pipeline.abstract_params(), {'data': 8, 'fsdp': 1, 'tensor': 1}
    split, copied = (
        sum(memory(config, pipeline, schedule, make_mesh(mesh), base, state).values())
        for mesh in (config.mesh, whole)
    )
    assert 2 * split < CHIPS['h100'].gib * GIB < copied


# What an iteration of the source trains: all weights or adapters, pixels, prompts, updates.
# Sources: a prompt on each of 16, 32 and 8 GPUs, two on each of 8 (`branch`); Flow-GRPO's code and
# GRPO-Guard in it split 48 prompts into two updates.
ITERATION = {
    ('flow_grpo', FLUX): (False, 512, 48, 2),
    ('guard', SD35): (False, 512, 48, 2),
    ('nft', SD35): (False, 512, 48, 2),  # with OCR
    ('dance', FLUX): (True, 720, 16, 1),
    ('mix', FLUX): (True, 720, 32, 1),
    ('aegpo', FLUX): (True, 720, 16, 1),
    ('euphonium', FLUX): (True, 512, 48, 1),
    ('g2rpo', FLUX): (True, 720, 16, 1),
    ('e_grpo', FLUX): (True, 720, 8, 1),
    ('branch', FLUX): (True, 720, 16, 1),
}


@pytest.mark.parametrize('method, model', ENTRIES)
def test_a_learning_rate_has_the_weights_and_the_iteration_that_it_is_of(method, model):
    """A rate of all weights is a tenth of that of adapters or less, too little to move those."""
    config = published(method, model)
    assert config.full == (config.optim.learning_rate < 1e-4)
    found = (config.full, config.model.height, config.rollout.prompts, config.optim.updates)
    assert found == ITERATION.get((method, model), (False, 512, 48, 1))


def test_amounts_depend_on_the_reward_where_the_paper_says_so():
    load_paper = lambda recipe, method: values(load(f'{recipe}:method={method},settings=paper'))
    for recipe, beta, iterations in (
        ('sd35_ocr', 0.04, 1500),
        ('sd35_geneval', 0.04, 4500),
        ('sd35_pickscore', 0.01, 4500),
    ):
        found = load_paper(recipe, 'dense_grpo')
        assert (found['loss.beta'], found['iterations']) == (beta, iterations)
    assert load_paper('sd35_ocr', 'temp_flow')['loss.beta'] == 0.004
    assert load_paper('sd35_pickscore', 'temp_flow')['loss.beta'] == 0.001
    found = [load_paper(f'sd35_{r}', 'nft') for r in ('ocr', 'geneval')]
    for key, values_of in (
        ('loss.nft_strength', [0.1, 1.0]),
        ('loss.old_decay', ['late', 'rising']),
        ('optim.updates', [2, 1]),
    ):
        assert [of[key] for of in found] == values_of
    clips = [load_paper(f'sd35_{r}', 'guard')['loss.clip_range'] for r in ('geneval', 'pickscore')]
    assert clips == [2e-6, 4e-6]


def test_larger_images_share_a_device_with_fewer():
    """24 of 512 px are 12 of 720 px, one group; 3 transitions are one."""
    config = published('g2rpo', FLUX)
    assert (config.model.height, config.rollout.prompts_per_batch) == (720, 8)
    assert (config.optim.microbatch, config.optim.rows_per_device) == (8, 1)
    assert published('euphonium', FLUX).optim.rows_per_device == 3  # of 512 px


def test_steps_merge_as_the_note_says():
    """E-GRPO's lengths on our grid of FLUX.1-dev, and on the paper's, which is shifted by 3."""
    config = published('e_grpo', FLUX)
    _, schedule = opened(config)
    lengths = lambda grid, levels: tuple(
        np.subtract(merged_targets(grid, levels, range(8), 2.2, 15), range(16))[:8].tolist()
    )
    ours = lengths(schedule.sigmas, schedule.noise_levels)
    even = np.linspace(1, 1 / 16, 16)
    grid = np.append(3 * even / (1 + 2 * even), 0)
    below = np.minimum(grid[:-1], grid[1])  # at s = 1 the second value stands for 1
    levels = 0.7 * np.sqrt(grid[:-1] / (1 - below))
    theirs = lengths(grid, levels)
    note = PUBLISHED['e_grpo'][FLUX].note
    assert ours == (1, 1, 2, 2, 3, 3, 4, 4) and theirs == (1, 1, 2, 2, 2, 3, 3, 3)
    assert all(', '.join(map(str, of)) in note for of in (ours, theirs))


def test_temp_flow_has_the_constant_of_its_code():
    """2.25 is one over the mean std of its nine transitions."""
    _, schedule = opened(published('temp_flow', SD35))
    std = schedule.noise_levels * np.sqrt(-np.diff(schedule.sigmas))
    assert schedule.masks.trained.tolist() == [True] * 9 + [False]
    assert 1 / std[:9].mean() == pytest.approx(2.25, abs=0.005)


def test_the_drift_of_euphonium_has_noise_in_every_guided_transition():
    _, schedule = opened(published('euphonium', FLUX))
    assert schedule.guide_steps == (12, 13, 14, 15) and schedule.masks.stochastic.all()
    assert not schedule.masks.trained[15]


@pytest.mark.parametrize(
    'variant, message',
    [
        ('flux_ocr:settings=paper', 'and none is chosen: add method=NAME, one of dense_grpo, '),
        ('flux_ocr:method=dance,settings=mine', 'settings=mine: expected settings=paper, the pub'),
        (
            'flux_ocr:method=gae,settings=paper',
            'settings=paper: beyond the row and the defaults there are none of method=gae, neither '
            'for FLUX.1-dev nor for SD3.5-M: leave settings=paper out; methods that have some: '
            'dense_grpo, ',
        ),
        (
            'sd35_ocr:method=g2rpo,settings=paper',
            'settings=paper: those of method=g2rpo are for FLUX.1-dev, and the model of this '
            "recipe is 'stabilityai/stable-diffusion-3.5-medium': choose a recipe such as "
            'flux_ocr, or leave settings=paper out',
        ),
        (
            'tiny_ocr:method=flow_grpo,settings=paper',
            'those of method=flow_grpo are for FLUX.1-dev and SD3.5-M, and the model of this '
            "recipe is 'builtin:tiny': choose a recipe such as flux_ocr or sd35_ocr, or leave",
        ),
        ('flux_ocr:method=tp_grpo,settings=paper', 'method=tp_grpo are for SD3.5-M, and the model'),
        ('flux_ocr:settings=paper,method=dense', "did you mean 'dense_grpo'?"),
    ],
)
def test_settings_that_there_are_not_are_refused(variant, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(variant)
