"""Tables of the pages: a row that stands twice was joined twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(["README.md", *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))])


def repeated_rows(text: str) -> Iterator[str]:
    """Rows of Markdown tables that stand twice in one table."""
    seen: set[str] = set()
    for line in text.splitlines():
        if not line.startswith("|"):
            seen = set()
        elif line in seen:
            yield line
        seen.add(line)


def test_rows_are_found() -> None:
    assert list(repeated_rows("| a |\n| - |\n| 1 |\n| 2 |\n| 1 |\n\n| 1 |\n")) == ["| 1 |"]


@pytest.mark.parametrize("page", PAGES)
def test_no_row_stands_twice_in_a_table(page: str) -> None:
    assert list(repeated_rows((ROOT / page).read_text(encoding="utf-8"))) == []
