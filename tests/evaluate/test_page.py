"""Evaluations as Markdown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdtm_fx.cli.main import app
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate import Evaluation, Row, evaluate
from sdtm_fx.evaluate.page import evaluation_section, join_parts, read_evaluation
from sdtm_fx.evaluate.report import as_dict, to_json
from tests.evaluate.conftest import FakeJudge, merging, request


@pytest.fixture(scope="module")
def found(tiny: Any) -> Evaluation:
    rows = (
        Row("dense", "dense", None),
        Row("more, 2x", "merging", merging(0.5), 2.0),
        Row("some, 1.5x", "merging", merging(0.4), 1.5, judged=False),
        Row("less, 2x", "merging", merging(0.25), 2.0),
    )
    return evaluate(tiny, rows, judge=FakeJudge(), **request(20, paired=4, steps=2))


def written(found: Evaluation, folder: Path, **settings: Any) -> Path:
    path = folder / "evaluation.json"
    path.write_text(to_json(as_dict(found, {"model": "tiny", "study": None, **settings})), encoding="utf-8")
    return path


def test_a_page_groups_rows_by_budget_and_ranks_them(found: Evaluation, tmp_path: Path) -> None:
    out = [{"label": "late", "reason": "it is slow"}]
    page = evaluation_section(read_evaluation(written(found, tmp_path, study="mine", left_out=out)))
    table = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert table[0] == [
        "row", "MACs", "speedup", "PSNR, dB", "SSIM", "captions right", "FD real", "FD dense",
    ]  # fmt: skip
    assert [cells[0] for cells in table[2:]] == ["dense", "some, 1.5x", "less, 2x", "more, 2x"]
    assert table[2][3] == "identical"
    assert len(table[3]) == 5, "a row that was not judged ends with its SSIM"
    assert float(table[4][3].split()[0]) >= float(table[5][3].split()[0])
    assert page.startswith("## mine, 2 steps\n\n`sdtm-fx eval --study mine --steps 2 --height 16 --width 20 ")
    assert "--images 4 --judge-images 20`, commit " in page
    assert page.endswith("\n\n<details><summary>1 left out</summary>\n\n- late: it is slow\n\n</details>\n")


def test_parts_of_a_study_are_one_table(found: Evaluation, tmp_path: Path) -> None:
    """Rows that two parts have are shown as the first has them."""
    files = []
    for number, rows in enumerate((found.rows[:2], (found.rows[0], *found.rows[2:]))):
        part = dataclasses.replace(found, rows=rows)
        folder = tmp_path / str(number)
        folder.mkdir()
        out = [{"label": "late", "reason": "it is slow"}, {"label": f"other {number}", "reason": "it is too"}]
        files.append(written(part, folder, study="mine", only=[f"row {number}*"], left_out=out))
    parts = [read_evaluation(file) for file in files]
    assert join_parts(parts) == [tuple(parts)]
    page = evaluation_section(*parts)
    whole = evaluation_section(read_evaluation(written(found, tmp_path, study="mine")))
    assert [line for line in page.splitlines() if line.startswith("| ")] == [
        line for line in whole.splitlines() if line.startswith("| ")
    ]
    assert "`sdtm-fx eval --study mine --only 'row 0*' --steps 2" in page
    assert "`sdtm-fx eval --study mine --only 'row 1*' --steps 2" in page
    assert page.endswith(
        "3 left out</summary>\n\n- late: it is slow\n- other 0: it is too\n- other 1: it is too\n\n</details>\n"
    )
    printed = CliRunner().invoke(app, ["tables", *map(str, files)])
    assert printed.stdout == page
    assert CliRunner().invoke(app, ["tables", str(files[0])]).stdout == evaluation_section(parts[0])


def test_evaluations_that_sampled_something_else_stay_apart(found: Evaluation, tmp_path: Path) -> None:
    data = read_evaluation(written(found, tmp_path, study="mine"))
    longer = data.model_copy(update={"settings": data.settings.model_copy(update={"steps": 3})})
    newer = data.model_copy(update={"environment": data.environment.model_copy(update={"torch": "99"})})
    alone = read_evaluation(written(found, tmp_path))
    assert join_parts([data, longer, newer, data]) == [(data, data), (longer,), (newer,)]
    assert join_parts([alone, alone]) == [(alone,), (alone,)], "not of a study"


def test_sections_follow_each_other_and_name_recipes(found: Evaluation, tmp_path: Path) -> None:
    few = dataclasses.replace(found, sampling=dataclasses.replace(found.sampling, judged=0))
    data = read_evaluation(written(few, tmp_path, recipes=["a", "b.yaml"]))
    page = "\n".join([evaluation_section(data)] * 2)
    assert page.count("## tiny, 2 steps\n") == 2
    assert "`sdtm-fx eval --model tiny --recipe a --recipe b.yaml --steps 2" in page
    assert "captions right" not in page
    assert "left out" not in page


def test_the_command_writes_a_file_or_prints(found: Evaluation, tmp_path: Path) -> None:
    path = written(found, tmp_path)
    printed = CliRunner().invoke(app, ["tables", str(path)])
    assert printed.exit_code == 0
    assert CliRunner().invoke(app, ["tables", str(path), "--out", str(tmp_path / "page.md")]).exit_code == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == printed.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"page\.json: found no readable file \(No such file"),
        ("{", r"page\.json: the file: Invalid JSON"),
        ("{}", r"page\.json: format: Field required; accepted: evaluation\.json as `sdtm-fx eval`"),
        ('{"format": 2}', r"page\.json: format: Input should be less than or equal to 1"),
    ],
)
def test_anything_else_is_an_error(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "page.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SdtmFxError, match=message):
        read_evaluation(path)


def test_the_data_of_the_gate_reads() -> None:
    path = Path(__file__).parents[1] / "data" / "quality_gate.json"
    assert read_evaluation(path).settings.steps == json.loads(path.read_text())["settings"]["steps"]
