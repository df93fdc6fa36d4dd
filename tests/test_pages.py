"""The pages (README, docs, CONTRIBUTING ...): what they link to, run and name is there."""

import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# notes*.md are parts of the page beside them
PAGES = sorted(
    [*ROOT.glob('*.md'), *(p for p in (ROOT / 'docs').rglob('*.md') if 'notes' not in p.name)],
    key=lambda path: path.as_posix(),
)
# Where a page may start to name a file from.
BASES = (ROOT, ROOT / 'densegrpo_jax')
ROOMS = '|'.join(path.name for path in (ROOT / 'densegrpo_jax').iterdir() if path.is_dir())
TOP = 'benchmarks|configs|densegrpo_jax|docs|examples|experiments|launch|tests|tools'


@functools.cache
def anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
    plain = [re.sub(r'[^\w\- ]', '', heading.lower()) for heading in headings]
    return {heading.replace(' ', '-') for heading in plain}


@pytest.mark.parametrize('page', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    text, lost = page.read_text(), []
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if '://' in target:
            continue
        name, _, anchor = target.partition('#')
        there = (page.parent / name).resolve() if name else page
        if not there.exists():
            lost.append(target)
        elif anchor and there.suffix == '.md' and anchor not in anchors(there):
            lost.append(target)
    for module in re.findall(
        r'python -m ((?:densegrpo_jax|experiments|tools|benchmarks)[\w.]*)', text
    ):
        path = ROOT / module.rstrip('.').replace('.', '/')
        if not (path.with_suffix('.py').exists() or (path / '__main__.py').exists()):
            lost.append(f'python -m {module}')
    prose = re.sub(r'```python.*?```', '', text, flags=re.DOTALL)  # examples are of new files
    for name in re.findall(rf'(?<![\w/.-])((?:{ROOMS}|{TOP})/[\w/]+\.(?:py|sh|md|txt))\b', prose):
        if not any((base / name).exists() for base in (*BASES, page.parent)):
            lost.append(name)
    assert not lost, f'{page} names what is not there: {lost}'
