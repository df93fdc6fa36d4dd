"""Tables for the pages that commands write."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without a final newline; bars in cells are escaped."""
    cells = [list(head), ['---'] * len(head), *map(list, rows)]
    return '\n'.join(
        '| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in cells
    )
