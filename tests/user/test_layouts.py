"""Frames, protected frames, references and text around the image: who is merged, and who never is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter
from sdtm_fx.errors import PlanError
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.rewriting import rewriting_of
from tests.passes.blocks import WIDTH, Attention, FeedForward, Modulation, RotaryAttention

TEXT = 5
FRAMES, HEIGHT, WIDTH_IN_TOKENS = 3, 4, 6
FRAME = HEIGHT * WIDTH_IN_TOKENS


class StreamBlock(nn.Module):
    """Attention and feed-forward on text and image in one sequence, the text first or last."""

    def __init__(self, text_last: bool) -> None:
        super().__init__()
        self.text_last = text_last
        self.norm1, self.attn = Modulation(), RotaryAttention()
        self.norm2, self.ff = Modulation(), FeedForward()

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image, text = hidden_states.shape[1], encoder_hidden_states.shape[1]
        parts = [encoder_hidden_states, hidden_states]
        stream = torch.cat(parts[::-1] if self.text_last else parts, dim=1)
        normed, gate = self.norm1(stream, temb)
        stream = stream + gate * self.attn(normed, rotary)
        normed, gate = self.norm2(stream, temb)
        stream = stream + gate * self.ff(normed)
        if self.text_last:
            return stream[:, :image], stream[:, image:]
        return stream[:, text:], stream[:, :text]


class PlainBlock(nn.Module):
    """Attention and feed-forward on the image stream alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = Modulation(), Attention()
        self.norm2, self.ff = Modulation(), FeedForward()

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        normed, gate = self.norm1(hidden_states, temb)
        hidden_states = hidden_states + gate * self.attn(normed)
        normed, gate = self.norm2(hidden_states, temb)
        return hidden_states + gate * self.ff(normed)


class Clip(nn.Module):
    """A video model of two blocks; what follows the image tokens is of references."""

    def __init__(self, text_last: bool = False) -> None:
        super().__init__()
        self.plain = PlainBlock()
        self.blocks = nn.ModuleList(StreamBlock(text_last) for _ in range(2))

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        img_ids: torch.Tensor,
    ) -> torch.Tensor:
        temb = timestep[:, None] * torch.ones(WIDTH)
        length = hidden_states.shape[1] + encoder_hidden_states.shape[1]
        angle = torch.arange(length)[:, None] * torch.linspace(0.01, 1, WIDTH)
        rotary = (angle.cos(), angle.sin())
        x, text = self.plain(hidden_states, temb), encoder_hidden_states
        for block in self.blocks:
            x, text = block(x, text, temb, rotary)
        return x + text.mean()


def ids(frames: int = FRAMES, references: int = 0) -> torch.Tensor:
    """(is a reference, frame, row, column) of every token."""
    sides = [torch.arange(n) for n in (1, frames, HEIGHT, WIDTH_IN_TOKENS)]
    image = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).reshape(-1, 4)
    other = torch.cat([torch.ones(references, 3).long(), torch.arange(references)[:, None]], dim=1)
    return torch.cat([image, other])


def inputs(frames: int = FRAMES, references: int = 0, batch: int = 2) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {
        "hidden_states": torch.randn(batch, frames * FRAME + references, WIDTH, generator=draw),
        "encoder_hidden_states": torch.randn(batch, TEXT, WIDTH, generator=draw),
        "timestep": torch.full((batch,), 0.7),
        "img_ids": ids(frames, references),
    }


def recipe(side: str = "prefix", told: str = "encoder_hidden_states", **changes: Any) -> Recipe:
    ways = {side: told}
    data = {
        "version": 1,
        "name": "clip",
        "model": ["Clip"],
        "tokens": {
            "grid": {"ids": "img_ids", "columns": [1, 2, 3], "reference_column": 0},
            "protect": {"first_frames": 1},
        },
        "inputs": {
            "hidden_states": ["batch", "tokens", WIDTH],
            "encoder_hidden_states": ["batch", "text", WIDTH],
            "timestep": ["batch"],
            "img_ids": {"shape": ["tokens", 4], "fill": "grid_ids"},
        },
        "sites": [
            {"id": "plain", "kind": "feed_forward", "match": "plain.ff"},
            {"id": "plain_attn", "kind": "attention", "match": "plain.attn", "input": "hidden_states"},
            {"id": "ff", "kind": "feed_forward", "match": "blocks.*.ff", **ways},
            {"id": "attn", "kind": "attention", "match": "blocks.*.attn", "rotary": "rotary",
             "input": "hidden_states", **ways},
        ],
        "stages": [
            {"name": "all", "until": 1.0, "sites": ["plain", "ff"], "method": {"name": "ssm", "age_weight": 0.0}}
        ],
        "ratio": {"curve": "constant", "start": 0.5},
        "keep_dense": {"first_steps": 0, "last_steps": 0},
        "plan": {"round_to": 1},
        "gate": "off",
    }  # fmt: skip
    return Recipe.from_mapping(data).override(changes)


def make(text_last: bool = False) -> Clip:
    torch.manual_seed(0)
    return Clip(text_last).eval()


def run(
    model: nn.Module, call: dict[str, torch.Tensor], steps: int = 2, count: int | None = None
) -> list[torch.Tensor]:
    with torch.no_grad(), sdtm_fx.steps(model, steps) as clock:
        results = []
        for _ in range(count or steps):
            results.append(model(**call))
            clock.advance()
    return results


def seen(model: nn.Module, path: str, call: dict[str, torch.Tensor]) -> torch.Tensor:
    """What reaches a module in the last of two steps."""
    given: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(
        lambda _, args: given.append(args[0].clone())
    )
    if rewriting_of(model) is None:
        model(**call)
    else:
        run(model, call)
    handle.remove()
    return given[-1].detach()


LAYOUTS = [(False, "prefix", "encoder_hidden_states"), (False, "prefix", "*"),
           (True, "suffix", "encoder_hidden_states"), (True, "suffix", "*")]  # fmt: skip


@pytest.mark.parametrize("references", [0, 7])
@pytest.mark.parametrize(("text_last", "side", "told"), LAYOUTS)
def test_what_is_never_merged_reaches_the_site_as_it_is(
    text_last: bool, side: str, told: str, references: int
) -> None:
    model, call = make(text_last), inputs(references=references)
    dense = {path: seen(model, path, call) for path in ("plain.ff", "blocks.0.ff")}
    sdtm_fx.rewrite(model, recipe(side, told, **{"stages.all.sites": ["ff"]}))
    merged = seen(model, "blocks.0.ff", call)
    kept = FRAME * (FRAMES - 1) // 2
    assert merged.shape[1] == FRAME + kept + references + TEXT
    front = FRAME if text_last else TEXT + FRAME
    back = references + (TEXT if text_last else 0)
    before, after = dense["blocks.0.ff"], merged
    assert torch.equal(after[:, :front], before[:, :front]), "text in front, and the protected frame"
    if back:
        assert torch.equal(after[:, -back:], before[:, -back:]), "references, and text behind"
    middle = after[:, front : front + kept]
    image = before[:, front : front + FRAME * (FRAMES - 1)]
    assert torch.allclose(middle.mean(1) * 0 + image.mean(1), image.mean(1))
    windows = image.unflatten(1, (2, 2, 2, 3, 2)).transpose(3, 4).flatten(1, 3).flatten(2, 3)
    alone = (middle[:, :, None] == image[:, None]).all(-1).any(-1).sum(dim=1)
    assert (alone == FRAME * 2 - 4 * (FRAME * 2 - kept) // 3).all(), "whole windows of one frame each"
    assert windows.shape[1:] == (12, 4, WIDTH)


@pytest.mark.parametrize(
    "sites", [["plain", "ff"], ["plain", "ff", "plain_attn", "attn"], ["plain_attn", "attn"]]
)
@pytest.mark.parametrize(("text_last", "side", "told"), LAYOUTS)
def test_ratio_zero_and_restore_are_exact(text_last: bool, side: str, told: str, sites: list[str]) -> None:
    model, call = make(text_last), inputs(references=7)
    with torch.no_grad():
        dense = model(**call)
    changes = {"stages.all.sites": sites, "plan.share": ["batch"]}
    sdtm_fx.rewrite(model, recipe(side, told, **changes, ratio={"curve": "constant", "start": 0.0}))
    assert torch.equal(run(model, call)[1], dense)
    sdtm_fx.restore(model)
    sdtm_fx.rewrite(model, recipe(side, told, **changes))
    merged = run(model, call)
    assert not torch.equal(merged[1], dense)
    assert merged[1].shape == dense.shape
    sdtm_fx.restore(model)
    with torch.no_grad():
        assert torch.equal(model(**call), dense)


@pytest.mark.parametrize(("text_last", "side", "told"), LAYOUTS)
def test_attention_on_merged_tokens_is_that_of_equal_tokens(text_last: bool, side: str, told: str) -> None:
    """Where all tokens of a slot are equal, positions too, proportional attention on slots changes nothing."""
    model, call = make(text_last), inputs(references=7)
    model.blocks = nn.ModuleList()  # the plain block has no positions
    frames = call["hidden_states"][:, : FRAMES * FRAME].unflatten(1, (FRAMES, HEIGHT, WIDTH_IN_TOKENS))
    frames[:, 1:] = frames[:, 1:, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        dense = model(**call)
    data = recipe(side, told).to_data()
    data["sites"] = data["sites"][:2]
    data["stages"][0].update(sites=["plain_attn", "plain"])
    data |= {"ratio": {"curve": "full"}, "plan": {"proportional": True, "round_to": 1}}
    for merge in ("tokens", "keys"):
        data["sites"][1]["merge"] = merge
        with sdtm_fx.rewritten(model, Recipe.from_mapping(data)):
            merged = run(model, call)[1]
        assert torch.allclose(merged, dense, atol=1e-5)
        assert not torch.equal(merged, dense)


@pytest.mark.parametrize(("text_last", "side", "told"), LAYOUTS)
def test_rotary_tables_follow_the_tokens_and_leave_the_others(text_last: bool, side: str, told: str) -> None:
    model, call = make(text_last), inputs(references=7)
    tables: list[torch.Tensor] = []
    sdtm_fx.rewrite(model, recipe(side, told, **{"stages.all.sites": ["attn"], "plan.share": ["batch"]}))
    attn = model.get_submodule("blocks.0.attn")
    handle = attn.register_forward_pre_hook(lambda _, args: tables.append(args[1][0]))
    run(model, call)
    handle.remove()
    kept = FRAME * (FRAMES - 1) // 2
    length = call["hidden_states"].shape[1] + TEXT
    whole = (torch.arange(length)[:, None] * torch.linspace(0.01, 1, WIDTH)).cos()
    front, back = (FRAME, 7 + TEXT) if text_last else (TEXT + FRAME, 7)
    assert tables[-1].shape[0] == front + kept + back
    assert torch.equal(tables[-1][:front], whole[:front])
    assert torch.equal(tables[-1][-back:], whole[-back:])


@pytest.mark.parametrize("merge", ["tokens", "keys"])
@pytest.mark.parametrize("references", [0, 7])
@pytest.mark.parametrize(("text_last", "side", "told"), LAYOUTS)
def test_explain_counts_what_runs(text_last: bool, side: str, told: str, references: int, merge: str) -> None:
    model, call = make(text_last), inputs(frames=4, references=references)
    sites = ["ff", "attn", "plain", "plain_attn"]
    changes = {"stages.all.sites": sites, "plan.share": ["batch"], "sites.attn.merge": merge}
    sdtm_fx.rewrite(model, recipe(side, told, **changes, **{"stages.all.method": {"name": "uniform"}}))
    run(model, call)
    told_of = sdtm_fx.explain(model, quiet=True)
    assert (told_of.grid, told_of.protected, told_of.references) == (
        (3, HEIGHT, WIDTH_IN_TOKENS),
        FRAME,
        references,
    )
    (phase,) = told_of.phases
    assert phase.ratio == pytest.approx(0.5)
    with MacCounter() as counter, torch.no_grad(), sdtm_fx.steps(model, 2):
        model(**call)
    assert phase.macs.linear == pytest.approx(counter.macs.linear, rel=1e-6)
    assert phase.macs.total == pytest.approx(counter.macs.total, rel=1e-6)
    assert all(site.tokens_after == 36 for site in told_of.sites)
    assert "24 tokens of protected frames" in sdtm_fx.explaining.render.as_text(told_of)
    given = sdtm_fx.explain(model, grid=(4, HEIGHT, WIDTH_IN_TOKENS), references=references, quiet=True)
    assert given.phases[0].macs == phase.macs


def test_forecasts_leave_protected_frames_text_and_references_alone() -> None:
    model, call = make(True), inputs(references=7)
    rules = recipe(
        "suffix", "*", keep_dense={"first_steps": 2}, reuse={"order": 1, "weight": 0.0},
        **{"stages.all.sites": ["ff"]},
    )  # fmt: skip
    sdtm_fx.rewrite(model, rules)
    caught: list[torch.Tensor] = []
    handle = model.blocks[1].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad():
        plain = copy.deepcopy(model)
        sdtm_fx.restore(plain)
        first = plain.blocks[0]
        x = plain.plain(call["hidden_states"], call["timestep"][:, None] * torch.ones(WIDTH))
    run(model, call, steps=4)
    handle.remove()
    length = x.shape[1] + TEXT
    angle = torch.arange(length)[:, None] * torch.linspace(0.01, 1, WIDTH)
    with torch.no_grad():
        want, _ = first(
            x,
            call["encoder_hidden_states"],
            call["timestep"][:, None] * torch.ones(WIDTH),
            (angle.cos(), angle.sin()),
        )
    got = caught[2]
    assert torch.allclose(got[:, :FRAME], want[:, :FRAME], atol=1e-6)
    assert torch.allclose(got[:, -7:], want[:, -7:], atol=1e-6)


def test_a_span_leaves_them_alone() -> None:
    model, call = make(), inputs(references=7)
    with torch.no_grad():
        dense = model(**call)
    data = recipe().to_data()
    data["spans"] = [{"id": "body", "first": 1, "last": 2, "rotary": "rotary", "output": 0}]
    data["stages"][0].update(sites=["body"])
    data["plan"]["share"] = ["batch"]
    kept: list[int] = []
    handle = model.blocks[1].attn.register_forward_pre_hook(lambda _, args: kept.append(args[0].shape[1]))
    with sdtm_fx.rewritten(model, Recipe.from_mapping(data)):
        merged = run(model, call)[1]
    handle.remove()
    assert kept[-1] == FRAME * 2 + 7 + TEXT
    assert merged.shape == dense.shape
    zero = data | {"ratio": {"curve": "constant", "start": 0.0}}
    with sdtm_fx.rewritten(model, Recipe.from_mapping(zero)):
        assert torch.equal(run(model, call)[1], dense)


def test_a_sequence_that_does_not_add_up_is_refused() -> None:
    model, call = make(True), inputs()
    sdtm_fx.rewrite(model, recipe("suffix", **{"stages.all.sites": ["plain"]}))
    call["img_ids"] = ids(frames=2)
    with pytest.raises(PlanError, match="has 48 image tokens, the grid is 1x4x6 = 24; check"):
        run(model, call)
    sdtm_fx.restore(model)
    sdtm_fx.rewrite(model, recipe("suffix", "*", **{"stages.all.sites": ["ff"]}))
    call["img_ids"] = ids(frames=5)
    with pytest.raises(
        PlanError, match="runs on 77 tokens; 96 image tokens of the grid 4x4x6 beside 24 others need 120"
    ):
        run(model, call)
