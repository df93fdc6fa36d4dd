"""Pages that commands write: HTML without any script, light or dark as the reader's system is."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1240px; margin: 1rem auto; }
body { padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; }
th, td { text-align: right; padding: 0.2rem 0.8rem; border-bottom: 1px solid; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; }
img { max-width: 100%; }
.scroll { overflow-x: auto; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A page with a title, text, and parts, HTML."""
    head = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>',
        f'<h1>{html.escape(title)}</h1>',
    )
    return '\n'.join([*head, *parts, '</html>\n'])


def text(tag: str, content: str) -> str:
    """An element that holds text."""
    return f'<{tag}>{html.escape(content)}</{tag}>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of cells that hold text; it scrolls sideways where it is too wide."""
    row = lambda kind, cells: '<tr>' + ''.join(f'<{kind}>{html.escape(str(c))}' for c in cells)
    body = [row('th', head), *(row('td', cells) for cells in rows)]
    return '<div class="scroll"><table>' + '\n'.join(body) + '</table></div>'


def picture(source: str, alt: str, caption: str = '') -> str:
    """A picture, by a path beside the page."""
    caption = text('figcaption', caption) if caption else ''
    return f'<figure>{caption}<img src="{html.escape(source)}" alt="{html.escape(alt)}"></figure>'
