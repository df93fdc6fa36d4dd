"""The checker of shapes is in place: a wrong shape fails at the call."""

import jax
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from densegrpo_jax.core.particles import proposal_log_ratio


def test_a_wrong_shape_is_refused_where_it_is_passed():
    x, std = np.zeros((3, 2), np.float32), np.ones(3, np.float32)
    assert proposal_log_ratio(x, x, std, x).shape == (3,)
    with pytest.raises(TypeCheckError, match="parameter 'std'"):
        proposal_log_ratio(x, x, std[:2], x)
    with pytest.raises(TypeCheckError, match="parameter 'shift'"):
        jax.jit(proposal_log_ratio)(x, x, std, x[:, :1])
