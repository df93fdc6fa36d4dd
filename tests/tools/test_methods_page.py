"""docs/methods.md is what the table of methods, their plans and their runs say."""

import pytest

from densegrpo_jax.config.methods import METHODS
from tools.methods_page import ROOT, counted, markdown


def test_the_page_is_up_to_date():
    page = (ROOT / 'docs' / 'methods.md').read_text()
    assert page == markdown(), 'make it anew: python -m tools.methods_page > docs/methods.md'
    assert all(f'\n## {name}\n' in page for name in METHODS)


# By hand: a trajectory of T, and for `dense` the rest of the grid from every state but those whose
# next evaluation is the trajectory's own; the last transition is silent.
@pytest.mark.parametrize(
    'method,steps,expected',
    [
        ('flow_grpo', 6, (6, 1)),
        ('guard', 6, (6, 1)),
        ('euphonium', 6, (6 + 3, 1)),  # and the base at the states 3, 4 and 5
        ('lire', 10, (10, 1)),
        ('nft', 10, (10, 1)),
        ('sdpo', 6, (6, 2 + 1 / 12)),  # its first prediction is that of all 12 samples
        ('dense_grpo', 6, (21, 6)),
        ('dense_grpo', 10, (55, 10)),
    ],
)
def test_costs_are_counted(method, steps, expected):
    each = counted(method, steps)
    assert (each.nfe, each.images) == pytest.approx(expected)
