"""The commands in the code blocks of the pages, and in tables of commands."""

from __future__ import annotations

import pathlib
import re
from typing import NamedTuple

from densegrpo_jax.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).resolve().parents[2]
# notes*.md are parts of the page beside them
PAGES = sorted(
    [
        *(page for page in ROOT.glob('*.md') if page.name != 'CHANGELOG.md'),
        *(page for page in (ROOT / 'docs').rglob('*.md') if 'notes' not in page.name),
    ],
    key=lambda page: page.as_posix(),
)
SHELL = ('', 'bash', 'sh', 'console', 'shell')
# What a line of a block begins with if it is a command; other lines of blocks are formulas, code,
# or what a command prints.
STARTERS = (
    'bash cd cp densegrpo docker echo export gcloud git hf jupyter ls mkdir mkdocs mv pip python '
    'python3 rm source ssh tensorboard'
).split()


class Command(NamedTuple):
    """One command of a page, its continued lines joined."""

    page: str  # relative to the repository
    text: str


def blocks(text: str) -> list[str]:
    """The fenced blocks without a language, or of a shell, and the indented blocks of a page."""
    fenced = re.compile(r'^( *)```(\w*)[^\n]*\n(.*?)^\1```', re.DOTALL | re.MULTILINE)
    found = [body for _, language, body in fenced.findall(text) if language in SHELL]
    return found + re.findall(r'(?:^    .*\n)+', fenced.sub('', text) + '\n', re.MULTILINE)


def commands_of(text: str) -> list[str]:
    """The commands of a page, without comments."""
    lines = [line for block in blocks(text) for line in re.sub(r'\\\n\s*', '', block).splitlines()]
    lines = [re.sub(r'\s+#\s.*$', '', line.strip()).removeprefix('$ ') for line in lines]
    lines += [
        f'densegrpo {name} {arguments}'
        for name, cells in re.findall(r'^\| `([a-z-]+)` \|(.*)\|$', text, re.MULTILINE)
        if name in COMMANDS
        for arguments in re.findall(r'`(--\w+=[^`]* [^`]*)`', cells)
    ]
    first = lambda line: re.split(r'\s', re.sub(r'^(\w+=\S*\s+)+', '', line), maxsplit=1)[0]
    return [line for line in lines if first(line).split('/')[-1] in STARTERS]


def all_commands() -> list[Command]:
    """Every command once for each page that shows it."""
    found = [
        Command(str(page.relative_to(ROOT)), text)
        for page in PAGES
        for text in commands_of(page.read_text(encoding='utf-8'))
    ]
    return list(dict.fromkeys(found))
