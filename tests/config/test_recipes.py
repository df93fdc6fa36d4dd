"""What ships validates, fits its devices, and cannot be given a key that is not in the table."""

import importlib.util
import json
import pathlib
import re
import tomllib

import pytest

from densegrpo_jax.config import identity, loading, variants
from densegrpo_jax.config.key import SCIENCE
from densegrpo_jax.config.method import loss_of
from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.config.schema import KEYS, default_config
from densegrpo_jax.config.unread import unread
from densegrpo_jax.config.validation import validate
from densegrpo_jax.core.losses import CLEAN
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.trees import differing, dotted
from densegrpo_jax.sampling.noise import title
from densegrpo_jax.training.rounds import check_rounds
from tests.config.opened import opened

ROOT = pathlib.Path(__file__).parents[2]


RECIPES = sorted(
    p.stem
    for p in (ROOT / 'configs').glob('*.py')
    if p.stem.startswith(('tiny_', 'flux_', 'flux2_', 'zimage_', 'sd35_', 'sd15_'))
    and not p.stem.endswith('_pretrain')
)


def tree(config):
    return json.loads(config.to_json_best_effort())


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


@pytest.mark.parametrize(
    'name',
    [
        'flux_ocr',
        'flux2_klein_geneval',
        'flux2_klein_ocr',
        'flux2_klein_pickscore',
        'zimage_ocr',
        'zimage_pickscore',
        'sd35_ocr',
        'sd35_pickscore_1024',
        'sd15_pickscore',
    ],
)
@pytest.mark.parametrize('devices', [1, 4, 8, 32])
def test_variants_divide_over_their_devices(name, devices):
    config = load(name, f'devices={devices}')
    r, o = config.rollout, config.optim
    assert r.prompts_per_batch * r.group % devices == 0 and o.microbatch % devices == 0
    assert r.prompts % r.prompts_per_batch == 0 and r.prompts * r.group % o.microbatch == 0
    assert (r.prompts, r.group) == (48, 24)  # what is learned does not depend on the devices


@pytest.mark.parametrize('name', ['tiny_ocr', 'tiny_ocr_long', 'tiny_geneval', 'tiny_preference'])
def test_the_miniatures_keep_their_batches_unless_devices_are_named(name):
    plain, four = load(name), load(name, 'devices=4')
    assert (plain.rollout.prompts_per_batch, plain.eval.batch) in ((4, 80), (4, 100))
    assert (four.rollout.prompts_per_batch, four.optim.microbatch, four.eval.batch) == (8, 96, 96)
    assert load(name, 'devices=1').rollout.prompts_per_batch == 2
    assert (
        identity.differences(
            'training', identity.record('training', plain), identity.record('training', four)
        )
        == []
    )


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('name', RECIPES)
def test_every_method_goes_with_every_recipe(name, method):
    config, plain = load(name, f'method={method},devices=4'), load(name, 'devices=4')
    validate(config)
    for key, value in METHODS[method].overrides.items():
        group, _, inner = key.partition('.')
        steps = config.rollout.steps
        # a completion has no more than there are, and a window moves
        most = {'completion_steps': steps, 'width': max(1, steps - 2)}.get(inner)
        assert config[group][inner] == (value if most is None else min(value, most))
    changed = {key for key, *_ in differing(tree(plain), tree(config))}
    loss = loss_of(config)
    fitted = {'optim.microbatch'} if loss.groups or config.moving.steps != 'none' else set()
    fitted |= {'rollout.level'} if 'rollout.noise' in changed else set()  # of another table
    of_other_parts = {key for key in changed if dotted(tree(config))[key] == KEYS[key].default}
    assert changed <= {*METHODS[method].overrides, 'label'} | fitted | of_other_parts
    assert not unread(config)
    for of in (config, load(name, f'method={method}')):
        assert not loss.groups or of.optim.microbatch % of.rollout.group == 0
        samples = of.rollout.prompts * of.rollout.group // of.optim.updates
        assert loss.batch != CLEAN or samples % of.optim.microbatch == 0
    assert config.label.endswith(f', {method}') and 'dense credit' not in config.label


# What a run says as it opens: attention that is not probed, and noise that SD1.5 does not have.
REFUSED = {
    ('sd15_pickscore', 'aegpo'): 'cannot be probed',
    ('zimage_ocr', 'aegpo'): 'cannot be probed',
    ('sd15_pickscore', 'nft'): 'trains at noise levels of 0 to 1',
    ('sd15_pickscore', 'winners'): 'trains at noise levels of 0 to 1',
}


def opens(config):
    pipeline, schedule = opened(config)
    check_rounds(config, pipeline, schedule, make_mesh(config.mesh))
    return schedule


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
    'name', ['flux2_klein_ocr', 'flux_geneval', 'sd15_pickscore', 'sd35_ocr', 'zimage_ocr']
)
def test_every_method_opens_on_every_model(name, method):
    config = load(name, f'method={method},devices=8')
    if said := REFUSED.get((name, method)):
        with pytest.raises(ValueError, match=said):
            opens(config)
        return
    schedule = opens(config)
    assert any(schedule.plan.transitions.trained)
    assert config.moving.steps == 'none' or schedule.moving is not None


# Science of a rollout that a recipe decides, whatever the method is: amounts.
AMOUNTS = {'rollout.steps', 'rollout.prompts', 'rollout.group'}
NOISE = {'rollout.kernel', 'rollout.noise', 'rollout.level'}
KL = {'loss.beta', 'loss.kl_form'}
# Beyond that, methods that go with any noise, any std or any KL to the reference.
RECIPE_DECIDES = {
    'dense_grpo': NOISE | KL | {'credit.std'},
    'flow_grpo': {'rollout.level', 'loss.beta'},
    'flow_grpo_weighted': {'rollout.level', 'loss.beta'},
    'coca': NOISE | KL | {'credit.std'},
    'coca_weighted': NOISE | KL | {'credit.std'},
    'guard': {'loss.kl_form'},
    'lire': NOISE | {'loss.kl_form'},
    'sdpo': NOISE | {'loss.kl_form'},
    'winners': NOISE | {'credit.std'},
    'd2_align': {'rollout.level'},
    'gae': NOISE | KL | {'credit.std'},
}


@pytest.mark.parametrize('method', METHODS)
def test_what_a_recipe_decides_about_a_method(method):
    """A method's row says the rest: it is the same method on the miniature, FLUX and SD3.5."""
    recipes = ('tiny_ocr', 'flux_ocr', 'flux_geneval', 'flux_pickscore', 'sd35_ocr')
    trees = [dotted(tree(load(name, f'method={method}'))) for name in recipes]
    groups = ('rollout.', 'plan.', 'moving.', 'budget.', 'credit.', 'loss.')
    differ = {
        key
        for key in KEYS
        if key.startswith(groups)
        and KEYS[key].kind == SCIENCE
        and any(t[key] != trees[0][key] for t in trees)
    }
    assert differ - AMOUNTS <= RECIPE_DECIDES.get(method, set())


def test_a_level_of_noise_is_not_read_by_another_table():
    """The etas of Flow-CPS and DDIM are no levels of Flow-GRPO's table."""
    level = lambda *of: load(*of).rollout.level
    assert level('flux_ocr') == 0.8 and level('flux_ocr', 'method=flow_grpo') == 0.7
    assert level('sd15_pickscore') == 1.0 and level('sd15_pickscore', 'method=d2_align') == 0.7
    assert level('flux_pickscore', 'method=flow_grpo') == level('flux_pickscore') == 0.9


def test_a_label_names_one_method():
    label = load('tiny_ocr_quick').label
    assert label.endswith(', flow_grpo_weighted')
    other = load('tiny_ocr_quick', 'method=dense_grpo').label
    assert other == label.replace('flow_grpo_weighted', 'dense_grpo')


def test_methods_differ_and_say_where_they_come_from():
    rows = [tree(load('tiny_ocr', f'method={name}')) | {'label': ''} for name in METHODS]
    assert all(a != b for i, a in enumerate(rows) for b in rows[:i])
    for method in METHODS.values():
        assert 'arXiv ' in method.source and method.idea.endswith('.')


@pytest.mark.parametrize(
    'text, message',
    [
        ('devices', "variant 'devices' is not known; expected 'devices=N'"),
        ('devices=0', 'devices=0: expected devices=N with a whole N of at least 1'),
        ('devices=4,devices=8', "variant 'devices=8' is not known"),
        ('rule=dense', "'settings=paper', or several with commas between. Methods: dense_grpo, "),
        ('method=', 'method= is not known; methods: dense_grpo, '),
        ('method=cocoa', "method=cocoa is not known; did you mean 'coca'?"),
        ('method=cps', "method=cps is not known; did you mean 'flow_cps'?"),
        ('method=DanceGRPO', "method=DanceGRPO is not known; did you mean 'dance'?"),
        ('method=grpo_guard', "method=grpo_guard is not known; did you mean 'guard'?"),
    ],
)
def test_a_variant_that_is_none_is_explained(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load('tiny_ocr', text)


def test_a_variant_is_read_in_any_order():
    assert variants.parse('') == (None, None, None)
    assert variants.parse('devices=4') == (4, None, None)
    assert variants.parse(' devices=4, , method = gae,') == (4, 'gae', None)
    assert variants.parse('settings=paper,method=mix') == (None, 'mix', 'paper')
    assert variants.parse('method=gae,devices=2') == variants.parse('devices=2,method=gae')


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


def test_recipes_are_a_part_of_the_package():
    """The folder is one, and what builds the wheel finds it."""
    discovery = pytest.importorskip('setuptools.discovery')
    find = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']['packages']
    found = discovery.PEP420PackageFinder.find(str(ROOT), **find['find'])
    assert 'densegrpo_jax.configs' in found and 'configs' not in found
    for file in (ROOT / 'configs').glob('*.py'):
        assert (ROOT / 'densegrpo_jax' / 'configs' / file.name).samefile(file)
        if not file.stem.endswith('_pretrain'):
            assert tree(load(file.stem)) == tree(loading.load(file.stem))
