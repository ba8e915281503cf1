"""The shipped recipes for videos on small random models of diffusers' own classes."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import nn

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter
from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.recipe import Recipe
from tests.compat.classes import about
from tests.families.video import TEXT, VIDEOS, Video

SIZES: list[tuple[int, TokenGrid]] = [(2, (5, 4, 6)), (1, (7, 5, 7))]
"""Batches and grids: odd frames, not square, and one with odd sides."""
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == "hunyuan-keys" else name for name in VIDEOS]
STEPS = 6
STRUCTURE, DETAIL = 2, 4


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Every family in turn."""
    about(request, VIDEOS[request.param].recipe)
    return request.param


@functools.cache
def built(name: str) -> nn.Module:
    return VIDEOS[name].build()


def rules(video: Video, **changes: Any) -> Recipe:
    """The shipped recipe, for two blocks and few tokens."""
    small = {"sites.*.expect": None, "plan.round_to": 1, "gate": "off"}
    return sdtm_fx.load_recipe(video.recipe).override(small | changes)


def mergeable(name: str, grid: TokenGrid) -> TokenGrid:
    return sdtm_fx.load_recipe(VIDEOS[name].recipe).tokens.mergeable(grid)


def generate(model: nn.Module, call: dict[str, Any], steps: int = STEPS) -> list[torch.Tensor]:
    results = []
    with torch.no_grad(), sdtm_fx.steps(model, steps) as clock:
        for _ in range(steps):
            results.append(model(**call)[0])
            clock.advance()
    return results


def forward(model: nn.Module, call: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**call)[0]


def test_ratio_zero_is_the_dense_model_and_restore_takes_all_back(name: str) -> None:
    video, model = VIDEOS[name], built(name)
    dense = {size: forward(model, video.inputs(*size)) for size in SIZES}
    stages = {"stages.*.ratio": None, "ratio": {"curve": "constant", "start": 0.0}, "reuse": None}
    with sdtm_fx.rewritten(model, rules(video, **stages)):
        for size, wanted in dense.items():
            assert all(torch.equal(step, wanted) for step in generate(model, video.inputs(*size), steps=3))
    for size, wanted in dense.items():
        assert torch.equal(forward(model, video.inputs(*size)), wanted)


def test_sites_run_on_as_many_tokens_as_the_ratio_says(name: str) -> None:
    video, model = VIDEOS[name], built(name)
    recipe = rules(video)
    with sdtm_fx.rewritten(model, recipe):
        for batch, grid in SIZES:
            call, image = video.inputs(batch, grid), mergeable(name, grid)
            with sdtm_fx.record_plans(model) as record:
                results = generate(model, call)
            assert all(torch.isfinite(step).all() for step in results)
            merged = record.at(action="merged") + record.at(action="keys")
            assert {site.step for site in merged} >= {STRUCTURE, DETAIL}
            for site in merged:
                stage = next(stage for stage in recipe.stages if stage.name == site.stage)
                assert site.site in stage.sites
                assert site.grid == image
                wanted = 0.5 * tokens_on(image) if stage.ratio is None else stage.method.capacity(image)
                # Stages share a count where they can, so it is one of the coarsest method.
                step = max(stage.method.quantum() for stage in recipe.stages)
                assert abs(tokens_on(image) - site.kept - wanted) <= step / 2, (site.site, site.stage)


def test_explain_counts_what_runs(name: str) -> None:
    """At another size than the measured one, in both stages."""
    video, model, grid = VIDEOS[name], built(name), (5, 6, 8)
    call = video.inputs(2, grid)
    with sdtm_fx.rewritten(model, rules(video)):
        generate(model, call)
        told = sdtm_fx.explain(model, grid=grid, batch=2, text=TEXT, steps=STEPS, quiet=True)
        with torch.no_grad(), sdtm_fx.steps(model, STEPS) as clock:
            for step in range(STEPS):
                with MacCounter() as counter:
                    model(**call)
                phase = next(phase for phase in told.phases if step in phase.steps)
                assert phase.macs.total == pytest.approx(counter.macs.total, rel=2e-3), phase.label
                clock.advance()


def test_the_first_frame_of_a_given_image_is_never_merged() -> None:
    video, model, grid = VIDEOS["wan-image"], built("wan-image"), (5, 4, 6)
    call, frame = video.inputs(2, grid), 24
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        handle = model.blocks[0].ffn.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        model(**call)
        with sdtm_fx.rewritten(model, rules(video)):
            generate(model, call)
        handle.remove()
    for step in (STRUCTURE, DETAIL):
        merged = seen[1 + step]
        assert merged.shape[1] == frame + 96 - 49, "half of four frames, in windows of eight"
        assert torch.equal(merged[:, :frame], seen[0][:, :frame])
    with (
        sdtm_fx.rewritten(model, rules(video)),
        pytest.raises(PlanError, match="found 1 frames of tokens, of which"),
    ):
        generate(model, video.inputs(1, (1, 4, 6)))


def test_every_token_is_modulated_and_gated_by_its_own_time() -> None:
    """Merging by hand, between the modulation and the gate of tokens that differ in both."""
    video, model, grid = VIDEOS["wan-timed"], built("wan-timed"), (5, 4, 6)
    call, frame = video.inputs(2, grid), 24
    with sdtm_fx.rewritten(model, rules(video)), sdtm_fx.record_plans(model) as record:
        merged = generate(model, call)[STRUCTURE]
    handles = []
    for site in record.at(step=STRUCTURE, site="ff"):
        assert site.assign is not None
        one_hot = nn.functional.one_hot(site.assign.long().expand(2, -1)).float()  # [2, tokens, slots]
        slots = nn.functional.pad(one_hot, (frame, 0, frame, 0))
        slots[:, :frame, :frame] = torch.eye(frame)
        ffn = model.get_submodule(site.block).ffn
        means = (slots / slots.sum(1, keepdim=True)).mT
        handles.append(ffn.register_forward_pre_hook(lambda _, args, m=means: (m @ args[0],)))
        handles.append(ffn.register_forward_hook(lambda _, args, out, s=slots: s @ out))
    by_hand = forward(model, call)
    for handle in handles:
        handle.remove()
    dense = forward(model, call)
    assert len(handles) == 4
    assert (by_hand - merged).abs().max() < 1e-4 < 1e-2 < (dense - merged).abs().max()


def test_windows_of_two_frames_leave_the_last_odd_one_over() -> None:
    video, model = VIDEOS["wan"], built("wan")
    recipe = rules(video, ratio={"curve": "full"})
    with sdtm_fx.rewritten(model, recipe), sdtm_fx.record_plans(model) as record:
        generate(model, video.inputs(1, (5, 4, 6)))
    site = next(iter(record.at(step=1, site="ff")))
    assert site.kept == math.prod((2, 2, 3)) + 24
    assert site.assign is not None
    slots = site.assign[0].reshape(5, 4, 6)
    assert torch.equal(slots[0], slots[1])
    assert torch.equal(slots[2], slots[3])
    assert len(slots[4].unique()) == 24


@pytest.mark.parametrize(("name", "site"), [("wan", "attn"), ("ltx", "attn"), ("cogvideox", "attn")])
def test_attention_may_merge_with_tables_that_follow(name: str, site: str) -> None:
    """Not what the recipes do; where all tokens of a slot are one token, nothing changes but positions."""
    video, model, call = VIDEOS[name], built(name), VIDEOS[name].inputs(2, (3, 4, 6))
    changes = {"stages.*.sites": [site], "plan.share": ["batch"], "plan.proportional": True, "reuse": None}
    dense = forward(model, call)
    with sdtm_fx.rewritten(model, rules(video, **changes, ratio={"curve": "constant", "start": 0.0})):
        assert (
            generate(model, call)[STRUCTURE] - dense
        ).abs().max() < 1e-5  # a bias of zeros takes another kernel
    with sdtm_fx.rewritten(model, rules(video, **changes)), sdtm_fx.record_plans(model) as record:
        merged = generate(model, call)[STRUCTURE]
    assert merged.shape == dense.shape
    assert not torch.equal(merged, dense)
    assert all(found.kept < 72 for found in record.at(action="merged"))


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("name", ["cogvideox"])
def test_a_phase_compiles_to_one_graph(name: str) -> None:
    video, model = VIDEOS[name], VIDEOS[name].build()
    call = video.inputs(2, (5, 4, 6))
    sdtm_fx.rewrite(model, rules(video))
    eager = generate(model, call)
    sdtm_fx.compile(model, fullgraph=True, backend="aot_eager")
    for step, (wanted, found) in enumerate(zip(eager, generate(model, call), strict=True)):
        assert torch.allclose(wanted, found, atol=1e-4), step
