"""Recipes beside each other: what finding the tokens takes, and a page about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import sdtm_fx
from sdtm_fx.bench import configs
from sdtm_fx.bench.compare import Contender, Triple, compare_recipes, compared_stages
from sdtm_fx.bench.options import check_comparison
from sdtm_fx.bench.page import comparison_section, read_comparison
from sdtm_fx.bench.pairing import BenchSetup
from sdtm_fx.cli.main import app
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.provenance import processor

SETUP = BenchSetup(
    ratio=0.5, layers=(1,), grid=(8, 8), batch=1, dtype=torch.float32, device=torch.device("cpu"), runs=2
)


def one_stage(method: dict[str, Any], **changes: Any) -> sdtm_fx.Recipe:
    stage = {"name": "all", "until": 1.0, "sites": ["attn", "ff"], "method": method}
    return sdtm_fx.load_recipe("sd3-medium-windows").override(name=method["name"], stages=[stage], **changes)


def test_every_merging_stage_is_timed_with_fresh_and_with_kept_plans(small_sd3: configs.BenchModel) -> None:
    mixed = sdtm_fx.load_recipe("sd3-medium-windows").override(
        {"stages.structure.method": {"name": "skip"}, "stages.detail.method": {"name": "tome"}}
    )
    recipes = [mixed, one_stage({"name": "uniform"}), one_stage({"name": "todo"}, ratio={"curve": "full"})]
    triples: list[int] = []
    found = compare_recipes(small_sd3, recipes, SETUP, lambda: triples.append(1))
    assert [(c.recipe, c.stage, c.method) for c in found] == [
        ("sd3-medium-windows", "detail", "tome"), ("uniform", "all", "uniform"), ("todo", "all", "todo"),
    ]  # fmt: skip
    assert len(triples) == 2 * compared_stages(recipes) == 6
    assert [c.kept for c in found] == [32, 31, 16], "todo's ratio is full and stays so"
    own = one_stage({"name": "todo"}).override({"stages.all.ratio": {"curve": "full"}})
    assert [c.kept for c in compare_recipes(small_sd3, [own], SETUP)] == [16], "and so does that of a stage"
    tome, uniform, _ = found
    macs = 2 * 16 * 48 * 16  # two samples, one of four tokens absorbs, 16 channels
    assert tome.fresh_macs - tome.kept_macs == macs
    assert tome.planning_macs == macs / tome.dense_macs
    assert uniform.planning_macs == 0
    assert all(min(t.dense, t.fresh, t.kept) > 0 for c in found for t in c.triples)


def test_rules_for_blocks_that_are_not_built_are_left_out(small_sd3: configs.BenchModel) -> None:
    ruled = one_stage({"name": "uniform"}, layers=[{"match": "transformer_blocks.22", "scale": 0.5}])
    assert compare_recipes(small_sd3, [ruled], SETUP)[0].kept == 31


def test_a_method_that_lives_on_stored_values_keeps_them(small_sd3: configs.BenchModel) -> None:
    reuse = {"order": 0, "weight": 0.0, "update": "tokens"}
    stale = one_stage({"name": "token_cache"}, reuse=reuse).override({"stages.all.sites": ["ff"]})
    found = compare_recipes(small_sd3, [stale], SETUP)
    assert [c.method for c in found] == ["token_cache"]
    assert found[0].planning_macs > 0


def test_all_recipes_are_checked_before_the_first_is_timed(small_sd3: configs.BenchModel) -> None:
    misfit = one_stage({"name": "uniform"}).override({"sites.ff.match": "transformer_blocks.*.fff"})
    timed: list[int] = []
    with pytest.raises(SdtmFxError, match="matches no module"):
        compare_recipes(small_sd3, [one_stage({"name": "tome"}), misfit], SETUP, lambda: timed.append(1))
    high = one_stage({"name": "ssm", "window": [1, 2]}, ratio={"curve": "constant", "start": 0.4})
    with pytest.raises(SdtmFxError, match="which is what ssm can remove"):
        compare_recipes(small_sd3, [one_stage({"name": "tome"}), high], replace(SETUP, ratio=0.6))
    assert not timed


def test_numbers_follow_from_triples() -> None:
    triples = (Triple(4.0, 2.0, 1.0), Triple(6.0, 2.0, 1.4), Triple(5.0, 2.0, 2.0))
    found = Contender("a", "all", "tome", 64, 32, 100.0, 40.0, 35.0, triples)
    assert found.theoretical == 2.5
    assert found.measured == 2.5
    assert found.efficiency == 1.0
    assert found.planning_macs == 0.05
    assert found.planning_times == pytest.approx((0.25, 0.1, 0.0))
    assert found.planning_time == pytest.approx(0.1)


def test_the_command_writes_what_tables_shows(small_sd3: configs.BenchModel, tmp_path: Path) -> None:
    out, path = tmp_path / "compared.json", str(tmp_path / "even.yaml")
    recipe = one_stage({"name": "uniform"}).to_data()
    Path(path).write_text(yaml.safe_dump(recipe), encoding="utf-8")
    sizes = ["--height", "128", "--width", "128", "--runs", "1", "--ratio", "0.5"]
    result = CliRunner().invoke(
        app, ["bench", *sizes, "--compare", "paper/sd3-medium", "--compare", path, "--out", str(out)],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "theory" in result.output
    record = json.loads(out.read_text())
    assert [(c["recipe"], c["method"]) for c in record["compared"]] == [
        ("paper/sd3-medium", "ssm"), ("paper/sd3-medium", "idm"), ("uniform", "uniform"),
    ]  # fmt: skip
    assert record["compared"][1]["planning_macs"] > 0
    page = CliRunner().invoke(app, ["tables", str(out)], catch_exceptions=False).stdout
    assert page == comparison_section(read_comparison(out))
    assert page.startswith(f"## {record['title']}\n")
    command = f"--ratio 0.5 --height 128 --width 128 --runs 1 --compare paper/sd3-medium --compare {path}"
    assert f"`sdtm-fx bench {command}`, commit " in page
    assert f"{processor()}, {record['threads']} threads" in page
    rows = [line for line in page.splitlines() if line.startswith("| paper")]
    assert len(rows) == 2
    assert rows[1].startswith("| paper/sd3-medium | detail: idm | 64 -> 31 | ")


@pytest.mark.parametrize("option", ["recipe", "steps", "parts", "growth", "cache"])
def test_what_a_comparison_does_not_measure_is_refused(option: str) -> None:
    with pytest.raises(SdtmFxError, match=rf"compare: it measures no --{option}; accepted beside it: sizes"):
        check_comparison(**{option: 1})


def test_the_command_refuses_it_too() -> None:
    result = CliRunner().invoke(app, ["bench", "--compare", "sd3-medium", "--steps", "4"])
    assert result.exit_code == 1
    assert "compare: it measures no --steps" in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"page\.json: found no readable file \(No such file"),
        ("{", r"page\.json: the file: Invalid JSON"),
        (
            '{"compared": [], "title": "t"}',
            r"page\.json: command: Field required; accepted: what `sdtm-fx bench",
        ),
    ],
)
def test_anything_else_is_an_error(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "page.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SdtmFxError, match=message):
        read_comparison(path)
