"""A user's parts are tried before anything is loaded."""

import re

import jax
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.config.methods import METHODS, apply_method
from densegrpo_jax.config.validation import validate
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import open_base
from densegrpo_jax.training.trial import try_parts

OWN = """
import numpy as np
from densegrpo_jax.core.credit_rules import CreditRule, read_offsets
from densegrpo_jax.core.grpo_loss import LossSums
from densegrpo_jax.core.kernels import KERNELS, Kernel
from densegrpo_jax.core.losses import CLEAN, Loss, loss_sums
from densegrpo_jax.core.noise_tables import NoiseTable

gain = lambda r: r[1:] - r[:-1]
forgot = CreditRule(gain)
told = CreditRule(gain, states=read_offsets(0, 1))
short = CreditRule(lambda r: r[1:2])
raising = CreditRule(lambda r: 1 / 0)
window = CreditRule(lambda r, *, alpha=0.5, window=3: r[1:] * alpha + window, read_offsets(1))
whole = Loss(lambda outputs, batch: loss_sums(batch.advantage['outcome'], batch.mask))
unsummed = Loss(lambda outputs, batch: LossSums.zeros()._replace(policy_sum=outputs['policy'].std))
bare = Loss(lambda outputs, batch: outputs['policy'].mean(), batch=CLEAN)
unknown = Loss(lambda outputs, batch: loss_sums(batch.advantage['style'], batch.mask))
silent = NoiseTable(lambda sigmas, level: np.zeros(len(sigmas) - 1))
"""


@pytest.fixture(scope='module')
def opened():
    config = tiny_ocr.get_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    return open_base(config, mesh)[1]


def tried(pipeline, **changes):
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    validate(config)
    try_parts(config, make_schedule(pipeline, config))


@pytest.mark.parametrize('method', METHODS)
def test_what_ships_passes(opened, method):
    config = apply_method(tiny_ocr.get_config(), method)
    try_parts(config, make_schedule(opened, config))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'credit__rule': 'tried_parts:told'}, None),
        ({'credit__rule': 'tried_parts:window'}, None),
        (
            {'credit__rule': 'tried_parts:forgot'},
            "credit.rule='tried_parts:forgot' gives transition 0 a reward that is not finite: it "
            'must say which states it reads',
        ),
        (
            {'credit__rule': 'tried_parts:short'},
            "credit.rule='tried_parts:short': ValueError: credit <lambda> gave the shape (1, 3)",
        ),
        ({'credit__rule': 'tried_parts:raising'}, "'tried_parts:raising': ZeroDivisionError"),
        (
            {'rollout__noise': 'tried_parts:silent'},
            "rollout.noise='tried_parts:silent', transition 0, which is trained: the noise has the "
            'standard deviation 0',
        ),
        ({'loss__kind': 'tried_parts:whole'}, None),
        (
            {'loss__kind': 'tried_parts:unsummed'},
            "loss.kind='tried_parts:unsummed': policy_sum has the shape (",
        ),
        (
            {'loss__kind': 'tried_parts:bare', 'credit__rule': 'sparse', 'loss__noise_power': 0.0},
            "loss.kind='tried_parts:bare' gave a ",
        ),
        ({'loss__kind': 'tried_parts:unknown'}, "'tried_parts:unknown': KeyError: 'style'"),
        ({'rollout__level': 1e-320}, 'transition 0, which is trained'),
        (
            {'credit__rule': 'broken_parts:rule'},
            "the module 'broken_parts' cannot be imported: Syn",
        ),
        ({'credit__rule': 'lacking_parts:rule'}, 'cannot be imported: No module named'),
    ],
)
def test_what_cannot_train_is_refused(opened, tmp_path, monkeypatch, changes, message):
    (tmp_path / 'tried_parts.py').write_text(OWN)
    (tmp_path / 'broken_parts.py').write_text('def rule(:\n')
    (tmp_path / 'lacking_parts.py').write_text('import no_such_module\n')
    monkeypatch.syspath_prepend(tmp_path)
    if message is None:
        return tried(opened, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        tried(opened, **changes)


def test_options_of_ones_own_are_not_those_of_coca(opened, tmp_path, monkeypatch):
    from densegrpo_jax.config.method import credit_options

    (tmp_path / 'tried_parts.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny_ocr.get_config()
    config.credit.rule = 'tried_parts:window'
    assert credit_options(config) == {}
    config.credit.rule = 'coca_to_go'
    assert credit_options(config) == {'window': 1, 'alpha': np.float32(0)}
