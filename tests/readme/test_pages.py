"""How tests read pages: what is shown and was not printed is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import Reader, commands, differs, read_blocks

PAGE = """# Title

Save this as
`a/one.yaml`:

```yaml
x: 1
y: 2
```

## Second

It is in `a/one.yaml`:

```yaml
y: 2
```

```python
print("so", 1 + 1)
```

```text
so ...
```
"""


def test_blocks_know_where_they_are() -> None:
    first, second, *rest = read_blocks(PAGE)
    assert (first.language, first.text, first.section, first.line) == ("yaml", "x: 1\ny: 2\n", "Title", 7)
    assert (first.file, first.is_saved) == ("a/one.yaml", True)
    assert (second.file, second.is_saved, second.section) == ("a/one.yaml", False, "Second")
    assert [block.language for block in rest] == ["python", "text"]


def test_a_reader_does_what_the_page_says(tmp_path: Path) -> None:
    reader = Reader(read_blocks(PAGE), tmp_path)
    reader.follow("Title")
    reader.follow("Second")
    assert (tmp_path / "a" / "one.yaml").read_text() == "x: 1\ny: 2\n"
    drifted = Reader(read_blocks(PAGE.replace("so ...", "so 3")), tmp_path)
    with pytest.raises(AssertionError, match="line 24 shows\nso 3\nand printed was\nso 2"):
        drifted.follow("Second")
    moved = Reader(read_blocks(PAGE.replace("\n\n```yaml\ny: 2", "\n\n```yaml\ny: 3")), tmp_path)
    with pytest.raises(AssertionError, match=r"line 16 shows\ny: 3\nand a/one.yaml is"):
        moved.follow("Second")


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("a\nb", "a\nb\n"),
        ("a\n...\nd", "a\nb\nc\nd"),
        ("...\nc\n...", "a\nb\nc\nd"),
        ("a ... c", "a and b and c"),
        ("...", "anything"),
        ("...\na\nb", "a\nc\na\nb"),
    ],
)
def test_what_was_printed_is_accepted(shown: str, printed: str) -> None:
    assert differs(shown, printed) is None


@pytest.mark.parametrize(
    ("shown", "printed", "first"),
    [
        ("a", "a\nb", "a"),
        ("b", "a\nb", "b"),
        ("a\n...\nc", "a\nb", "c"),
        ("...\nb\n...\na\n...", "a\nb", "a"),
        ("a.c", "abc", "a.c"),
        ("a\nb\n...", "a\nc\nb", "a\nb"),
    ],
)
def test_what_was_not_printed_is_told(shown: str, printed: str, first: str) -> None:
    assert differs(shown, printed) == first


def test_commands_may_go_on_in_the_next_line_and_may_fail() -> None:
    (block,) = read_blocks("```sh\nsdtm-fx a \\\n    --b 'c d'\n\nsdtm-fx e  # exits with 1\n```\n")
    assert [*commands(block)] == [(["sdtm-fx", "a", "--b", "c d"], True), (["sdtm-fx", "e"], False)]


def test_a_page_runs_our_commands_alone(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rm is no command that a page may use"):
        Reader(read_blocks("# A\n\n```sh\nrm x\n```\n"), tmp_path).follow("A")
    with pytest.raises(AssertionError, match="sdtm-fx recipes show nothing: RecipeError"):
        Reader(read_blocks("# A\n\n```sh\nsdtm-fx recipes show nothing\n```\n"), tmp_path).follow("A")
    with pytest.raises(AssertionError, match="names no file"):
        Reader(read_blocks("# A\n\n```yaml\nx: 1\n```\n"), tmp_path).follow("A")
