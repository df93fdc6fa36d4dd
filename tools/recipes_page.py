"""Renders docs/recipes.md: every recipe with its model and how far it was verified here.

    python -m tools.recipes_page > docs/recipes.md

Levels and evidence are the table of tools/verification.py, texts the recipes' own first lines.
"""

from __future__ import annotations

import ast
import pathlib

from densegrpo_jax.runtime.markdown import table
from tools.verification import HARDWARE, LEVELS, RECIPES

ROOT = pathlib.Path(__file__).resolve().parents[1]

INTRODUCTION = """# Recipes, and how far each was verified

Made by `python -m tools.recipes_page > docs/recipes.md` from the recipes of `configs/` and from
`tools/verification.py`.

A recipe is named by `--config`: `densegrpo train --config=tiny_ocr`. The head of its file has the
command, the hardware, the memory and the expected score.
"""

COMMANDS = """
## Commands that need what was not at hand

A test (`tests/docs/test_docs_commands.py`) collects the commands of all pages. It opens their
recipes, reads their flags and keys as the command would, and looks for the scripts and files that
they name. Those for two CPU cores have also run, in a test or for the page of results that shows
them. Of the others, this is what was done:
"""


def purpose(path: pathlib.Path) -> str:
    """The first sentence of a recipe's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
    assert text, path
    return ' '.join(text.split('\n\n')[0].split()).rstrip('.')


def markdown() -> str:
    """The page."""
    rows = [
        (f'`{name}`', purpose(ROOT / 'configs' / f'{name}.py'), level, evidence)
        for name, (level, evidence) in RECIPES.items()
    ]
    levels = '\n'.join(f'- **{name}**: {text}' for name, text in LEVELS.items())
    needs = [(row.title, row.needs, row.instead) for row in HARDWARE]
    return '\n'.join(
        [
            INTRODUCTION,
            table(('recipe', 'what it does', 'verification level', 'evidence'), rows),
            '',
            '## Levels',
            '',
            levels,
            COMMANDS,
            table(('commands with', 'need', 'done instead'), needs),
            '',
        ]
    )


if __name__ == '__main__':
    print(markdown(), end='')
