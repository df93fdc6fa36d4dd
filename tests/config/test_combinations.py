"""Keys that do not go together are refused with what would do; methods ship no such."""

import ast
import inspect
import re

import pytest

from configs import tiny_ocr
from densegrpo_jax.config.combinations import problems
from densegrpo_jax.config.loading import load
from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.config.plan_keys import AS_TRAJECTORY
from densegrpo_jax.config.validation import validate

# The smallest change that is a valid branch plan.
BRANCH = {'plan.kind': 'branch', 'credit.rule': 'branch', 'rollout.shared_noise': True}
VALUE = {'guide.source': 'value'}
NFT = {'loss.kind': 'nft', 'credit.rule': 'sparse', 'loss.noise_power': 0.0}
CASES = [
    (
        {'plan.kind': 'branch', 'rollout.shared_noise': True},
        "credit.rule='dense' reads .* each state, and plan.kind='branch' scores each branch: use "
        "credit.rule='branch', or plan.kind='trajectory'",
    ),
    ({'credit.rule': 'branch'}, "use credit.rule='sparse' or .*, or plan.kind='branch'"),
    ({**BRANCH, 'credit.rule': 'coca_to_go'}, "credit.rule='coca_to_go' reads"),
    ({**BRANCH, 'loss.kind': 'winners'}, "use credit.rule='sparse'"),
    (
        {'plan.kind': 'tree', 'rollout.shared_noise': True},
        "scores the finished images alone, .*'dense' reads states on the way: use .*'sparse'",
    ),
    (
        {'plan.kind': 'tree', 'rollout.shared_noise': True, 'credit.rule': 'branch'},
        "and plan.kind='tree' scores each state: use credit.rule='sparse', or plan.kind='branch'",
    ),
    (
        {'plan.kind': 'tree', 'rollout.shared_noise': True, 'credit.rule': 'sparse'}
        | {'loss.kind': 'winners', 'loss.noise_power': 0.0},
        "loss.kind='winners' trains on clean samples: use plan.kind='trajectory'",
    ),
    ({'optim.share_states': True}, 'do not lie beside each other with one state; use False'),
    ({**BRANCH, 'rollout.shared_noise': False}, 'use rollout.shared_noise=True'),
    ({'plan.seeds': 2}, 'use rollout.shared_noise=True, or plan.seeds=1'),
    (
        {'plan.seeds': 5, 'rollout.shared_noise': True},
        r'does not divide rollout.group=12 .* use one of \[1, 2, 3, 4, 6\]',
    ),
    (
        {**BRANCH, 'plan.merge': (2,) * 5, 'rollout.kernel': 'cps', 'rollout.noise': 'constant'},
        "rollout.kernel='cps' adds no more noise in a longer step.*use rollout.kernel='sde'",
    ),
    ({**BRANCH, 'plan.merge': (1,), 'plan.merge_tau': 1.0}, 'use one of them'),
    ({**BRANCH, 'plan.merge_tau': 2.0, 'noise.calibrate': True}, 'calibrate first, and give the'),
    ({**BRANCH, 'credit.completion_every': 2}, 'use 1 and 0, and plan.strides for shorter ones'),
    ({**BRANCH, 'credit.completion_steps': 2}, 'use 1 and 0, and plan.strides for shorter ones'),
    (
        {
            'budget.by': 'random',
            'loss.kind': 'list',
            'credit.rule': 'sparse',
            'optim.microbatch': 48,
        },
        "loss.kind='list' compares whole groups of one size: use budget.by='none'",
    ),
    ({**BRANCH, 'budget.by': 'entropy'}, "plan.kind='branch' is not 'trajectory'"),
    (
        {'budget.by': 'random', 'optim.updates': 8},
        r'rollout.prompts=8 is not a multiple of 2 \* .*=16',
    ),
    ({'budget.by': 'random', 'budget.ratio': 20.0}, 'groups of 1 and 23 samples; .* nearer to 1'),
    (
        {'budget.by': 'random', 'plan.seeds': 2, 'rollout.shared_noise': True},
        "divides groups of one: use plan.seeds=1, or budget.by='none'",
    ),
    (
        {'moving.steps': 'window', 'moving.stay_rule': 'linear', 'moving.stay_least': 30},
        'moving.stay_least=30 .* use at most 25',
    ),
    ({'moving.steps': 'window', 'rollout.noisy_end': True}, 'use rollout.noisy_end=False'),
    ({**BRANCH, 'moving.steps': 'subset'}, "use plan.kind='trajectory', or moving.steps='none'"),
    (
        {
            'moving.steps': 'window',
            'loss.kind': 'winners',
            'credit.rule': 'sparse',
            'loss.noise_power': 0.0,
        },
        "loss.kind='winners' trains on clean samples: use moving.steps='none'",
    ),
    ({**BRANCH, 'rollout.noisy_end': True}, 'use rollout.noisy_end=False'),
    (
        {'credit.rule': 'sdpo', 'credit.completion_every': 2},
        "credit.rule='sdpo' scores predictions, which need none: use 1 and 0",
    ),
    (
        {
            'loss.kind': 'pair',
            'loss.pairs': 'neighbours',
            'rollout.group': 9,
            'rollout.shared_noise': True,
        },
        "rollout.group=9 is odd: use an even number, or loss.pairs='all'",
    ),
    (
        {
            'loss.kind': 'nft',
            'credit.rule': 'sparse',
            'loss.noise_power': 0.0,
            'rollout.kernel': 'ode',
            'rollout.shared_noise': True,
        },
        'all would be equal; use rollout.shared_noise=False',
    ),
    ({'loss.kind': 'pair'}, "'pair' compares samples .* use rollout.shared_noise=True"),
    (
        {'loss.kind': 'list', 'plan.seeds': 2, 'rollout.shared_noise': True},
        "'list' compares all samples of a prompt, .* use plan.seeds=1",
    ),
    (
        {'loss.kind': 'pair', 'plan.seeds': 2, 'rollout.shared_noise': True},
        "'pair' compares all samples of a prompt, .* use plan.seeds=1",
    ),
    ({**BRANCH, 'credit.rule': 'sdpo'}, "credit.rule='sdpo' reads .* each x0hat"),
    (
        {'credit.process': 'gain'},
        "'gain' is credit by a process reward, .*use guide.source='probe' or .*'none'",
    ),
    (
        {**VALUE, 'credit.process': 'after', 'loss.kind': 'guard'},
        "loss.kind='guard' takes one: use loss.kind='grpo', or credit.process='none'",
    ),
    ({**VALUE, 'guide.rate': 0.01}, 'guide.scale=0.16 and guide.rate=0.01 .* use one of them'),
    ({'guide.source': 'probe'}, 'needs a file of densegrpo_jax.process_reward'),
    (
        {**VALUE, 'rollout.kernel': 'ode', 'loss.kind': 'winners', 'credit.rule': 'sparse'}
        | {'loss.noise_power': 0.0},
        "rollout.kernel='ode' adds no noise: use another kernel, or guide.source='none'",
    ),
    ({**BRANCH, **VALUE}, "which would drift alike .* use plan.kind='trajectory'"),
    ({'rollout.prompts_per_batch': 5}, r'rollout.prompts_per_batch=5 does not divide .*prompts=8'),
    ({'optim.updates': 5}, r'optim.updates=5 does not divide .* one of \[1, 2, 4, 8\]'),
    ({'credit.completion_steps': 7}, r'credit.completion_steps=7: .* to rollout.steps=6'),
    (
        {'credit.rule': 'turning', 'credit.completion_every': 2},
        "credit.rule='turning' compares .* use credit.completion_every=1",
    ),
    ({'rollout.kernel': 'ode'}, "'ode' adds no noise, so no transition .* use one of .*'sde'"),
    (
        {**NFT, 'rollout.kernel': 'ode', 'noise.calibrate': True},
        "rollout.kernel='ode' adds no noise: use noise.calibrate=False",
    ),
    (
        {'rollout.kernel': 'cps', 'rollout.noise': 'constant', 'loss.kl_form': 'flow_grpo'},
        'kl_form',
    ),
    (
        {'loss.kind': 'list', 'rollout.log_prob': 'unscaled'},
        "loss.kind='list' takes a softmax over log-densities.* use 'gaussian'",
    ),
    ({'rollout.kernel': 'sde', 'rollout.noise': 'ddim'}, "kind 'eta', and .*takes 'sigma'"),
    (
        {'rollout.kernel': 'cps', 'rollout.noise': 'constant', 'rollout.level': 1.5},
        r'0 < rollout.level <= 1',
    ),
    ({**NFT, 'credit.rule': 'dense'}, "use credit.rule='sparse'"),
    (
        {'noise.psi_path': 'psi.json', 'noise.calibrate': True},
        r"noise.psi_path='psi.json' and noise.calibrate=True",
    ),
    ({'noise.interpolate': True}, r'noise.interpolate=True .*noise.psi_path'),
    ({'calibration.low': 6.0}, r'calibration.low=6.0 and calibration.high=5.0'),
    (
        {'rollout.kernel': 'cps', 'rollout.noise': 'constant', 'calibration.low': 1.0},
        r'calibration.low=1.0: .*at most 1',
    ),
    ({'full': True, 'lora.init_from': 'a.safetensors'}, r'lora.init_from is set'),
    ({'full': True, 'model.quantize': 'nf4'}, r"model.quantize='nf4' freezes the base"),
    ({'optim.warmup': 60}, r'optim.warmup=60: expected 0 or more, and fewer than iterations=60'),
    (
        {'text_cache': 'gs://bucket/text'},
        r"text_cache='gs://bucket/text': expected a folder of this machine",
    ),
    ({'eval.panel_prompts': 'panel'}, "eval.panel_prompts='panel' has no reward to score it"),
    ({'checkpoint.pin': (70,)}, r'checkpoint.pin=\(70,\): there is no iteration 70; .*=60'),
]


def changed(**values):
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict(values)
    return config


@pytest.mark.parametrize('changes, message', CASES)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        validate(changed(**changes))


def test_every_refusal_is_tried():
    found = set()
    for changes, _ in CASES:
        told = problems(changed(**changes))
        found |= {told.gi_frame.f_lineno for _ in told}
    assert len(found) == inspect.getsource(problems).count(' yield ')


def ways_out(message):
    """The settings that a refusal offers by their keys, each as key -> value."""
    value = r"'[^']*'|\(\)|[\w.]*\w"
    for way in message.partition(' use ')[2].split(', or '):
        found = re.findall(rf'([a-z0-9_.]+)=((?:{value})(?: or (?:{value}))*)', way)
        if len(found) == 1:
            [(key, values)] = found
            yield from ({key: ast.literal_eval(each)} for each in values.split(' or '))
        elif found:  # 'A and B'
            yield {key: ast.literal_eval(each) for key, each in found}


def between(message):
    """The keys that a refusal says do not go together."""
    return set(re.findall(r'([a-z0-9_.]+)=', message.partition(' use ')[0]))


def test_what_a_refusal_offers_is_not_refused_for_the_same_keys():
    tried = 0
    for changes, _ in CASES:
        message = next(problems(changed(**changes)))
        for way in ways_out(message):
            left = [m for m in problems(changed(**changes | way)) if between(m) == between(message)]
            assert not left, (message, way, left)
            tried += 1
    assert tried > 50


@pytest.mark.parametrize('recipe', ['tiny_ocr', 'claims_ocr', 'flux_ocr:devices=8', 'sd35_ocr'])
@pytest.mark.parametrize('name', METHODS)
def test_methods_validate_on_every_recipe(recipe, name):
    recipe, _, variant = recipe.partition(':')
    validate(load(f'{recipe}:{",".join(filter(None, (variant, f"method={name}")))}'))


def test_any_plan_can_be_sampled_as_single_trajectories():
    config = changed(**BRANCH, **{'plan.strides': (1, 2), 'plan.seeds': 2})
    validate(config)
    config.update_from_flattened_dict({**AS_TRAJECTORY, 'credit.rule': 'dense'})
    validate(config)
    assert config.plan.kind == 'trajectory' and config.rollout.shared_noise
