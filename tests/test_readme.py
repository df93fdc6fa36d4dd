"""README.md: its Python runs and does what the prose says, its table lists every command."""

import pathlib
import re

import numpy as np

from densegrpo_jax.__main__ import COMMANDS

PAGE = (pathlib.Path(__file__).parents[1] / 'README.md').read_text()


def test_the_method_in_fifteen_lines():
    [code] = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    assert len(code.splitlines()) == 15
    names = {}
    exec(code, names)
    gains, rewards = names['gains'], names['rewards']
    assert gains.shape == (4, 64)
    np.testing.assert_allclose(gains.sum(0), rewards[-1] - rewards[0], atol=1e-6)
    np.testing.assert_allclose(names['advantages'].std(1), 1, atol=1e-5)
    assert float(abs(gains).max()) > 0.01


def test_the_table_lists_every_command():
    rows = dict(re.findall(r'^\| `([\w-]+)` \| `(\w+)` \|', PAGE, re.MULTILINE))
    assert rows == {name: module for name, (module, _) in COMMANDS.items()}
