"""The site of docs/: every page has its place, and links out of docs/ lead to what the site copies.
launch/check.sh builds it strictly.
"""

import pathlib
import re

import pytest

from tools.site_hooks import PAGES, rewritten

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8')


def test_every_page_has_a_place_and_every_place_a_page():
    named = re.findall(r'^ +- [^:\n]+: (\S+\.md)$', SETTINGS, re.MULTILINE)
    pages = [
        path.relative_to(ROOT / 'docs').as_posix()
        for path in (ROOT / 'docs').rglob('*.md')
        if not path.name.startswith('notes')
    ]
    assert sorted(named) == sorted([*pages, *PAGES]) and len(named) == len(set(named))


def test_nothing_is_fetched_from_the_web():
    assert 'font: false' in SETTINGS and not re.search(r'https?://', SETTINGS)


@pytest.mark.parametrize(
    ('place', 'text', 'wanted'),
    [
        ('docs/README.md', '[a](../CONTRIBUTING.md#rules)', '[a](CONTRIBUTING.md#rules)'),
        ('docs/results/gpu.md', '[a](../../CHANGELOG.md)', '[a](../CHANGELOG.md)'),
        ('CONTRIBUTING.md', '[a](docs/rewards.md#own)', '[a](rewards.md#own)'),
        ('CHANGELOG.md', '[a](https://example.org/x)', '[a](https://example.org/x)'),
        (
            'docs/architecture.md',
            '[a](../examples/minimal_iteration.py)',
            '[a](source/examples/minimal_iteration.py)',
        ),
        ('docs/results/README.md', '![a](demo/x.png)', '![a](demo/x.png)'),
        (
            'docs/README.md',
            '[a](#here) `[b](../CHANGELOG.md)`',
            '[a](#here) `[b](../CHANGELOG.md)`',
        ),
    ],
)
def test_links_lead_to_the_same_page_on_the_site(place, text, wanted):
    assert rewritten(text, place) == wanted
