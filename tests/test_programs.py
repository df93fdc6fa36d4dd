"""Which runs share their programs in the tests."""

import collections

import pytest

from configs import tiny_ocr
from tests.programs import READ, _shared


def made(name, *configs, make=lambda config: object()):
    """What a maker gives for each configuration."""
    kept = {name: collections.OrderedDict()}
    return [_shared(kept, False, name, make, config) for config in configs]


def changed(key, value):
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict({key: value})
    return config


@pytest.mark.parametrize(
    'name, key, value',
    [
        ('make_sampler', 'model.width', 64),
        ('make_sampler', 'model.guidance', 2.0),
        ('make_rollout', 'rollout.group', 2),
        ('make_rollout', 'rollout.kernel', 'cps'),
        ('make_rollout', 'plan.seeds', 2),
        ('make_rollout', 'loss.kind', 'nft'),
        ('make_rollout', 'loss.cfg', False),
        ('make_credit', 'rollout.prompts', 2),
        ('make_credit', 'credit.std', 'pooled'),
        ('make_credit', 'loss.noise_power', 0.5),
        ('make_update', 'optim.microbatch', 2),
        ('make_update', 'ema.decay', 0.5),
        ('make_update', 'seed', 7),
        ('make_update', 'iterations', 7),  # the learning rate decays
        ('make_update', 'credit.process_weight', 0.5),
        ('make_update', 'guard.action', 'brake'),
    ],
)
def test_what_a_program_reads_tells_programs_apart(name, key, value):
    first, other, again = made(
        name, tiny_ocr.get_config(), changed(key, value), changed(key, value)
    )
    assert other is not first and again is other


@pytest.mark.parametrize(
    'name, key, value',
    [
        ('make_sampler', 'rollout.group', 2),
        ('make_sampler', 'model.path', 'elsewhere'),
        ('make_rollout', 'iterations', 7),
        ('make_rollout', 'optim.microbatch', 2),
        ('make_rollout', 'credit.std', 'pooled'),
        ('make_credit', 'iterations', 7),
        ('make_credit', 'eval.every', 7),
        ('make_update', 'eval.report', False),
        ('make_update', 'credit.std', 'pooled'),
    ],
)
def test_what_it_does_not_read_shares_it(name, key, value):
    first, same = made(name, tiny_ocr.get_config(), changed(key, value))
    assert same is first


def test_an_update_at_a_constant_rate_serves_runs_of_any_length():
    short, long = (changed('optim.decay', 'constant') for _ in range(2))
    long.iterations = 2 * short.iterations
    first, same = made('make_update', short, long)
    assert same is first


@pytest.mark.parametrize('name', READ)
def test_a_program_that_reads_more_ends_with_an_error(name):
    with pytest.raises(AttributeError, match='rollout|steps'):
        made(name, tiny_ocr.get_config(), make=lambda config: config.rollout.steps)
