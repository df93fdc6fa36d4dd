"""docs/recipes.md: a row for every recipe, of a known level, with evidence that is there."""

import re

import pytest

from densegrpo_jax.config.loading import load
from densegrpo_jax.config.schema import TABLE
from densegrpo_jax.config.validation import validate
from tools.recipes_page import ROOT, markdown
from tools.verification import LEVELS, RECIPES, VALIDATED


def test_the_page_is_up_to_date():
    page = (ROOT / 'docs' / 'recipes.md').read_text(encoding='utf-8')
    assert page == markdown(), 'make it anew: python -m tools.recipes_page > docs/recipes.md'


def test_every_recipe_has_a_row():
    """In tools/verification.py; the level is what was done, not what is hoped."""
    assert sorted(RECIPES) == sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('name', RECIPES)
def test_the_evidence_is_there(name):
    level, evidence = RECIPES[name]
    assert level in LEVELS
    links = re.findall(r'\]\((\S+?)(?:#\S*)?\)', evidence)
    files = re.findall(r'tests/\S+\.py', evidence)
    assert links or files or 'densegrpo_jax/assets' in evidence
    assert all((ROOT / 'docs' / link).is_file() for link in links)
    assert all((ROOT / file).is_file() for file in files)
    own = [] if level == VALIDATED else files
    assert all(name in (ROOT / file).read_text(encoding='utf-8') for file in own)


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_opens_and_is_valid(name):
    config = load(name)
    if set(TABLE) <= set(config):  # others are of tools and of the reward server
        validate(config)
