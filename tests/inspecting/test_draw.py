"""Drawings of blocks, before and after a recipe."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.draw import draw_blocks
from sdtm_fx.inspecting.inspect import survey
from sdtm_fx.inspecting.picture import picture_of
from sdtm_fx.inspecting.rewritten import rewritten_blocks
from sdtm_fx.inspecting.survey import Survey
from sdtm_fx.recipe import Recipe, load_recipe
from tests.inspecting.models import subject_of
from tests.pipelines import tiny_sd3_transformer


@pytest.fixture(scope="module")
def sd3() -> Survey:
    return survey(subject_of(tiny_sd3_transformer(layers=2)), grid=(8, 8))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("toy-sd3-windows").override({"sites.*.expect": None})


def test_arrows_lead_to_later_layers_and_nothing_hangs(sd3: Survey) -> None:
    picture = picture_of(sd3.structures[0].graph, "a block", ("attn", "ff"))
    layer = {box.name: i for i, row in enumerate(picture.boxes) for box in row}
    assert all(layer[start] < layer[end] for start, end in picture.arrows)
    assert {box.label for row in picture.boxes for box in row if box.kind == "site"} == {"attn", "ff"}
    assert {start for start, _ in picture.arrows} | {end for _, end in picture.arrows} == set(layer)


def test_merges_and_unmerges_are_marked(sd3: Survey, recipe: Recipe) -> None:
    graph = rewritten_blocks(sd3, recipe)[0].after
    assert graph is not None
    kinds = [box.kind for row in picture_of(graph, "after").boxes for box in row]
    assert kinds.count("unmerge") >= 2
    assert kinds.count("merge") >= 2
    before = [box.kind for row in picture_of(sd3.structures[0].graph, "before").boxes for box in row]
    assert not {"merge", "unmerge"} & set(before)


def test_a_span_is_drawn_where_it_begins_goes_on_and_ends(tmp_path: Path) -> None:
    found = survey(subject_of(tiny_sd3_transformer(layers=5)), grid=(8, 8))
    recipe = load_recipe("toy-sd3").override({"sites.*.expect": None})
    draw_blocks(found, recipe, tmp_path / "blocks.svg")
    root = ElementTree.fromstring((tmp_path / "blocks.svg").read_text())
    text = "{http://www.w3.org/2000/svg}text"
    assert [t.text for t in root.iter(text) if t.get("font-size") == "13"] == [
        "transformer_blocks.0 (JointTransformerBlock, 4 alike)",
        "transformer_blocks.0 in stage all of toy-sd3 (1 alike)",
        "transformer_blocks.1 in stage all of toy-sd3 (3 alike)",
        "transformer_blocks.4 (JointTransformerBlock, 1 alike)",
        "transformer_blocks.4 in stage all of toy-sd3 (1 alike)",
    ]
    boxes = [g for g in root.iter("{http://www.w3.org/2000/svg}g") if g.get("class") == "forecast"]
    assert [next(box.iter(text)).text for box in boxes] == ["begin_stream", "forecast_stream"]


def test_blocks_that_a_stage_leaves_alone_have_no_graph_behind_it(sd3: Survey, recipe: Recipe) -> None:
    kept = recipe.override({"keep_dense.layers": [0]})
    assert [blocks.paths for blocks in rewritten_blocks(sd3, kept)] == [("transformer_blocks.1",)]
    first = {"sites.attn.match": "transformer_blocks.0.attn", "stages.structure.sites": ["attn"]}
    early = rewritten_blocks(sd3, recipe.override(first))
    assert [blocks.after is None for blocks in early] == [False, True]


def test_a_recipe_without_inputs_is_drawn_on_the_call_that_was_found(sd3: Survey, recipe: Recipe) -> None:
    guessed = recipe.override({"inputs": {}})
    shown = [blocks.after for blocks in rewritten_blocks(sd3, guessed)]
    assert [str(graph) for graph in shown] == [str(blocks.after) for blocks in rewritten_blocks(sd3, recipe)]


def test_a_picture_before_and_after_is_written(sd3: Survey, recipe: Recipe, tmp_path: Path) -> None:
    draw_blocks(sd3, recipe, tmp_path / "blocks.svg")
    root = ElementTree.fromstring((tmp_path / "blocks.svg").read_text())
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text") if t.get("font-size") == "13"]
    assert titles == [
        title
        for block in ("transformer_blocks.0", "transformer_blocks.1")
        for title in (
            f"{block} (JointTransformerBlock, 1 alike)",
            f"{block} in stage structure of toy-sd3-windows (1 alike)",
        )
    ]
    draw_blocks(sd3, None, tmp_path / "blocks.html")
    assert "<svg" in (tmp_path / "blocks.html").read_text()


def test_graphviz_gets_one_cluster_for_each_structure(sd3: Survey, tmp_path: Path) -> None:
    draw_blocks(sd3, None, tmp_path / "blocks.dot")
    text = (tmp_path / "blocks.dot").read_text()
    assert text.count("subgraph cluster_") == len(sd3.structures)
    assert text.count("{") == text.count("}")
    assert "->" in text


def test_another_ending_is_refused(sd3: Survey, tmp_path: Path) -> None:
    with pytest.raises(InspectionError, match=r"a drawing ends in \.dot, \.svg, \.html"):
        draw_blocks(sd3, None, tmp_path / "blocks.png")
