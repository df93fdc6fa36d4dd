"""Hooks of mkdocs.yml: pages of docs/ may link to the rest of the repository, as on GitHub.

CONTRIBUTING.md and CHANGELOG.md become pages of the site; other files that a page names, such as
examples, are copied to source/ and linked there. MkDocs imports this file; nothing else does.
"""

from __future__ import annotations

import pathlib
import posixpath
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ('CONTRIBUTING.md', 'CHANGELOG.md')
SOURCE = 'source'  # where copied files lie in the site
_LINK = re.compile(r'(\]\()([^)\s#]+)((?:#[^)\s]*)?\))')
_CODE = re.compile(r'(```.*?```|`[^`\n]*`)', re.DOTALL)


def on_files(files, *, config):
    """Adds the pages beside docs/, and the files outside of it that pages name."""
    from mkdocs.structure.files import File  # only the site needs MkDocs, not the tests of links

    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    outside = {
        target
        for file in files.documentation_pages()
        for _, link, _ in _LINK.findall(file.content_string)
        if (target := _outside(_place(file.src_uri), link))
    }
    for target in sorted(outside):
        path = f'{SOURCE}/{target}'
        files.append(File.generated(config, path, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown, *, page, config, files):
    """Points links out of docs/ to the copies."""
    place = _place(page.file.src_uri)
    return rewritten(markdown, place)


def rewritten(markdown: str, place: str) -> str:
    """The page's text for the site.

    Args:
      place: the page's path in the repository.
    """

    def moved(match: re.Match) -> str:
        start, link, end = match.groups()
        here = posixpath.dirname(_in_site(place)) or '.'
        if target := _outside(place, link):
            return f'{start}{posixpath.relpath(f"{SOURCE}/{target}", here)}{end}'
        if '://' in link or not link:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
        return f'{start}{posixpath.relpath(_in_site(target), here)}{end}'

    parts = _CODE.split(markdown)
    parts[::2] = [_LINK.sub(moved, part) for part in parts[::2]]
    return ''.join(parts)


def _place(uri: str) -> str:
    """The path in the repository of a page of the site."""
    return uri if uri in PAGES else f'docs/{uri}'


def _in_site(place: str) -> str:
    """The path in the site of a file of the repository."""
    return place.removeprefix('docs/')


def _outside(place: str, link: str) -> str | None:
    """The path in the repository of a file that the site has no page of; None for others."""
    if '://' in link:
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
    inside = target.startswith('docs/') or target in PAGES
    return None if inside or not (ROOT / target).is_file() else target
