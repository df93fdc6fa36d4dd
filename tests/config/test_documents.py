"""Configurations as .yaml and .json files."""

import json

import pytest

from densegrpo_jax.config.loading import load
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.validation import validate


def written(tmp_path, text, name='some.yaml'):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_a_file_changes_the_defaults(tmp_path):
    text = """
        # comments are allowed
        iterations: 7
        rollout: {steps: 12, level: 1}
        optim.learning_rate: 1e-4
        checkpoint:
          pin: [3, 5]
        reward:
          jpeg: {weight: 2}
    """
    config = load(written(tmp_path, text))
    assert (config.iterations, config.rollout.steps, config.rollout.level) == (7, 12, 1.0)
    assert isinstance(config.rollout.level, float) and config.optim.learning_rate == 1e-4
    assert tuple(config.checkpoint.pin) == (3, 5)
    assert config.reward.to_dict() == {'jpeg': {'weight': 2}}  # replaced, not mixed
    assert config.rollout.group == default_config().rollout.group
    validate(config)


def test_a_file_changes_a_recipe(tmp_path):
    text = 'recipe: tiny_ocr:method=g2rpo\nrollout.prompts: 4\n'
    config = load(written(tmp_path, text))
    assert config.plan.kind == 'branch' and config.rollout.prompts == 4
    recipe = load('tiny_ocr:method=g2rpo')
    recipe.rollout.prompts = 4
    assert config.to_json() == recipe.to_json()


@pytest.mark.parametrize('recipe', ['tiny_ocr', 'flux_ocr:devices=8', 'tiny_ocr:method=nft'])
def test_the_config_of_a_run_makes_the_same_run(tmp_path, recipe):
    config = load(recipe)
    again = load(written(tmp_path, config.to_json_best_effort(indent=2), 'config.json'))
    assert json.loads(again.to_json_best_effort()) == json.loads(config.to_json_best_effort())


@pytest.mark.parametrize(
    'text,said',
    [
        ('rollout: {stps: 3}', 'there is no key rollout.stps; did you mean rollout.steps?'),
        ('iterations: 3\niterations: 4', 'the key iterations occurs twice'),
        ('rollout.steps: 3\nrollout: {steps: 4}', 'the key rollout.steps occurs twice'),
        ('rollout.steps: many', "rollout.steps='many': expected a whole number"),
        ('rollout.steps: 2.5', 'rollout.steps=2.5: expected a whole number'),
        ('full: 1', 'full=1: expected True or False'),
        ('credit.rule: densee', "or 'package.module:object'; did you mean 'dense'?"),
        ('iterations:', 'iterations=None: expected a whole number'),
        ('rollout: 3', 'there is no key rollout; rollout is a group of keys'),
        ('iterations.more: 3', 'there is no key iterations.more'),
        ('- a\n- b', 'expected keys with their values'),
        ('', 'expected keys with their values'),
        ('a: [1', 'line '),
        ('1: 2', '1 is no name of a key'),
        ('recipe: tiny_ocr,method=nft', 'did you mean tiny_ocr:method=nft?'),
        ('recipe: tiny_orc', "there is no recipe 'tiny_orc'; did you mean 'tiny_ocr'?"),
        ('recipe: 3', 'recipe: expected a name such as flux_ocr:devices=8, not 3'),
        ('credit.completion_solver: heun', 'this key was removed'),
        ('calibration.tolerance: 0.05', 'calibration.drift (0.2 is as 0.1 was) takes the place'),
        ('a: !!python/object/apply:os.getcwd []', 'could not determine a constructor'),
    ],
)
def test_mistakes_are_named(tmp_path, text, said):
    with pytest.raises(ValueError) as error:
        load(written(tmp_path, text))
    assert said in str(error.value) and 'some.yaml' in str(error.value)


def test_mistakes_in_json_are_named(tmp_path):
    for text, said in (('{"iterations": 3,', 'line 1'), ('{"a": 1, "a": 2}', 'a occurs twice')):
        with pytest.raises(ValueError, match=said):
            load(written(tmp_path, text, 'config.json'))


def test_a_run_with_a_retired_key_that_decided_nothing_of_it_opens(tmp_path, caplog):
    with caplog.at_level('WARNING', logger='absl'):
        config = load(written(tmp_path, '{"calibration": {"tolerance": 0.05}}', 'config.json'))
    assert 'calibration.drift' in caplog.text and 'tolerance' not in config.calibration


def test_a_path_may_have_colons(tmp_path):
    folder = tmp_path / '2026-01-02T03:04:05+00:00'
    folder.mkdir()
    assert load(written(folder, '{"iterations": 7}', 'config.json')).iterations == 7
    text = 'from configs.tiny_ocr import get_config  # noqa: F401\n'
    config = load(written(folder, text, 'mine.py') + ':method=flow_grpo')
    assert config.credit.rule == 'sparse'
    with pytest.raises(ValueError, match='mine.py:: there is no variant after the colon'):
        load(f'{folder}/mine.py:')


def test_a_variant_belongs_into_the_file(tmp_path):
    with pytest.raises(ValueError, match="some.yaml has no variants; name one in the file, as 're"):
        load(written(tmp_path, 'iterations: 3') + ':method=nft')
