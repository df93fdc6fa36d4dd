"""docs/config.md is what the table says."""

import pathlib
import subprocess
import sys

from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.config.page import markdown
from densegrpo_jax.config.schema import KEYS

ROOT = pathlib.Path(__file__).parents[2]


def test_the_page_is_up_to_date():
    page = (ROOT / 'docs' / 'config.md').read_text()
    command = 'python -m densegrpo_jax.config --markdown > docs/config.md'
    assert page == markdown(), f'make it anew: {command}'
    assert command in page
    for name, key in KEYS.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f'| `{name}` |')]
        assert key.kind in line and key.help.replace('|', '\\|') in line
    assert all(f'| `{name}` |' in page for name in METHODS)


def test_the_command_prints_the_page():
    done = subprocess.run(
        [sys.executable, '-m', 'densegrpo_jax.config', '--markdown'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == markdown()
