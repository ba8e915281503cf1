"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table.

    Args:
        columns: Their headings.
        rows: Cells, as many as there are columns, of each row.
    """
    for cells in (columns, ["---"] * len(columns), *rows):
        yield "| " + " | ".join(cells) + " |"
