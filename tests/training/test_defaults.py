"""Configurations: what ships validates, and every impossible value is refused by name before anything is loaded."""

import importlib.util
import pathlib

import pytest

from densegrpo_jax.training.defaults import default_config, validate

ROOT = pathlib.Path(__file__).parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize('name', ['tiny_ocr', 'flux_ocr', 'sd35_ocr'])
def test_shipped_configurations_validate(name):
    validate(load(name))


def test_flux_ocr_has_the_recipe_of_its_issue():
    c = load('flux_ocr')
    assert (c.model.height, c.model.width, c.model.guidance, c.model.t5_length) == (512, 512, 3.5, 128)
    assert (c.rollout.steps, c.eval.steps, c.rollout.group, c.rollout.prompts) == (6, 28, 24, 48)
    assert (c.rollout.kernel, c.rollout.level, c.credit.rule, c.loss.beta) == ('cps', 0.8, 'dense', 0.0)
    assert (c.lora.rank, c.lora.alpha, c.optim.learning_rate) == (64, 128.0, 3e-4)
    assert 'uncalibrated' in c.label


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('rollout.kernel', 'ode', r"rollout.kernel='ode'"),
        ('rollout.noise', 'pink', r"rollout.noise='pink'"),
        ('rollout.group', 1, r'rollout.group=1'),
        ('rollout.prompts_per_batch', 5, r'rollout.prompts_per_batch=5 does not divide rollout.prompts=48'),
        ('rollout.level', 1.5, r'0 < rollout.level <= 1'),
        ('optim.updates', 5, r'optim.updates=5 does not divide'),
        ('optim.microbatch', 0, r'optim.microbatch=0 must be at least 1'),
        ('credit.rule', 'densee', r"credit.rule='densee'"),
        ('credit.completion_steps', 7, r'credit.completion_steps=7'),
        ('loss.kl_form', 'flow_grpo', r'loss.kl_form'),
        ('model.dtype', 'float16', r"model.dtype='float16'"),
        ('ema.decay', 1.0, r'ema.decay=1.0'),
    ],
)
def test_impossible_values_are_named(key, value, message):
    config = default_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        validate(config)


def test_unknown_keys_fail():
    config = default_config().lock()
    with pytest.raises(AttributeError, match='learning_rat'):
        config.optim.learning_rat = 1e-3
