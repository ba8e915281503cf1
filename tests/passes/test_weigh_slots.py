"""Proportional attention: a slot of equal tokens counts for as much as they did."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from sdtm_fx.methods import ToDo, TokenView
from sdtm_fx.plan import plan_from_parents
from sdtm_fx.runtime import mask_ops
from sdtm_fx.runtime.key_ops import slot_bias
from tests.passes.blocks import (
    GRID,
    TEXT,
    TOKENS,
    CrossBlock,
    DualBlock,
    GatedBlock,
    ParallelBlock,
    condition,
    image,
    text,
)
from tests.passes.working import ATTN, FF, PARALLEL, Calls, close, recipe, work_on

T, C = text(), condition()
TODO = {"name": "todo"}
UNIFORM = {"name": "uniform"}
FULL = TOKENS // 4 * 3
WEIGHED = {"plan": {"proportional": True}}


def equal_in_cells() -> torch.Tensor:
    """Tokens that are equal within each 2 x 2 cell."""
    small = image()[:, : TOKENS // 4].mT.unflatten(2, (GRID[0] // 2, GRID[1] // 2))
    return small.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(2).mT.contiguous()


X = equal_in_cells()
BLOCKS: list[tuple[nn.Module, tuple[Any, ...], list[dict[str, Any]]]] = [
    (GatedBlock(), (X, C), [ATTN, FF]),
    (DualBlock(), (X, T, C), [ATTN | {"output": 0}, ATTN | {"id": "attn2", "match": "attn2"}, FF]),
    (ParallelBlock(), (X, T, C), PARALLEL),
]


@pytest.mark.parametrize("merge", ["tokens", "keys"])
@pytest.mark.parametrize("method", [TODO, UNIFORM], ids=lambda m: m["name"])
@pytest.mark.parametrize("remove", [9, FULL])
@pytest.mark.parametrize(("block", "args", "sites"), BLOCKS, ids=["gated", "dual", "parallel"])
def test_slots_of_equal_tokens_are_dense_attention(
    block: nn.Module, args: tuple[Any, ...], sites: list[dict[str, Any]], remove: int, method: Any, merge: str
) -> None:
    chosen = [s | {"merge": merge} if s["kind"] == "attention" else s for s in sites]
    with torch.no_grad():
        expected = block(*args)
    outputs = []
    for more in (WEIGHED, {}):
        rules = recipe(chosen, method=method, **more)
        outputs.append(work_on(block, args, rules).run(*args, call=Calls(rules).make(remove=remove)))
    close(outputs[0], expected)
    if remove == FULL and len(args) == 2:  # every key counts four times: no weight of its own is the same
        close(outputs[1], expected)
    else:
        one, other = (
            o if isinstance(o, torch.Tensor) else torch.cat(o, dim=1) for o in (outputs[1], expected)
        )
        assert (one - other).abs().max() > 1e-3


def test_it_is_off_unless_the_recipe_says_so() -> None:
    worked = work_on(GatedBlock(), (X, C), recipe([ATTN, FF]))
    assert (worked.applied["weigh_slots"], worked.count("attn")) == (0, 1)
    weighed = work_on(GatedBlock(), (X, C), recipe([ATTN, FF], **WEIGHED))
    assert (weighed.applied["weigh_slots"], weighed.count("attn")) == (1, 0)


def test_the_bias_of_a_strided_grid_is_the_logarithm_of_the_cell() -> None:
    plan = ToDo(factor=3).plan(TokenView(torch.zeros(1, 54, 4), (6, 9)), 48)
    keys = torch.zeros(1, 2, 6 + 5, 4)
    bias = slot_bias(plan, keys, 2, 2)
    assert bias.shape == (1, 1, 1, 11)
    torch.testing.assert_close(bias.flatten(), torch.tensor([0.0] * 2 + [math.log(9)] * 6 + [0.0] * 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_bias_has_the_dtype_of_the_keys_and_the_batch_of_the_plan(dtype: torch.dtype) -> None:
    plan = plan_from_parents(torch.tensor([[0, 0, 0, 3], [0, 1, 1, 1]]), 2)
    bias = slot_bias(plan, torch.zeros(2, 5, 3, 4, dtype=dtype), 3, 1)
    assert bias.dtype == dtype
    expected = torch.tensor([[0, 0, 0, 3, 1], [0, 0, 0, 1, 3]]).clamp(min=1).log().to(dtype)
    assert torch.equal(bias[:, 0, 0], expected)
    folded = slot_bias(plan, torch.zeros(6, 5, 4, dtype=dtype), 3, 1)
    assert torch.equal(folded[:, 0], expected.repeat_interleave(3, dim=0))


def test_it_adds_up_with_the_weight_of_the_prompt() -> None:
    sites = [ATTN | {"output": 0}, FF]
    block = DualBlock()
    weighted = {"prompt": {"start": 2.0}}
    dense, merged = (
        work_on(block, (X, T, C), recipe(sites, merged=chosen, method=TODO, **WEIGHED, **weighted))
        for chosen in (["attn"], ["attn", "ff"])
    )
    rules = dense.work.recipe
    outputs = [
        w.run(X, T, C, call=Calls(rules).make(remove=remove, prompt_bias=torch.tensor(0.7)))
        for w, remove in ((dense, 0), (merged, FULL))
    ]
    close(outputs[0][1], outputs[1][1])
    plain = dense.run(X, T, C, call=Calls(rules).make(remove=0))
    assert (plain[1] - outputs[0][1]).abs().max() > 1e-3
    inner = merged.work.opened["attn"].attention
    assert merged.applied["call_opened"] == 1
    assert inner.operation.kwargs["attn_mask"].target is mask_ops.add_bias
    assert len(T[0]) == TEXT


def test_attention_to_text_has_no_slots_among_its_keys() -> None:
    sites = [ATTN | {"id": "attn1", "match": "attn1"}, ATTN | {"id": "cross", "match": "attn2"}, FF]
    worked = work_on(CrossBlock(), (X, T, C), recipe(sites, method=UNIFORM, **WEIGHED))
    assert (worked.applied["weigh_slots"], worked.applied["call_opened"]) == (1, 1)
    assert worked.count("attn2") == 1
    (note,) = worked.work.notes
    assert (
        note == "attn2 attends to text, whose keys are no slots; proportional attention changes nothing there"
    )
