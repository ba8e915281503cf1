"""The closed form of a saving equals a direct count at other sizes."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from sdtm_fx.capture.arguments import Key
from sdtm_fx.capture.blocks import capture_outer
from sdtm_fx.cost.block_cost import BlockCost, measure_block
from sdtm_fx.cost.counter import MacCounter, Macs
from sdtm_fx.cost.planning import plan_macs
from sdtm_fx.cost.trial import Trial
from sdtm_fx.methods import SSM, LocalMatch, Skip
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import Program, ProgramCache
from sdtm_fx.rewriting.serving import dense_variant
from sdtm_fx.rewriting.work import SitePlace
from sdtm_fx.runtime.call import BlockContext, Variant
from sdtm_fx.sites.matching import match_sites
from tests.passes.test_real_blocks import MODELS, shipped
from tests.passes.working import Calls
from tests.zoo import ZOO

FAMILIES = MODELS | {
    "sd3-medium-merge": MODELS["sd3-medium-windows"],
    "sd3-medium-windows, skip": MODELS["sd3-medium-windows"],
    "sd3-medium-windows, keys": MODELS["sd3-medium-windows"],
    "sd3.5-medium-windows, keys": MODELS["sd3.5-medium-windows"],
    "flux.1-dev-windows, keys": MODELS["flux.1-dev-attention"],
    "auraflow": ("auraflow", ZOO["auraflow"].build),
    "auraflow, keys": ("auraflow", ZOO["auraflow"].build),
    "sana": ("sana", ZOO["sana"].build),
    "pixart-sigma": ("pixart", ZOO["pixart"].build),
    "pixart-sigma, skip": ("pixart", ZOO["pixart"].build),
    "sana, skip": ("sana", ZOO["sana"].build),
    "auraflow, skip": ("auraflow", ZOO["auraflow"].build),
}
KEYS: dict[str, Any] = {
    "sites.attn.merge": "keys",
    "stages.structure.method": {"name": "todo"},
    "stages.detail.method": {"name": "local_match"},
}
FLUX_KEYS = {
    "sites.single_attn.merge": "keys",
    "stages.structure.sites": ["attn", "single_attn", "single_ff"],
    "stages.detail.sites": ["ff"],
}
SKIP: dict[str, Any] = {"stages.*.method": {"name": "skip"}}
ACROSS_TOO = {"stages.structure.sites": ["self", "cross", "ff"]}


def rules_of(name: str) -> Recipe:
    recipe, _, how = name.partition(", ")
    more = {"": {}, "keys": KEYS, "skip": SKIP}[how]
    if how == "keys" and recipe == "flux.1-dev-windows":
        more = more | FLUX_KEYS
    if how == "skip" and recipe == "pixart-sigma":
        more = more | ACROSS_TOO
    return shipped(recipe).override(more)


MEASURED = (2, (4, 6), 5)
OTHERS = [(1, (8, 6), 5), (3, (4, 4), 9), (2, (12, 12), 30)]


def leaves_at(
    name: str, model: nn.Module, path: str, size: tuple[int, tuple[int, int], int]
) -> tuple[Key, list[Any]]:
    family = ZOO[FAMILIES[name][0]]
    outer = capture_outer(model, [path], lambda: family.inputs(*size))
    (call,) = outer.calls
    return call.key, call.leaves


@functools.cache
def measured(name: str, path: str, stage: int) -> tuple[nn.Module, Recipe, Program, BlockCost]:
    model, rules = FAMILIES[name][1](), rules_of(name)
    index = {spec.id: i for i, spec in enumerate(rules.sites)}
    places = tuple(
        SitePlace(index[m.spec.id], m.local, m.path)
        for m in match_sites(model, rules.sites)
        if m.block == path
    )
    key, leaves = leaves_at(name, model, path, MEASURED)
    block = model.get_submodule(path)
    program = ProgramCache(rules).program(block, key, leaves, places)
    cost = measure_block(Trial(rules, stage, program, block, leaves, MEASURED[1]), MEASURED[2])
    assert cost is not None
    return model, rules, program, cost


def direct(
    name: str, path: str, stage: int, size: tuple[int, tuple[int, int], int], remove: int
) -> tuple[Macs, Macs]:
    """What the dense block costs, and what the merged one saves beside planning, counted by running both."""
    model, rules, program, _ = measured(name, path, stage)
    block, method = model.get_submodule(path), rules.stages[stage].method
    _, fakes = leaves_at(name, model, path, size)
    leaves = [torch.zeros(v.shape) if torch.is_tensor(v) else v for v in fakes]
    calls = Calls(rules)
    with torch.no_grad():
        with MacCounter() as dense:
            program.dense(block, *leaves)
        refresh = dense_variant(rules, stage)
        context = BlockContext(calls.make(remove=0, variant=refresh, grid=size[1], method=method), 0, {})
        if refresh.key in program.functions:  # where keys alone are merged, nothing is stored
            program.functions[refresh.key](block, context, *leaves)
        calls.state.set_slope(1, torch.device("cpu"))
        call = calls.make(remove=remove, variant=Variant(stage=stage), grid=size[1], method=method)
        with MacCounter() as merged:
            program.functions[Variant(stage=stage).key](block, BlockContext(call, 0, {}), *leaves)
    plans = 1 if "batch" in rules.plan.share else size[0]
    width = next(v for v in leaves if torch.is_tensor(v) and v.ndim == 3).shape[-1]
    return dense.macs, dense.macs - merged.macs + plan_macs(method, size[1], size[2], width, remove) * plans


CASES = [
    ("sd3-medium-windows", "transformer_blocks.0", 0),
    ("sd3-medium-merge", "transformer_blocks.0", 1),
    ("sd3-medium-windows", "transformer_blocks.2", 0),
    ("sd3.5-medium-windows", "transformer_blocks.0", 0),
    ("flux.1-dev-windows", "transformer_blocks.0", 0),
    ("flux.1-dev-windows", "single_transformer_blocks.0", 0),
    ("flux.1-dev-attention", "transformer_blocks.0", 0),
    ("flux.1-dev-attention", "single_transformer_blocks.0", 0),
    ("sd3-medium-windows, keys", "transformer_blocks.0", 0),
    ("sd3-medium-windows, keys", "transformer_blocks.2", 0),
    ("sd3.5-medium-windows, keys", "transformer_blocks.0", 0),  # and its second attention on merged tokens
    ("flux.1-dev-windows, keys", "transformer_blocks.0", 0),
    ("flux.1-dev-windows, keys", "single_transformer_blocks.0", 0),
    ("auraflow", "joint_transformer_blocks.0", 0),  # registers stand beside the text
    ("auraflow", "single_transformer_blocks.0", 0),
    ("auraflow, keys", "joint_transformer_blocks.0", 0),
    ("sana", "transformer_blocks.0", 0),  # linear attention
    ("pixart-sigma", "transformer_blocks.0", 0),
]


@pytest.mark.parametrize("size", OTHERS, ids=str)
@pytest.mark.parametrize(("name", "path", "stage"), CASES)
def test_the_closed_form_is_the_direct_count(
    name: str, path: str, stage: int, size: tuple[int, tuple[int, int], int]
) -> None:
    cost = measured(name, path, stage)[3]
    tokens = size[1][0] * size[1][1]
    for remove in (3, tokens // 4 * 3):
        saved = cost.saving.at(tokens, size[2], remove) * size[0]
        _, counted = direct(name, path, stage, size, remove)
        assert saved.linear == pytest.approx(counted.linear, rel=1e-9)
        assert saved.total == pytest.approx(counted.total, rel=1e-6)


@pytest.mark.parametrize("size", OTHERS, ids=str)
@pytest.mark.parametrize(
    ("name", "path", "stage"),
    [
        ("sd3-medium-windows, skip", "transformer_blocks.0", 0),
        ("sd3-medium-windows, skip", "transformer_blocks.2", 0),
        ("sd3.5-medium-windows", "transformer_blocks.0", 1),  # and attention of image tokens among themselves
        ("flux.1-dev-windows", "transformer_blocks.0", 1),
        ("flux.1-dev-windows", "single_transformer_blocks.0", 1),
        ("pixart-sigma, skip", "transformer_blocks.0", 0),  # and attention to text alone
        ("sana, skip", "transformer_blocks.0", 0),  # linear attention
        ("auraflow, skip", "joint_transformer_blocks.0", 0),  # registers stand beside the text
        ("auraflow, skip", "single_transformer_blocks.0", 0),
    ],
)
def test_skipped_sites_save_what_they_spend_on_text_too(
    name: str, path: str, stage: int, size: tuple[int, tuple[int, int], int]
) -> None:
    cost = measured(name, path, stage)[3]
    tokens = size[1][0] * size[1][1]
    saved = cost.saving.at(tokens, size[2], tokens) * size[0]
    dense, counted = direct(name, path, stage, size, tokens)
    assert saved.linear == pytest.approx(counted.linear, rel=1e-9)
    assert saved.total == pytest.approx(counted.total, rel=1e-6)
    assert 0 < saved.total <= dense.total


@pytest.mark.parametrize(("name", "path", "stage"), CASES)
def test_the_dense_block_is_counted_exactly_where_it_was_measured(name: str, path: str, stage: int) -> None:
    cost = measured(name, path, stage)[3]
    dense, _ = direct(name, path, stage, MEASURED, 3)
    assert cost.dense * MEASURED[0] == dense
    assert cost.dense_at(24, 5) == pytest.approx(dense.total / MEASURED[0])


def test_attention_with_and_without_text_is_told_apart() -> None:
    assert measured("sd3-medium-windows", "transformer_blocks.0", 0)[3].saving.text_share == pytest.approx(
        1.0
    )
    dual = measured("sd3.5-medium-windows", "transformer_blocks.0", 0)[3].saving
    assert dual.text_share == pytest.approx(0.5)  # one of two attentions of one width
    assert measured("flux.1-dev-windows", "transformer_blocks.0", 0)[3].saving.attention == 0.0


def test_sites_save_no_more_than_their_block() -> None:
    cost = measured("sd3-medium-windows", "transformer_blocks.0", 0)[3]
    assert set(cost.sites) == {"attn", "ff"}
    assert sum(s.linear for s in cost.sites.values()) == pytest.approx(cost.saving.linear)
    assert cost.sites["attn"].attention == pytest.approx(cost.saving.attention)
    assert cost.sites["ff"].attention == 0.0


def test_a_split_projection_saves_more_than_its_site() -> None:
    cost = measured("flux.1-dev-windows", "single_transformer_blocks.0", 0)[3]
    width, hidden = 32, 128
    assert cost.sites["proj_mlp"].linear == pytest.approx(width * hidden)
    assert cost.saving.linear == pytest.approx(2 * width * hidden)  # the MLP's half of the projection too


def test_planning_by_windows_needs_no_products_and_matching_does() -> None:
    assert plan_macs(SSM(), (8, 8), 5, 16, 12) == Macs()
    assert plan_macs(Skip(), (8, 8), 5, 16, 64) == Macs()
    assert plan_macs(SSM(), (8, 8), 5, 16, 0) == Macs()
    assert plan_macs(LocalMatch(), (8, 8), 5, 16, 12).total > 0
    assert plan_macs(LocalMatch(), (8, 8), 5, 16, 12).linear == 0


def test_a_stage_that_leaves_a_block_alone_has_no_cost() -> None:
    model, rules = MODELS["flux.1-dev-windows"][1](), shipped("flux.1-dev-windows")
    only_single = rules.override(
        stages={"structure": {"sites": ["single_ff"]}, "detail": {"sites": ["single_ff"]}}
    )
    path = "transformer_blocks.0"
    key, leaves = leaves_at("flux.1-dev-windows", model, path, MEASURED)
    block = model.get_submodule(path)
    places = tuple(
        SitePlace(i, s.match.split("*.")[1], s.match)
        for i, s in enumerate(only_single.sites)
        if not s.id.startswith("single")
    )
    program = ProgramCache(only_single).program(block, key, leaves, places)
    assert measure_block(Trial(only_single, 0, program, block, leaves, MEASURED[1]), MEASURED[2]) is None


def test_fewer_keys_save_what_a_hand_counts() -> None:
    """Two products of (N + T) x R x D per sample, and nothing linear."""
    cost = measured("sd3-medium-windows, keys", "transformer_blocks.0", 0)[3]
    width = cost.width  # heads times channels of a head
    site = cost.sites["attn"]
    for tokens, text, remove in ((24, 5, 12), (4096, 333, 3072)):
        assert site.at(tokens, text, remove) == Macs(0.0, 2.0 * (tokens + text) * remove * width)
    assert cost.saving.linear == cost.sites["ff"].linear
    assert cost.saving.attention == 0.0
    second = measured("sd3.5-medium-windows, keys", "transformer_blocks.0", 0)[3]
    assert second.saving.keys_text == 1.0
    assert second.saving.attention == pytest.approx(second.sites["attn2"].attention)
    assert second.saving.text_share == pytest.approx(0.0)
    assert second.saving.keys == second.sites["attn"].keys == 2.0 * second.width


def test_both_attentions_of_a_block_may_have_fewer_keys() -> None:
    name, path = "sd3.5-medium-windows", "transformer_blocks.0"
    rules = shipped(name).override(KEYS | {"sites.attn2.merge": "keys"})
    model = FAMILIES[name][1]()
    key, leaves = leaves_at(name, model, path, MEASURED)
    block = model.get_submodule(path)
    places = tuple(SitePlace(i, s.match.split("*.")[1], s.match) for i, s in enumerate(rules.sites))
    program = ProgramCache(rules).program(block, key, leaves, places)
    cost = measure_block(Trial(rules, 0, program, block, leaves, MEASURED[1]), MEASURED[2])
    assert cost is not None
    assert (cost.saving.keys, cost.saving.keys_text, cost.saving.attention) == (4.0 * cost.width, 0.5, 0.0)
    assert (cost.sites["attn"].keys_text, cost.sites["attn2"].keys_text) == (1.0, 0.0)
