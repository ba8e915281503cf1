"""Pages of documentation as tests see them: their fenced blocks, run in order in one folder.

What a page says of a block is what is done with it:

- `sh`: every line is run. One that must fail says so in a comment: ``# exits with 1``.
- `python`: run, in one namespace for the whole page.
- `text` right after a block that ran: what it printed. A line ``...`` stands for any lines, ``...`` in a line for any
  characters.
- Any behind a paragraph that ends in "as `name`:" is written to that file. `yaml` behind one that ends in "`name`:"
  otherwise: its lines are in that file, one after the other.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from sdtm_fx.cli.main import app

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", flags=re.MULTILINE)
_COLUMNS = "100"
_FAILS = "# exits with 1"


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: Behind the fence.
        text: What it holds.
        section: The heading that it stands under.
        line: Of the page, where its text begins.
        lead: The paragraph in front of it, as one line.
    """

    language: str
    text: str
    section: str
    line: int
    lead: str

    @property
    def file(self) -> str | None:
        """The file that the line in front names at its end, or None."""
        named = re.search(r"`([\w./-]+)`:$", self.lead)
        return None if named is None else named[1]

    @property
    def is_saved(self) -> bool:
        """Whether the reader is told to save it."""
        return self.file is not None and self.lead.endswith(f"as `{self.file}`:")


def read_blocks(text: str) -> tuple[Block, ...]:
    """The fenced blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        before = _FENCE.sub("", text[: match.start()])
        headings = _HEADING.findall(before)
        lead = " ".join(before.rstrip().rpartition("\n\n")[2].split())
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(match[1], match[2], headings[-1] if headings else "", line, lead))
    return tuple(found)


def commands(block: Block) -> Iterator[tuple[list[str], bool]]:
    """The words of each line of a shell block, and whether it must succeed; a backslash joins lines."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words, _FAILS not in line


def differs(shown: str, printed: str) -> str | None:
    """The first line that is shown and was not printed at its place, or None."""
    actual = [line.rstrip() for line in printed.rstrip().splitlines()]
    groups: list[list[str]] = [[]]
    for line in shown.rstrip().splitlines():
        if line.strip() == "...":
            groups.append([])
        else:
            groups[-1].append(line.rstrip())
    place = 0
    for number, group in enumerate(groups):
        fixed, last = number == 0, number == len(groups) - 1
        starts = [0] if fixed else [len(actual) - len(group)] if last else range(place, len(actual))
        fitting = [s for s in starts if place <= s and _fits(group, actual[s : s + len(group)])]
        if not fitting or (last and fitting[0] + len(group) != len(actual)):
            return "\n".join(group)
        place = fitting[0] + len(group)
    return None


def _fits(group: Sequence[str], lines: Sequence[str]) -> bool:
    patterns = [".*".join(map(re.escape, line.split("..."))) for line in group]
    return len(group) == len(lines) and all(
        re.fullmatch(pattern, line) for pattern, line in zip(patterns, lines, strict=True)
    )


@dataclass
class Reader:
    """Someone who follows a page in a folder.

    Attributes:
        blocks: Of the page.
        folder: Where commands run and files are written.
        names: Of the Python blocks.
    """

    blocks: tuple[Block, ...]
    folder: Path
    names: dict[str, Any] = field(default_factory=dict)

    def save_files(self, until: str) -> None:
        """Write what the page tells to save before a section."""
        for block in self.blocks:
            if block.section == until:
                return
            if block.is_saved:
                self._save(block)

    def follow(self, section: str) -> None:
        """Do everything that a section says."""
        printed: str | None = None
        with _inside(self.folder):
            for block in (b for b in self.blocks if b.section == section):
                printed = self._do(block, printed)

    def _do(self, block: Block, printed: str | None) -> str | None:
        """Do what a block says; returns what it printed."""
        where = f"line {block.line}"
        if block.is_saved:
            self._save(block)
        elif block.language == "text":
            assert printed is not None, f"{where}: nothing ran in front of this text"
            missing = differs(block.text, printed)
            assert missing is None, f"{where} shows\n{missing}\nand printed was\n{printed}"
        elif block.language == "sh":
            return "".join(_run(words, works, where) for words, works in commands(block))
        elif block.language == "python":
            return self._execute(block)
        elif block.file is not None:
            there = (self.folder / block.file).read_text(encoding="utf-8")
            missing = differs(f"...\n{block.text.rstrip()}\n...", there)
            assert missing is None, f"{where} shows\n{missing}\nand {block.file} is\n{there}"
        else:
            raise AssertionError(f"{where}: the line in front of this {block.language} block names no file")
        return None

    def _save(self, block: Block) -> None:
        assert block.file is not None
        path = self.folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")

    def _execute(self, block: Block) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text, f"the python block at line {block.line}", "exec"), self.names)
        return printed.getvalue()


def _run(words: list[str], works: bool, where: str) -> str:
    """Run a command of ours; returns what it printed on the terminal."""
    command, *arguments = words
    assert command == "sdtm-fx", f"{where}: {command} is no command that a page may use"
    target = None
    if ">" in arguments:
        arguments, (target,) = arguments[: arguments.index(">")], arguments[arguments.index(">") + 1 :]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code == 0) == works, (
        f"{where}: {shlex.join(words)}: {result.output} {result.exception!r}"
    )
    if target is None:
        return result.output
    Path(target).write_text(result.stdout, encoding="utf-8")
    return result.stderr


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, on a terminal of fixed width."""
    before, columns = Path.cwd(), os.environ.get("COLUMNS")
    os.chdir(folder)
    os.environ["COLUMNS"] = _COLUMNS
    try:
        yield
    finally:
        os.chdir(before)
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
