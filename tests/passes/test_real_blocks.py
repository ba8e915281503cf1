"""The shipped recipes on real SD3, SD3.5 and FLUX blocks: counts, structures, identity without removal."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from sdtm_fx import load_recipe
from sdtm_fx.capture.arguments import Signature, flatten
from sdtm_fx.capture.blocks import capture_outer
from sdtm_fx.errors import SiteError
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import Program, ProgramCache
from sdtm_fx.rewriting.serving import dense_variant, variants_of
from sdtm_fx.rewriting.work import SitePlace
from sdtm_fx.runtime.call import BlockContext, Variant
from sdtm_fx.sites.matching import match_sites
from tests.passes.blocks import GRID, GatedBlock, ParallelBlock, condition, image, text
from tests.passes.working import ATTN, FF, PARALLEL, Calls, close, recipe
from tests.pipelines import tiny_flux_transformer, tiny_sd3_transformer
from tests.zoo import ZOO, sd35_medium

SIZE = (2, GRID, 5)
MODELS = {
    "sd3-medium-windows": ("sd3", lambda: tiny_sd3_transformer(layers=3)),
    "sd3.5-medium-windows": ("sd3.5", lambda: sd35_medium(4)),
    "flux.1-dev-windows": ("flux", lambda: tiny_flux_transformer(layers=2, single_layers=2)),
    "flux.1-dev-attention": ("flux", lambda: tiny_flux_transformer(layers=1, single_layers=1)),
}
STRUCTURE, DETAIL = Variant(stage=0), Variant(stage=1)


def shipped(name: str, **changes: Any) -> Recipe:
    return load_recipe(name).override({"sites.*.expect": None, "plan.round_to": 1}, **changes)


def merging(name: str, **changes: Any) -> Recipe:
    """The same with tokens that merge in both stages."""
    detail: dict[str, Any] = {"method": {"name": "local_match", "window": [2, 2], "radius": 1}}
    sites = {"sites": ["ff", "single_ff"]} if name.startswith("flux") else {}
    return shipped(name, stages={"detail": {**detail, **sites}}).override(**changes)


@functools.cache
def rewrite_blocks(name: str) -> tuple[nn.Module, ProgramCache, dict[str, Program], dict[str, Any]]:
    """Model, cache, program and example call of every block."""
    family, build = MODELS[name]
    model, rules = build(), merging(name)
    places: dict[str, list[SitePlace]] = {}
    index = {spec.id: i for i, spec in enumerate(rules.sites)}
    for m in match_sites(model, rules.sites):
        places.setdefault(m.block, []).append(SitePlace(index[m.spec.id], m.local, m.path))
    outer = capture_outer(model, places, lambda: ZOO[family].inputs(*SIZE))
    cache = ProgramCache(rules)
    programs = {
        c.path: cache.program(model.get_submodule(c.path), c.key, c.leaves, tuple(places[c.path]))
        for c in outer.calls
    }
    return model, cache, programs, {c.path: c for c in outer.calls}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sd3-medium-windows", 2),
        ("sd3.5-medium-windows", 3),
        ("flux.1-dev-windows", 2),
        ("flux.1-dev-attention", 2),
    ],
)
def test_equal_blocks_share_one_program(name: str, count: int) -> None:
    _, cache, programs, _ = rewrite_blocks(name)
    assert len(cache.programs) == count
    assert len({id(p) for p in programs.values()}) == count


APPLIED: dict[tuple[str, str, Variant], dict[str, int]] = {
    ("sd3-medium-windows", "transformer_blocks.0", STRUCTURE):
        {"insert_merges": 2, "share_plans": 1, "sink_unmerge": 2, "reuse_features": 2},
    ("sd3-medium-windows", "transformer_blocks.0", DETAIL):
        {"insert_merges": 2, "share_plans": 1, "sink_unmerge": 2, "reuse_features": 2},
    ("sd3-medium-windows", "transformer_blocks.2", STRUCTURE):
        {"insert_merges": 2, "share_plans": 1, "sink_unmerge": 2, "reuse_features": 2},
    ("sd3.5-medium-windows", "transformer_blocks.0", STRUCTURE):
        {"insert_merges": 3, "share_plans": 2, "sink_unmerge": 3, "reuse_features": 3},
    ("flux.1-dev-windows", "transformer_blocks.0", STRUCTURE):
        {"insert_merges": 1, "share_plans": 0, "sink_unmerge": 1, "split_projection": 0, "reuse_features": 1},
    ("flux.1-dev-windows", "single_transformer_blocks.0", STRUCTURE):
        {"insert_merges": 1, "sink_unmerge": 1, "split_projection": 1, "reuse_features": 1},
    ("flux.1-dev-attention", "transformer_blocks.0", STRUCTURE):
        {"insert_merges": 2, "share_plans": 1, "gather_rotary": 1, "sink_unmerge": 2, "reuse_features": 2},
    ("flux.1-dev-attention", "single_transformer_blocks.0", STRUCTURE):
        {"insert_merges": 2, "gather_rotary": 1, "sink_unmerge": 4, "reuse_features": 1},
}  # fmt: skip


@pytest.mark.parametrize(("name", "path", "variant"), APPLIED, ids=str)
def test_passes_apply_exactly_so_often(name: str, path: str, variant: Variant) -> None:
    applied = rewrite_blocks(name)[2][path].applied[variant]
    expected = APPLIED[name, path, variant]
    assert {k: applied[k] for k in expected} == expected
    assert all(p.notes == () for p in rewrite_blocks(name)[2].values())


@pytest.mark.parametrize("name", MODELS)
def test_refreshes_store_exactly_what_their_stage_takes(name: str) -> None:
    _, _, programs, _ = rewrite_blocks(name)
    rules = merging(name)
    for program in programs.values():
        for stage in range(len(rules.stages)):
            merge, refresh = Variant(stage=stage), dense_variant(rules, stage)
            assert program.applied[merge]["reuse_features"] == program.applied[refresh]["reuse_features"]
            stored = sorted(_site_names(program.code[refresh], "store_feature("))
            assert stored == sorted(_site_names(program.code[merge], "blend_forecast("))
            assert stored


def _site_names(code: str, call: str) -> list[str]:
    return [line.split(call)[1].split(")")[0].split("'")[-2] for line in code.splitlines() if call in line]


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_that_removes_nothing_is_the_dense_block(name: str) -> None:
    model, _, programs, calls = rewrite_blocks(name)
    rules = merging(name)
    generator = torch.Generator().manual_seed(0)
    for path, program in programs.items():
        block = model.get_submodule(path)
        leaves = [
            torch.randn(v.shape, generator=generator) if torch.is_tensor(v) else v for v in calls[path].leaves
        ]
        with torch.no_grad():
            expected = program.dense(block, *leaves)
            for stage, method in enumerate(s.method for s in rules.stages):
                state = Calls(rules)
                for variant in (dense_variant(rules, stage), Variant(stage=stage)):
                    call = state.make(remove=0, variant=variant, method=method)
                    if variant.stage is not None:
                        state.state.set_slope(1, torch.device("cpu"))
                    got = program.functions[variant.key](block, BlockContext(call, 0, {}), *leaves)
                    close([t for t in got if t is not None], [t for t in expected if t is not None])


@pytest.mark.parametrize("name", ["flux.1-dev-windows", "flux.1-dev-attention"])
def test_attention_is_dense_where_the_stage_says_so(name: str) -> None:
    for path, program in rewrite_blocks(name)[2].items():
        if path.startswith("transformer_blocks"):
            code = program.code[DETAIL]
            call = next(line for line in code.splitlines() if "self.attn(" in line)
            assert "merge_tokens" not in call
            assert code.count("merge_tokens(") >= 1


def test_the_variants_of_a_recipe() -> None:
    merges, plain = {Variant(stage=0), Variant(stage=1)}, Variant(stage=None)
    first, second = Variant(stage=None, refresh=0), Variant(stage=None, refresh=1)
    # Both stages merge the same sites, so the dense steps before them store the same.
    assert set(variants_of(merging("sd3-medium-windows"))) == merges | {first, plain}
    fewer = merging("sd3-medium-windows", stages={"detail": {"sites": ["ff"]}})
    assert set(variants_of(fewer)) == merges | {first, second, plain}
    # A stage that forecasts them, and the text beside them, is stored for from the first dense step on.
    skipping = shipped("sd3-medium-windows", stages={"detail": {"method": {"name": "skip"}}})
    assert set(variants_of(skipping)) == merges | {second, plain}
    assert set(variants_of(merging("sd3-medium-windows", reuse=None))) == merges | {plain}
    star = merging(
        "sd3-medium-windows", reuse=None, stages={"structure": {"ratio": {"threshold": 0.5, "start": 0.5}}}
    )
    assert set(variants_of(star)) == merges | {plain, Variant(stage=None, measure=0)}


# -- the cache -------------------------------------------------------------------------------------


def toy_program(cache: ProgramCache, block: nn.Module, *args: torch.Tensor) -> Program:
    key, leaves = flatten(Signature.of(type(block).forward).bind(args, {}))
    places = tuple(SitePlace(i, s.match, f"blocks.3.{s.match}") for i, s in enumerate(cache.recipe.sites))
    return cache.program(block, key, leaves, places)


def test_a_dense_step_without_reuse_runs_the_blocks_own_forward() -> None:
    program = toy_program(ProgramCache(recipe([ATTN, FF])), GatedBlock(), image(), condition())
    assert list(program.functions) == [Variant(stage=0).key]


def test_what_a_pass_asks_of_modules_is_part_of_the_structure() -> None:
    cache, args = ProgramCache(recipe(PARALLEL, merged=["mlp"])), (image(), text(), condition())
    plain, hooked = ParallelBlock(), ParallelBlock()
    hooked.proj_out.register_forward_hook(lambda *_: None)
    assert toy_program(cache, plain, *args) is toy_program(cache, ParallelBlock(), *args)
    split, whole = toy_program(cache, plain, *args), toy_program(cache, hooked, *args)
    assert split.applied[STRUCTURE]["split_projection"] == 1
    assert whole.applied[STRUCTURE]["split_projection"] == 0
    assert whole.notes == ("proj_out is not split: it has a hook; only a plain Linear can be cut",)


class GivenGate(nn.Module):
    """A gate that comes from outside: one for all tokens, or one for each."""

    def __init__(self) -> None:
        super().__init__()
        self.ff = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return x + gate * self.ff(x)


def test_a_gate_per_token_is_another_structure_than_a_gate_per_sample() -> None:
    cache, block, x = ProgramCache(recipe([FF])), GivenGate(), image()
    per_sample = toy_program(cache, block, x, torch.ones(2, 1, 8))
    per_token = toy_program(cache, block, x, torch.ones_like(x))
    assert per_sample.applied[STRUCTURE]["sink_unmerge"] == 1
    assert per_token.applied[STRUCTURE]["sink_unmerge"] == 0
    for program, gate in ((per_sample, torch.ones(2, 1, 8)), (per_token, image(seed=3))):
        context = BlockContext(Calls(cache.recipe).make(remove=0), 0, {})
        with torch.no_grad():
            close(program.functions[STRUCTURE.key](block, context, x, gate), block(x, gate))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (
            ATTN | {"kind": "feed_forward"},
            "site 'attn' at blocks.3.attn is said to be feed_forward, but it computes attention",
        ),
        (
            FF | {"kind": "attention"},
            "site 'ff' at blocks.3.ff is said to be attention, but it does not compute attention",
        ),
    ],
)
def test_kinds_are_confirmed(site: dict[str, Any], message: str) -> None:
    with pytest.raises(SiteError, match=message):
        toy_program(ProgramCache(recipe([site])), GatedBlock(), image(), condition())
