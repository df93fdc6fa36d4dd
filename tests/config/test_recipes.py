"""What ships validates, fits its devices, and cannot be given a key that is not in the table."""

import importlib.util
import pathlib

import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.validation import validate
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.sampling.noise import title

ROOT = pathlib.Path(__file__).parents[2]


def load(name, *variant):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


@pytest.mark.parametrize(
    'name',
    sorted(p.stem for p in (ROOT / 'configs').glob('*.py') if not p.stem.endswith('_pretrain')),
)
def test_shipped_configurations_validate(name, monkeypatch):
    # no weights here
    monkeypatch.setattr(
        'densegrpo_jax.rewards.local.geneval.GenevalDetector', lambda *_, **__: None
    )
    config = load(name)
    validate(config)
    if 'pickscore' in config.reward:
        config.reward.pickscore.path = '/absent'
        with pytest.raises(
            FileNotFoundError, match=r"reward\.pickscore\.path='/absent' is not a folder"
        ):
            build_reward(config.reward)
    else:
        assert config.eval.best in build_reward(config.reward).names


@pytest.mark.parametrize('name', ['flux_ocr', 'sd35_ocr', 'sd35_pickscore_1024'])
@pytest.mark.parametrize('devices', [1, 4, 8, 32])
def test_variants_divide_over_their_devices(name, devices):
    config = load(name, f'devices={devices}')
    r, o = config.rollout, config.optim
    assert r.prompts_per_batch * r.group % devices == 0 and o.microbatch % devices == 0
    assert r.prompts % r.prompts_per_batch == 0 and r.prompts * r.group % o.microbatch == 0
    assert (r.prompts, r.group) == (48, 24)  # what is learned does not depend on the devices


def test_variants_that_cannot_be_are_explained():
    with pytest.raises(
        ValueError, match=r'48 prompts x 24 samples = 1152.*numbers that do: .*8, 9, 12'
    ):
        load('flux_ocr', 'devices=7')
    with pytest.raises(ValueError, match='devices=N'):
        load('flux_ocr', 'gpus=8')


def test_flux_ocr_has_the_recipe_of_its_issue():
    c = load('flux_ocr')
    assert (c.model.height, c.model.width, c.model.guidance, c.model.t5_length) == (
        512,
        512,
        3.5,
        128,
    )
    assert (c.rollout.steps, c.eval.steps, c.rollout.group, c.rollout.prompts) == (6, 28, 24, 48)
    assert (c.rollout.kernel, c.rollout.level, c.credit.rule, c.loss.beta) == (
        'cps',
        0.8,
        'dense',
        0.0,
    )
    assert (c.lora.rank, c.lora.alpha, c.optim.learning_rate) == (64, 128.0, 3e-4)
    assert 'uncalibrated' in title(c)


def test_unknown_keys_fail():
    config = default_config()  # as a configuration file has it
    with pytest.raises(AttributeError, match='learning_rat'):
        config.optim.learning_rat = 1e-3
    with pytest.raises((AttributeError, KeyError), match='levle'):
        config.rollout.update(levle=0.7)
    config.reward.ocr.drop_score = 0.1
    config.reward.jpeg = {'weight': 0.1}
    config.eval.panel.clipscore = {}
