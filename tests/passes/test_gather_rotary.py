"""Position tables follow the tokens that represent a slot."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from sdtm_fx.errors import PlanError, SiteError
from sdtm_fx.passes.gather_rotary import gather_rotary
from sdtm_fx.phase import Phase
from sdtm_fx.plan import identity_plan
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime import ops, rotary_ops
from tests.passes.blocks import RotaryBlock, condition, image, tables, text
from tests.passes.working import ATTN, FF, REFRESH, REUSE, Calls, capture_work, close, recipe, up_to, work_on

X, T, C = image(), text(), condition()
ROTARY = ATTN | {"prefix": "encoder_hidden_states", "rotary": "rotary"}
SITES = up_to("gather_rotary")


class Positional(RotaryBlock):
    def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any, rotary: Any) -> torch.Tensor:
        stream = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(stream, temb)
        return stream + gate * self.attn(normed, rotary)


def rules(**more: Any) -> Recipe:
    return recipe([ROTARY], **({"plan": {"share": ["batch"]}} | more))


@pytest.mark.parametrize("kind", [RotaryBlock, Positional])
def test_both_tables_are_gathered(kind: type[RotaryBlock]) -> None:
    block, r = kind(), rules()
    worked = work_on(block, (X, T, C, tables()), r, passes=SITES)
    assert worked.applied["gather_rotary"] == 1
    gathers = worked.work.calls(rotary_ops.gather_rotary)
    assert len(gathers) == 2
    assert {g.args[0].target for g in gathers} == {ops.plan_tokens}  # the plan over the image alone
    with torch.no_grad():
        expected = block(X, T, C, tables())
    torch.testing.assert_close(
        worked.run(X, T, C, tables(), call=Calls(r).make(remove=0)), expected, rtol=0, atol=0
    )


def test_a_slot_takes_the_position_of_its_representative() -> None:
    block, r = RotaryBlock(), rules()
    worked = work_on(block, (X, T, C, tables()), r, passes=SITES)
    planned: dict[int, Any] = {}
    out = worked.run(X, T, C, tables(), call=Calls(r).make(remove=9), planned=planned)
    plan = planned[0].placed(T.shape[1])
    rows = tuple(t[plan.positions[0]] for t in tables())
    with torch.no_grad():
        stream = torch.cat([T, X], dim=1)
        normed, gate = block.norm(stream, C)
        close(out, stream + gate * plan.unmerge(block.attn(plan.merge(normed), rotary=rows)))


def test_tables_can_be_cut_for_comparison() -> None:
    block, r = RotaryBlock(), rules(passes={"gather_rotary": False})
    worked = work_on(block, (X, T, C, tables()), r, passes=SITES)
    assert worked.applied["gather_rotary"] == 1
    assert (worked.count(rotary_ops.cut_rotary), worked.count(rotary_ops.gather_rotary)) == (2, 0)
    planned: dict[int, Any] = {}
    out = worked.run(X, T, C, tables(), call=Calls(r).make(remove=9), planned=planned)
    plan = planned[0].placed(T.shape[1])
    rows = tuple(t[: plan.kept] for t in tables())
    with torch.no_grad():
        stream = torch.cat([T, X], dim=1)
        normed, gate = block.norm(stream, C)
        close(out, stream + gate * plan.unmerge(block.attn(plan.merge(normed), rotary=rows)))


def test_a_site_that_names_no_tables_is_left_alone() -> None:
    worked = work_on(RotaryBlock(), (X, T, C, tables()), recipe([ROTARY | {"rotary": None}]), passes=SITES)
    assert worked.applied["gather_rotary"] == 0
    assert worked.count(rotary_ops.gather_rotary) == 0


def test_a_dense_step_keeps_its_tables() -> None:
    worked = work_on(RotaryBlock(), (X, T, C, tables()), rules(reuse=REUSE), variant=REFRESH, passes=SITES)
    assert worked.applied["gather_rotary"] == 0


def test_a_block_that_passes_no_tables_is_an_error() -> None:
    sites = [ROTARY | {"rotary": "freqs"}]
    message = "site 'attn': the block passes no 'freqs' to attn; it passes rotary"
    with pytest.raises(SiteError, match=re.escape(message)):
        work_on(RotaryBlock(), (X, T, C, tables()), recipe(sites, plan={"share": ["batch"]}), passes=SITES)


def test_one_plan_must_serve_the_batch() -> None:
    # Recipes refuse this too; here the plan sharing is taken away afterwards.
    work = capture_work(RotaryBlock(), (X, T, C, tables()), rules())
    for p in SITES[:-1]:
        p.run(work)
    object.__setattr__(work, "recipe", recipe([FF, ROTARY], merged=["ff"]))
    with pytest.raises(SiteError, match=r"rotary tables have no batch axis.*add `batch` to plan.share"):
        gather_rotary(work)


def test_a_plan_per_sample_cannot_gather_a_table() -> None:
    plan = identity_plan(2, 24, torch.device("cpu"))
    with pytest.raises(PlanError, match="rotary tables have no batch axis"):
        rotary_ops.gather_rotary(plan, tables()[0])


def test_the_phase_is_not_baked_in() -> None:
    block, r = RotaryBlock(), rules()
    worked, calls = work_on(block, (X, T, C, tables()), r, passes=SITES), Calls(r)
    outputs = [
        worked.run(X, T, C, tables(), call=calls.make(phase=Phase(0, n, refresh=False))) for n in (3, 12, 18)
    ]
    assert {o.shape for o in outputs} == {outputs[0].shape}
    assert not torch.equal(outputs[0], outputs[1])
