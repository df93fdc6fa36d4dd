"""Tables of the pages that commands write."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a newline at its end; a bar in a cell would end the cell and is
    escaped.
    """
    cells = [list(head), ['---'] * len(head), *map(list, rows)]
    return '\n'.join(
        '| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in cells
    )
