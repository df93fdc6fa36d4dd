"""Libraries that would speak to the user about what does not concern them."""

import subprocess
import sys

import pytest

WITHOUT_TORCH = """
import importlib.util, os
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else found(name, *rest)
"""
OURS = """
from densegrpo_jax.runtime.quiet import import_transformers
assert import_transformers().CLIPTokenizer
assert 'TRANSFORMERS_NO_ADVISORY_WARNINGS' not in os.environ
"""


@pytest.mark.parametrize('statements, said', [(OURS, False), ('import transformers', True)])
def test_nobody_is_told_that_pytorch_is_absent(statements, said):
    """The second case shows that there is something to hide."""
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT_TORCH + statements], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ('PyTorch was not found' in done.stdout + done.stderr) == said
