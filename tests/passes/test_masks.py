"""Attention that has a mask of its own: it follows fewer keys, and adds up with what passes add."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdtm_fx.errors import PlanError, SiteError
from sdtm_fx.methods import ToDo, TokenView
from sdtm_fx.plan import MergePlan, plan_from_parents
from sdtm_fx.reductions import Reduce
from sdtm_fx.runtime.mask_ops import add_bias, reduce_mask
from tests.passes.blocks import (
    GRID,
    TEXT,
    TOKENS,
    Attention,
    FeedForward,
    GatedBlock,
    Modulation,
    condition,
    image,
    text,
)
from tests.passes.working import ATTN, FF, Calls, close, recipe, work_on

X, T, C = image(), text(), condition()
FULL = TOKENS // 4 * 3
LENGTH = TEXT + TOKENS
HIDDEN = float("-inf")


class MaskedAttention(Attention):
    """Joint attention, text first, with a mask over all keys; `at` says how the operation is given it."""

    at = "keyword"

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.qkv(torch.cat([encoder_hidden_states, hidden_states], dim=1)).chunk(3, dim=-1)
        heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in rows]
        if self.at == "keyword":
            attended = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        else:
            attended = F.scaled_dot_product_attention(*heads, mask)
        joint = self.out(attended.transpose(1, 2).flatten(2))
        length = encoder_hidden_states.shape[1]
        return joint[:, length:], joint[:, :length]


class MaskedBlock(nn.Module):
    """Joint attention under a mask, then a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = Modulation(), MaskedAttention()
        self.norm2, self.ff = Modulation(), FeedForward()

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, gate = self.norm1(hidden_states, temb)
        attended, text_out = self.attn(normed, encoder_hidden_states, mask)
        hidden_states = hidden_states + gate * attended
        normed, gate = self.norm2(hidden_states, temb)
        return hidden_states + gate * self.ff(normed), encoder_hidden_states + text_out


def padding() -> torch.Tensor:
    """Boolean, [2, 1, 1, L]: the last text token of the first sample is padding."""
    mask = torch.ones(2, 1, 1, LENGTH, dtype=torch.bool)
    mask[0, ..., TEXT - 1] = False
    return mask


def biases(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


MASKS = {
    "padding": padding(),
    "one for the batch": padding()[:1],
    "dense": biases(2, 2, LENGTH, LENGTH) > -0.5,
    "square": biases(LENGTH, LENGTH),
    "additive": biases(2, 1, 1, LENGTH),
}
KEYS = [ATTN | {"merge": "keys", "output": 0}, FF]


@pytest.mark.parametrize("at", ["keyword", "fourth"])
@pytest.mark.parametrize("name", MASKS)
def test_sampled_keys_are_seen_as_their_tokens_were(name: str, at: str) -> None:
    block, mask, planned = MaskedBlock(), MASKS[name], {}
    block.attn.at = at
    rules = recipe(KEYS, merged=["attn"], method={"name": "todo"})
    worked = work_on(block, (X, T, C, mask), rules)
    got = worked.run(X, T, C, mask, call=Calls(rules).make(remove=FULL), planned=planned)
    with torch.no_grad():
        normed, gate = block.norm1(X, C)
        heads = [
            t.unflatten(-1, (2, -1)).transpose(1, 2)
            for t in block.attn.qkv(torch.cat([T, normed], dim=1)).chunk(3, dim=-1)
        ]
        kept = torch.cat([torch.arange(TEXT), planned[0].positions[0] + TEXT])  # type: ignore[attr-defined]
        attended = F.scaled_dot_product_attention(
            heads[0], heads[1][:, :, kept], heads[2][:, :, kept], attn_mask=mask[..., kept]
        )
        joint = block.attn.out(attended.transpose(1, 2).flatten(2))
        stream = X + gate * joint[:, TEXT:]
        normed, gate = block.norm2(stream, C)
        close(got, (stream + gate * block.ff(normed), T + joint[:, :TEXT]))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("method", ["todo", "local_match"])
def test_a_plan_that_removes_nothing_changes_nothing(name: str, method: str) -> None:
    block, mask = MaskedBlock(), MASKS[name]
    rules = recipe(KEYS, method={"name": method})
    got = work_on(block, (X, T, C, mask), rules).run(X, T, C, mask, call=Calls(rules).make(remove=0))
    with torch.no_grad():
        torch.testing.assert_close(got, block(X, T, C, mask), rtol=0, atol=0)


@pytest.mark.parametrize("reduce", ["mean", "prune"])
def test_padding_has_no_say(reduce: str) -> None:
    block, mask = MaskedBlock(), padding()
    rules = recipe(KEYS, method={"name": "local_match"}, reduce=reduce, plan={"proportional": True})
    worked = work_on(block, (X, T, C, mask), rules)
    other = T.clone()
    other[0, TEXT - 1] = 100.0
    one, two = (worked.run(X, t, C, mask, call=Calls(rules).make(remove=12)) for t in (T, other))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1][1], two[1][1])


def equal_in_cells() -> torch.Tensor:
    """Tokens that are equal within each 2 x 2 cell."""
    small = image()[:, : TOKENS // 4].mT.unflatten(2, (GRID[0] // 2, GRID[1] // 2))
    return small.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(2).mT.contiguous()


@pytest.mark.parametrize("name", ["padding", "square", "additive"])
@pytest.mark.parametrize("merge", ["keys", "tokens"])
def test_slots_of_equal_tokens_weigh_what_each_of_them_weighed(name: str, merge: str) -> None:
    """Additive masks that differ within a slot too; where tokens are merged, the mask has to be the module's own."""
    block, mask, tokens = MaskedBlock(), MASKS[name], equal_in_cells()
    if merge == "tokens":
        block.attn = PaddedAttention()
    sites = [KEYS[0] | {"merge": merge}, FF]
    rules = recipe(
        sites, merged=["attn"], method={"name": "todo"}, reduce="mean", plan={"proportional": True}
    )
    args = (tokens, T, C, mask)
    worked = work_on(block, args, rules)
    with torch.no_grad():
        close(worked.run(*args, call=Calls(rules).make(remove=FULL)), block(*args))


class PaddedAttention(MaskedAttention):
    """Makes the mask itself, from that of the text (Qwen-Image)."""

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen = torch.ones(hidden_states.shape[:2], dtype=torch.bool)
        text_mask = padding()[:, 0, 0, :TEXT]
        own = torch.cat([text_mask, seen], dim=1)[:, None, None]
        return super().forward(hidden_states, encoder_hidden_states, own)


def test_the_prompt_is_weighed_beside_a_mask() -> None:
    block, mask = MaskedBlock(), padding()
    rules = recipe(KEYS, merged=["attn"], method={"name": "todo"}, prompt={"start": 2.0})
    worked, planned = work_on(block, (X, T, C, mask), rules), {}
    call = Calls(rules).make(remove=FULL, prompt_bias=torch.tensor(0.7))
    got = worked.run(X, T, C, mask, call=call, planned=planned)
    with torch.no_grad():
        normed = block.norm1(X, C)[0]
        heads = [
            t.unflatten(-1, (2, -1)).transpose(1, 2)
            for t in block.attn.qkv(torch.cat([T, normed], dim=1)).chunk(3, dim=-1)
        ]
        kept = torch.cat([torch.arange(TEXT), planned[0].positions[0] + TEXT])  # type: ignore[attr-defined]
        bias = torch.where(torch.arange(len(kept)) < TEXT, 0.7, 0.0)
        seen = torch.where(mask[..., kept], bias, HIDDEN)
        attended = F.scaled_dot_product_attention(
            heads[0], heads[1][:, :, kept], heads[2][:, :, kept], attn_mask=seen
        )
        close(got[1], T + block.attn.out(attended.transpose(1, 2).flatten(2))[:, :TEXT])


def test_a_mask_from_outside_does_not_follow_merged_queries() -> None:
    block, mask = MaskedBlock(), padding()
    sites = [KEYS[0] | {"merge": "tokens"}, FF]
    rules = recipe(sites, merged=["attn"], method={"name": "todo"}, plan={"proportional": True})
    worked = work_on(block, (X, T, C, mask), rules)
    message = (
        f"attention has a mask over {LENGTH} keys, and merged tokens leave {LENGTH - FULL}: a mask from outside of the "
        "module follows where keys alone are merged; accepted: `merge: keys` at that site"
    )
    with pytest.raises(PlanError, match=re.escape(message)):
        worked.run(X, T, C, mask, call=Calls(rules).make(remove=FULL))


# -- the columns -----------------------------------------------------------------------------------


def planned(reduce: Reduce) -> MergePlan:
    """Slots {0, 1, 2}, {3} and {0}, {1, 2, 3}."""
    return plan_from_parents(torch.tensor([[0, 0, 0, 3], [0, 1, 1, 1]]), 2).reduced_by(reduce)


def columns(mask: torch.Tensor, reduce: Reduce, keys: torch.Tensor | None = None) -> torch.Tensor:
    """Of a mask over one text key, four image keys and another text key."""
    return reduce_mask(planned(reduce), mask, torch.zeros(2, 3, 6, 4) if keys is None else keys, 1, 4)


def test_a_slot_is_seen_where_one_of_its_tokens_is() -> None:
    seen = torch.tensor([[0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0]], dtype=torch.bool)[:, None, None]
    assert columns(seen, "mean").tolist() == [[[[False, True, False, True]]], [[[True, False, True, False]]]]
    assert columns(seen, "prune").tolist() == [
        [[[False, True, False, True]]],
        [[[True, False, False, False]]],
    ]


def test_biases_of_a_slot_are_averaged_as_weights() -> None:
    bias = torch.tensor([5.0, 1.0, 2.0, HIDDEN, 0.25, 7.0])
    mean = math.log((math.exp(1.0) + math.exp(2.0)) / 3)
    got = columns(bias.expand(6, 6), "mean")
    assert got.shape == (2, 1, 6, 4)
    torch.testing.assert_close(got[0, 0, 0], torch.tensor([5.0, mean, 0.25, 7.0]))
    second = math.log((math.exp(2.0) + math.exp(0.25)) / 3)
    torch.testing.assert_close(got[1, 0, 0], torch.tensor([5.0, 1.0, second, 7.0]))
    assert columns(bias.expand(6, 6), "prune")[:, 0, 0].tolist() == [
        [5.0, 1.0, 0.25, 7.0],
        [5.0, 1.0, 2.0, 7.0],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [HIDDEN, "min"])
def test_a_slot_of_masked_tokens_is_masked(dtype: torch.dtype, masked: float | str) -> None:
    least = torch.finfo(dtype).min if masked == "min" else masked
    bias = torch.tensor([0.0, least, least, least, 0.0, 0.0], dtype=dtype).reshape(1, 1, 1, 6)
    got = columns(bias, "mean")
    assert got.dtype == dtype
    assert (got[0, 0, 0, 1] <= least).item()
    assert torch.equal(got[0, 0, 0, 2:], torch.zeros(2, dtype=dtype))
    assert not columns(torch.full_like(bias, least), "mean").isnan().any()


def test_heads_may_be_folded_into_the_batch() -> None:
    keys, whole = torch.zeros(6, 6, 4), biases(2, 3, 5, 6)
    expected = columns(whole, "mean")
    torch.testing.assert_close(columns(whole.flatten(0, 1), "mean", keys), expected.flatten(0, 1))
    same = columns(whole[:1, :1], "mean").expand(2, 3, 5, 4)
    torch.testing.assert_close(columns(whole[0, :1], "mean", keys), same.flatten(0, 1))
    torch.testing.assert_close(columns(whole[0, 0], "mean", keys), same.flatten(0, 1))


def test_one_plan_for_the_batch_takes_the_same_columns_of_every_sample() -> None:
    plan = ToDo().plan(TokenView(torch.randn(1, TOKENS, 4), GRID), ToDo().capacity(GRID))
    mask = biases(2, 1, 1, LENGTH)
    got = reduce_mask(plan, mask, torch.zeros(2, 2, LENGTH, 4), TEXT, TOKENS)
    kept = torch.cat([torch.arange(TEXT), plan.positions[0] + TEXT])
    assert torch.equal(got, mask[..., kept])


def test_a_mask_that_is_one_for_all_keys_stays() -> None:
    mask = biases(2, 1, 6, 1)
    assert columns(mask, "mean") is mask


def test_what_is_masked_stays_masked_under_a_bias() -> None:
    bias = torch.tensor([0.5, 1.0], dtype=torch.bfloat16)
    got = add_bias(torch.tensor([True, False]), bias)
    assert (got.dtype, got.tolist()) == (torch.bfloat16, [0.5, HIDDEN])
    summed = add_bias(torch.tensor([HIDDEN, 2.0]), bias)
    assert (summed.dtype, summed.tolist()) == (torch.float32, [HIDDEN, 3.0])


class Flat(Attention):
    """A mask with more axes than queries have."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(hidden_states).chunk(3, dim=-1)]
        mask = torch.zeros(1, 1, 1, 1, hidden_states.shape[1])
        return self.out(F.scaled_dot_product_attention(*heads, attn_mask=mask)[0].transpose(1, 2).flatten(2))


def test_a_mask_of_another_kind_is_an_error() -> None:
    block = GatedBlock()
    block.attn = Flat()
    message = (
        f"site 'attn': attention to {TOKENS} keys has a mask of shape [1, 1, 1, 1, {TOKENS}]; fewer keys combine with "
        "one that broadcasts to [batch, heads, queries, keys]"
    )
    with pytest.raises(SiteError, match=re.escape(message)):
        work_on(block, (X, C), recipe([ATTN | {"merge": "keys"}, FF]))
