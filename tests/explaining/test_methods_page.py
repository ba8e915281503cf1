"""The page about the methods says what the code says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from typer.testing import CliRunner

from sdtm_fx.cli.main import app
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.explaining.methods_page import cost_text, describe_method, methods_page
from sdtm_fx.methods import METHODS, SSM, Method

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout + result.stderr


def test_the_page_in_the_docs_is_the_one_that_the_code_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == methods_page(METHODS), (
        "write it anew: sdtm-fx methods page --out docs/methods.md"
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_and_option_is_explained(name: str) -> None:
    entry = describe_method(name, METHODS[name])
    assert entry.summary.endswith(".")
    assert {option.name for option in entry.options} == {
        field.name for field in dataclasses.fields(METHODS[name]) if field.name != "name"
    }
    assert all(option.text for option in entry.options)


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_those_of_recipes(name: str) -> None:
    method = METHODS[name]
    written = {option.name: option.default for option in describe_method(name, method).options}
    if "window" in written and written["window"] != "null":
        assert written["window"] == "[2, 2]"
    assert not any(text in ("True", "False", "None") for text in written.values())


def test_costs_are_counted() -> None:
    # local_match takes 8 windows in a row at a time, whose tokens are compared with those of 3 x 10 windows.
    assert cost_text(METHODS["local_match"]).startswith(f"At 4,096 tokens {4096 * 3 * 10 * 1536 / 1e9:.3g} G")
    assert cost_text(METHODS["skip"]) == "None, there is no plan."
    assert cost_text(METHODS["uniform"]).startswith("At 4,096 tokens 0 G (0.00% of a block) and ")


def test_list_and_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    listed = run("methods", "list")
    assert all(name in listed for name in METHODS)
    shown = run("methods", "show", "ssm")
    assert "age_weight: 0.05" in shown
    assert "Formula." in shown


def test_page_goes_to_a_file_or_to_the_terminal(tmp_path: Path) -> None:
    run("methods", "page", "--out", str(tmp_path / "page.md"))
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == run("methods", "page")


def test_an_unknown_method_is_an_error_with_the_nearest() -> None:
    assert "found method 'locl_match'" in (text := run("methods", "show", "locl_match", code=1))
    assert "did you mean 'local_match'?" in text


def test_a_docstring_that_says_too_little_is_an_error() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Silent(SSM):
        """Says nothing.

        Formula:
            None.
        """

        name: Literal["ssm"] = "ssm"

    def lacks(method: type[Method], message: str) -> None:
        with pytest.raises(SdtmFxError, match=message):
            describe_method("silent", method)

    lacks(Silent, "the docstring of silent does not say what option 'window' is")
    Silent.__doc__ = SSM.__doc__.replace("Use:", "When:")  # type: ignore[union-attr]
    lacks(Silent, "the docstring of silent has no section 'Use'")
