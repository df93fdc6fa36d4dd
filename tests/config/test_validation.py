"""No value of a wrong type or out of its range gets past the table; each is refused by name."""

import math
import re

import pytest
from ml_collections import ConfigDict

from densegrpo_jax.config.key import Key
from densegrpo_jax.config.schema import KEYS, OPEN, TABLE, close_key, default_config
from densegrpo_jax.config.validation import validate

NUMBERS = {name: key for name, key in KEYS.items() if type(key.default) in (int, float)}


def changed(**values):
    """The defaults with other values, even of types that a configuration file refuses."""
    tree = default_config().to_dict()
    for dotted, value in values.items():
        group, _, name = dotted.rpartition('.')
        (tree[group] if group else tree)[name] = value
    return ConfigDict(tree, type_safe=False)


def refused(name, value):
    """The message that names the key and the value."""
    with pytest.raises(ValueError) as error:
        validate(changed(**{name: value}))
    message = str(error.value)
    assert message.startswith(f'{name}={value!r}'[:60]), message
    assert 'expected' in message
    return message


def test_the_defaults_are_what_the_table_says():
    config = default_config()
    validate(config)
    assert set(config) == set(TABLE)
    for name, key in KEYS.items():
        if name not in OPEN:
            group, _, inner = name.rpartition('.')
            value = (config[group] if group else config)[inner]
            assert value == key.default and type(value) is type(key.default), name
        assert key.help.endswith('.') and '\n' not in key.help, name


@pytest.mark.parametrize('name', NUMBERS)
def test_no_number_gets_past_its_range(name):
    key = NUMBERS[name]
    for value in (math.nan, math.inf, -math.inf, True, '1', None):
        refused(name, value)
    step = 1 if isinstance(key.default, int) else 1e-6
    for bound, exclusive, sign in ((key.low, key.above, -1), (key.high, key.below, 1)):
        if bound is not None:
            refused(name, type(key.default)(bound if exclusive else bound + sign * step))
    if isinstance(key.default, int):
        assert key.low is not None and key.high is not None  # none is busy for ever
        refused(name, key.default + 0.5)
        refused(name, 10**12)


@pytest.mark.parametrize('name', [name for name in KEYS if name not in {*NUMBERS, *OPEN}])
def test_no_other_value_gets_past_its_type_or_choices(name):
    key = KEYS[name]
    for value in (1.5, None, 1):
        refused(name, value)
    if key.choices is not None:
        assert key.range in refused(name, 'nothing of the kind')
    elif isinstance(key.default, tuple):
        refused(name, ([],))
        refused(name, 'words')
    elif isinstance(key.default, bool):
        refused(name, 'yes')


@pytest.mark.parametrize(
    'name, value, message',
    [
        ('iterations', 10**12, 'a whole number at least 1 and at most 1000000'),
        ('seed', 5 + 2**32, 'at least 0 and at most 4294967295'),
        ('lora.rank', 100_000, 'at most 4096'),
        ('lora.alpha', 0.0, 'a finite number above 0'),
        ('lora.targets', (), 'a tuple of texts, at least 1'),
        ('data.eval_prompts', -5, 'at least 0'),
        ('rollout.kernel', 'oed', "one of 'cps', 'ode', 'sde'"),
        ('rollout.group', 1, 'at least 2.*an advantage compares them'),
        ('rollout.level', 0.0, 'above 0.*without noise'),
        ('credit.std_eps', -1e-4, 'at least 0'),
        ('credit.rule', 'densee', "did you mean 'dense'?"),
        ('loss.clip_range', 0.0, 'above 0'),
        ('optim.learning_rate', -1.0, 'above 0'),
        ('optim.b1', 1.5, 'at least 0 and below 1'),
        ('optim.grad_clip', 0.0, 'above 0'),
        ('checkpoint.pin', ('best',), 'a tuple of whole numbers'),
        ('mesh.fsdp', 0, 'at least 1 .*or -1'),
    ],
)
def test_the_message_says_what_is_expected(name, value, message):
    assert re.search(message, refused(name, value))


def test_a_configuration_has_the_keys_of_the_table_and_no_other():
    config = changed(**{'rollout.levle': 0.7})
    with pytest.raises(ValueError, match='no key rollout.levle; did you mean rollout.level?'):
        validate(config)
    del config.rollout.levle, config.ema
    with pytest.raises(ValueError, match='the configuration has no key ema; start it from'):
        validate(config)


def test_the_table_knows_what_was_meant():
    assert close_key('rolout') == 'rollout' and close_key('stepz', 'rollout') == 'rollout.steps'
    assert (
        close_key('learning_rate', 'rollout')
        == close_key('learning_rat')
        == ('optim.learning_rate')
    )
    assert close_key('banana') is None


def test_a_registry_may_grow():
    names = {'one': 1}
    key = Key('one', 'A name.', choices=names)
    assert not key.accepts('two')
    names['two'] = 2
    assert key.accepts('two') and key.expected == "one of 'one', 'two'"
