"""The numbers beside the progress bar."""

import numpy as np
import pytest

from densegrpo_jax.training.report import shown

SECONDS = {'sample': 1.0, 'score_wait': 2.0, 'update': 3.0, 'iteration': 6.0}


@pytest.mark.parametrize(
    ('steps', 'gain'), [([0.25, 0.75, np.nan], 0.5), ([0.6, 0.6, np.nan], None)]
)
def test_a_credit_that_is_the_reward_is_not_said_twice(steps, gain):
    metrics = {'reward': np.float32(0.6), 'gain': np.float32(steps), 'grad_norm': np.float32(0.1)}
    found = shown(metrics, SECONDS)
    assert found.get('gain') == (None if gain is None else pytest.approx(gain))
    assert [*found][0] == 'reward' and 'grad' in found and found['update_s'] == 3
