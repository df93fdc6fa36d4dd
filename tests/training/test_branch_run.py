"""Methods on branches through whole runs: first ratio, counts, and a stopped run that goes on with
the same bits.
"""

import numpy as np
import pytest

from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests.training.small_run import final_state, make_config, one_device, rows

SHORT = {'rollout.steps': 4, 'eval.every': 1, 'optim.microbatch': 8, 'optim.decay': 'constant'}
SAMPLES = 16  # of an iteration
# more noise than the method's own, so that the rounding of means is small against it
TREE = {'plan.splits': (0, 1), 'rollout.noise': 'flow_grpo', 'rollout.level': 0.7}


def trained(folder, workdir, method, iterations, **changes):
    overrides = {**METHODS[method].overrides, **SHORT, **changes}
    config = make_config(folder, **overrides, iterations=iterations)
    run(config, workdir, one_device(), StopRequest())
    return final_state(workdir)[1]


# Evaluations of a prompt's 4 samples at T = 4, by hand. Branches: 2 for the anchor; for each sample
# 3 and 2 from states 1 and 2, and with the second stride the one at 3 of the grid 1, 3, 4, none for
# 2, 4. The tree: 1 at state 0, 2 at state 1, then 4.
@pytest.mark.parametrize(
    'method, changes, transitions, evaluations',
    [
        ('g2rpo', {}, 2, 2 + 4 * (3 + 2 + 1)),
        pytest.param('branch', TREE, 3, 1 + 2 + 4 + 4, marks=pytest.mark.slow),
    ],
)
def test_trains_and_continues(folder, tmp_path, method, changes, transitions, evaluations):
    whole = trained(folder, tmp_path / 'whole', method, 2, **changes)
    trained(folder, tmp_path / 'stopped', method, 1, **changes)
    continued = trained(folder, tmp_path / 'stopped', method, 2, **changes)
    for name in whole:
        np.testing.assert_array_equal(whole[name], continued[name], name)
    first, second = (row for row in rows(tmp_path / 'whole') if 'train/transitions' in row)
    for row in (first, second):
        assert row['train/transitions'] == transitions * SAMPLES
        assert row['train/ratio_deviation_first'] <= 1e-6
        assert row['train/finite'] == 1 and row['train/grad_norm'] > 0
    assert first['train/nfe'] == evaluations * SAMPLES / 4
    assert second['train/nfe'] == 2 * first['train/nfe']
    steps = {name for name in first if name.startswith('gain/')}
    assert steps == {f'gain/step_{k}' for k in range(transitions)}
