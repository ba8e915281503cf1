"""docs/compatibility.md, from the results of all environments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from sdtm_fx.records import read_record
from tests.compat.classes import SINCE
from tests.compat.environments import FOLDER, ROOT, Compatibility
from tests.compat.outcome import Outcome, Row
from tests.families.cases import FAMILIES
from tests.families.video import VIDEOS
from tests.user.cases import CASES

RESULTS = FOLDER / "results"
PAGE = ROOT / "docs" / "compatibility.md"
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "huggingface_hub",
    "numpy",
    "pydantic",
    "typer",
)
"""Those that the page tells; the results have all."""

HEAD = """\
# Compatibility

The model matrix with the oldest and the newest supported versions of torch and diffusers. This page is written by
`make compat`, which makes an environment for each column, lets pip choose what the column leaves open, runs the tests
that `tests/compat/environments.yaml` lists, and keeps what they said under `tests/compat/results`. On the CPU, with
small random models of diffusers' own classes. With the versions of `constraints.txt`, `make test` and
`make test-slow` run these tests and all others.

A recipe *works* where all tests about it pass: ratio 0 and `restore` are bit-identical, and every site runs on the
number of tokens that the recipe says.
"""


def write_outcome(name: str, outcome: Outcome, folder: Path = RESULTS) -> None:
    """Keep what an environment said."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(outcome.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_outcomes(compatibility: Compatibility, folder: Path = RESULTS) -> dict[str, Outcome | None]:
    """What every environment said; None where it has not been run with the versions that the data ask for now.

    Raises:
        SdtmFxError: A file holds something else.
    """
    outcomes: dict[str, Outcome | None] = {}
    for name, asked in compatibility.environments.items():
        path = folder / f"{name}.json"
        outcome = read_record(Outcome, path, "what `make compat` writes") if path.is_file() else None
        outcomes[name] = outcome if outcome is not None and outcome.asked == asked else None
    return outcomes


def rows_of(compatibility: Compatibility) -> tuple[str, ...]:
    """The rows of the table: every recipe that the matrix has a case for, and what else is tested."""
    cases = (
        *(case.recipe_name for case in (*CASES, *FAMILIES)),
        *(video.recipe for video in VIDEOS.values()),
    )
    return tuple(dict.fromkeys((*cases, *compatibility.matrix)))


def page(outcomes: Mapping[str, Outcome | None], rows: Iterable[str]) -> str:
    """Write the page: an environment that has not run a row says so."""
    parts = [
        HEAD,
        "## Environments\n",
        _head("", outcomes),
        _line("Python", outcomes, lambda outcome: outcome.python),
        *(_line(name, outcomes, lambda outcome, name=name: outcome.packages[name]) for name in PACKAGES),
        _line("chosen here", outcomes, lambda outcome: " ".join(f"`{each}`" for each in outcome.asked)),
        _line("tests passed", outcomes, lambda o: sum(row.passed for row in o.rows.values())),
        _line("tests failed", outcomes, lambda o: sum(len(row.failures) for row in o.rows.values())),
        _line("minutes", outcomes, lambda outcome: outcome.minutes),
        _line("date", outcomes, lambda outcome: outcome.date),
        _line("commit", outcomes, lambda outcome: outcome.commit[:8] + outcome.commit[40:]),
        _row("command", (f"`make compat COMPAT={name}`" for name in outcomes)),
        "\n## Results\n",
        _head("recipe, or what else was tested", outcomes),
        *(
            _row(
                row if " " in row else f"`{row}`",
                (cell(None if each is None else each.rows.get(row)) for each in outcomes.values()),
            )
            for row in rows
        ),
        *_skipped(outcomes),
    ]
    return "\n".join(parts) + "\n"


def cell(row: Row | None) -> str:
    """What the table says of a row in one environment."""
    if row is None:
        return "not run"
    if row.failures:
        more = f", and {len(row.failures) - 1} more" if row.failures[1:] else ""
        return f"**fails**: {_short(row.failures[0])}{more}"
    if row.passed:
        return "works"
    return f"class since {row.absent.partition(SINCE)[2]}" if row.absent else "skipped"


def _skipped(outcomes: Mapping[str, Outcome | None]) -> Iterable[str]:
    told = [
        f"- {name}: {_short(line)}"
        for name, outcome in outcomes.items()
        for row in (outcome.rows.values() if outcome is not None else ())
        for line in row.skipped
    ]
    return ("\nSkipped for other reasons:\n", *told) if told else ()


def _head(first: str, outcomes: Mapping[str, object]) -> str:
    return f"{_row(first, outcomes)}\n|{'---|' * (len(outcomes) + 1)}"


def _line(name: str, outcomes: Mapping[str, Outcome | None], value: Callable[[Outcome], object]) -> str:
    return _row(name, ("not run" if each is None else str(value(each)) for each in outcomes.values()))


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _short(text: str, most: int = 160) -> str:
    """One line that breaks no table."""
    flat = " ".join(text.replace("|", "\\|").split())
    return flat if len(flat) <= most else flat[: most - 3] + "..."
