"""The operations in rewritten graphs, on their own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from sdtm_fx.errors import PlanError
from sdtm_fx.methods import SSM, TokenView
from sdtm_fx.phase import Phase
from sdtm_fx.plan import MergePlan
from sdtm_fx.runtime import ops, rotary_ops
from sdtm_fx.runtime.call import BlockContext, Call
from tests.passes.blocks import GRID, TOKENS, WIDTH, image, tables
from tests.passes.working import FF, Calls, close, recipe

X = image(4)


class Spy:
    """A method that notes what it is shown."""

    def __init__(self, needs: frozenset[str] = frozenset({"ages"})) -> None:
        self.inner, self.needs, self.name = SSM(), needs, "spy"
        self.views: list[TokenView] = []

    def plan(self, view: TokenView, remove: int) -> MergePlan:
        self.views.append(view)
        return self.inner.plan(view, remove)

    def count_above(self, view: TokenView, threshold: float) -> torch.Tensor:
        return self.inner.count_above(view, threshold)


RULES = recipe([FF])


def make(spy: Spy, calls: Calls | None = None, **changes: Any) -> Call:
    return (calls or Calls(RULES)).make(method=spy, **changes)


def plan(
    call: Call, block: int = 0, planned: dict[int, object] | None = None, x: torch.Tensor = X
) -> MergePlan:
    return ops.plan_tokens(BlockContext(call, block, {} if planned is None else planned), x)


# -- who shares a plan -------------------------------------------------------------------------------


def test_every_sample_has_its_own_plan() -> None:
    spy = Spy()
    assert plan(make(spy)).assign.shape == (4, TOKENS)
    assert torch.equal(spy.views[0].metric, X)


def test_the_whole_batch_may_share_one() -> None:
    spy = Spy()
    assert plan(make(spy, share_batch=True)).assign.shape == (1, TOKENS)
    assert torch.equal(spy.views[0].metric, X.mean(0, keepdim=True))


def test_guidance_halves_share_the_plan_of_their_mean() -> None:
    spy = Spy()
    shared = plan(make(spy, halves=2))
    assert torch.equal(spy.views[0].metric, (X[:2] + X[2:]) / 2)
    assert shared.assign.shape == (4, TOKENS)
    assert torch.equal(shared.assign[:2], shared.assign[2:])


def test_a_batch_that_does_not_split_is_an_error() -> None:
    with pytest.raises(PlanError, match="a batch of 3 does not split into 2 CFG halves that share a plan"):
        plan(make(Spy(), halves=2), x=X[:3])


@pytest.mark.parametrize(("every", "plans"), [(1, 6), (2, 3), (4, 2), (6, 1)])
def test_groups_of_blocks_share_a_plan(every: int, plans: int) -> None:
    spy, planned = Spy(), {}
    call = make(spy, every_layers=every)
    made = [plan(call, block, planned) for block in range(6)]
    assert len(spy.views) == plans
    assert len({id(p) for p in made}) == plans


def test_attention_is_averaged_like_the_tokens() -> None:
    spy, attention = Spy(), torch.rand(4, TOKENS)
    ops.plan_tokens(BlockContext(make(spy, halves=2), 0, {}), X, attention)
    assert torch.equal(spy.views[0].attention, (attention[:2] + attention[2:]) / 2)  # type: ignore[arg-type]


def test_tokens_that_are_not_the_grids_are_an_error() -> None:
    message = (
        f"block 3 has {TOKENS - 1} image tokens, the grid is 4x6 = 24; check `tokens.grid`, and the sites' `prefix`, "
        "`suffix` and `downsample`, in the recipe"
    )
    with pytest.raises(PlanError, match=re.escape(message)):
        plan(make(Spy()), block=3, x=X[:, 1:])


def test_draws_differ_between_groups_and_not_between_calls() -> None:
    spy, salt = Spy(), torch.tensor(1000)
    for _ in range(2):
        planned: dict[int, object] = {}
        for block in range(4):
            plan(make(spy, salt=salt, every_layers=2), block, planned)
    first, second, *again = [int(v.salt) for v in spy.views]
    assert first != second
    assert again == [first, second]


# -- plans kept over steps ----------------------------------------------------------------------------


def kept(calls: Calls, spy: Spy, fresh: bool, remove: int = 12, **changes: Any) -> MergePlan:
    changes = {"keep_plans": True} | changes
    return plan(make(spy, calls, phase=Phase(0, remove, refresh=False, fresh_plan=fresh), **changes))


def test_a_kept_plan_is_used_again() -> None:
    spy, calls = Spy(), Calls(RULES)
    first, second = kept(calls, spy, True), kept(calls, spy, False)
    assert torch.equal(first.assign, second.assign)
    assert len(spy.views) == 1
    kept(calls, spy, True)
    assert len(spy.views) == 2


def test_a_kept_plan_of_another_size_is_made_anew() -> None:
    # A branch that was refreshed in place of the step that should have made the plan.
    spy, calls = Spy(), Calls(RULES)
    kept(calls, spy, True, remove=12)
    assert kept(calls, spy, False, remove=3).removed == 3
    assert len(spy.views) == 2


def test_without_a_kept_plan_one_is_made() -> None:
    spy = Spy()
    assert kept(Calls(RULES), spy, False).removed == 12
    assert len(spy.views) == 1


def test_kept_plans_serve_both_halves() -> None:
    spy, calls = Spy(), Calls(RULES)
    first, second = (kept(calls, spy, fresh, halves=2) for fresh in (True, False))
    assert first.assign.shape == second.assign.shape == (4, TOKENS)


def test_plans_are_kept_only_where_a_step_will_use_them() -> None:
    calls = Calls(RULES)
    kept(calls, Spy(), True, keep_plans=False)
    assert calls.state.plans == {}


# -- ages ---------------------------------------------------------------------------------------------


def test_ages_count_steps_a_token_shared_its_slot() -> None:
    calls, spy = Calls(RULES), Spy()
    expected = torch.zeros(4, TOKENS, dtype=torch.int32)
    for _ in range(3):
        made = plan(make(spy, calls))
        expected = torch.where(made.merged_mask, expected + 1, 0)
        assert torch.equal(calls.state.ages[0], expected)
    assert int(expected.max()) > 0


@pytest.mark.parametrize(
    ("advance", "one_counter", "after"),
    [(True, False, 1), (False, False, 0), (False, True, 1), (True, True, 1)],
)
def test_a_second_call_of_a_step_ages_only_the_released_counter(
    advance: bool, one_counter: bool, after: int
) -> None:
    calls = Calls(RULES)
    plan(make(Spy(), calls, advance_ages=advance, one_age_counter=one_counter, remove=18))
    assert int(calls.state.ages[0].max()) == after


def test_groups_have_their_own_ages_unless_one_counter_serves_all() -> None:
    for one_counter, keys, oldest in ((False, [0, 1, 2], 1), (True, [0], 3)):
        calls, planned = Calls(RULES), {}
        for block in range(3):
            plan(make(Spy(), calls, one_age_counter=one_counter, remove=18), block, planned)
        assert sorted(calls.state.ages) == keys
        assert int(calls.state.ages[0].max()) == oldest


def test_tokens_age_while_their_plan_is_kept() -> None:
    calls, spy = Calls(RULES), Spy()
    for fresh, oldest in ((True, 1), (False, 2), (False, 3)):
        kept(calls, spy, fresh, halves=2)
        assert int(calls.state.ages[0].max()) == oldest
    assert calls.state.ages[0].shape == (2, TOKENS)


def test_the_released_counter_counts_plans_that_were_made() -> None:
    calls, spy = Calls(RULES), Spy()
    for fresh in (True, False, False):
        kept(calls, spy, fresh, one_age_counter=True)
    assert int(calls.state.ages[0].max()) == 1


def test_methods_without_ages_keep_none() -> None:
    calls = Calls(RULES)
    plan(make(Spy(frozenset()), calls))
    assert calls.state.ages == {}


def test_methods_without_ages_leave_those_of_others_alone() -> None:
    """Whether an earlier stage made some must not matter to a graph."""
    calls = Calls(RULES)
    plan(make(Spy(), calls))
    before = calls.state.ages[0].clone()
    plan(make(Spy(frozenset()), calls))
    assert before.max() == 1
    assert torch.equal(calls.state.ages[0], before)


@pytest.mark.parametrize(("said", "found"), [(None, "mean"), ("mean", "mean"), ("prune", "prune")])
def test_the_recipe_may_say_what_a_slot_holds(said: Any, found: str) -> None:
    spy, calls = Spy(), Calls(RULES)
    assert plan(make(spy, calls, reduce=said)).reduce == found
    # A plan that is kept is made as the method has it, and read as the recipe says.
    kept(calls, spy, True)
    assert kept(calls, spy, False, reduce=said).reduce == found


# -- thresholds ---------------------------------------------------------------------------------------


def test_a_method_without_ages_leaves_those_of_others_alone() -> None:
    calls = Calls(RULES)
    calls.state.ages[0] = torch.ones(4, TOKENS, dtype=torch.int32)
    plan(make(Spy(needs=frozenset()), calls))
    assert torch.equal(calls.state.ages[0], torch.ones(4, TOKENS, dtype=torch.int32))


def test_a_block_removes_and_reduces_as_its_rule_says() -> None:
    spy, planned = Spy(), {}
    call = make(spy, removes={1: 6}, reduces={1: "prune"}, reduce="mlerp")
    plans = [plan(call, block, planned) for block in range(3)]
    assert [(made.removed, made.reduce) for made in plans] == [(12, "mlerp"), (6, "prune"), (12, "mlerp")]
    shared = make(spy, every_layers=2, reduces={1: "prune"})
    first, second = (plan(shared, block, planned := {} if block == 0 else planned) for block in range(2))
    assert (first.reduce, second.reduce) == ("mean", "prune")
    assert first.assign is second.assign
    assert shared.removed_in(0) == 12
    assert make(spy, every_layers=2, removes={2: 6, 3: 6}).removed_in(1) == 6


def test_what_guidance_changed_reaches_the_method() -> None:
    calls, spy = Calls(RULES), Spy(needs=frozenset({"importance"}))
    calls.state.set_importance(torch.arange(4 * TOKENS).view(4, TOKENS))
    plan(make(spy, calls))
    assert torch.equal(spy.views[0].importance, calls.state.importance)  # type: ignore[arg-type]
    plan(make(spy, calls, halves=2))
    assert spy.views[1].importance is not None
    assert spy.views[1].importance.shape == (2, TOKENS)
    plan(make(Spy(), calls))
    assert make(Spy(), calls).reads("ages")
    assert not make(Spy(), calls).reads("importance")


def test_another_metric_is_what_a_threshold_is_laid_on() -> None:
    calls = Calls(RULES)
    call = make(Spy(), calls, threshold=0.99)
    alike = torch.ones_like(X)
    assert ops.measure_tokens(BlockContext(call, 0, {}), X, alike) is X
    assert int(calls.state.above[0]) == TOKENS // 4 * 3
    ops.measure_tokens(BlockContext(call, 0, {}), X, X)
    assert int(calls.state.above[0]) < TOKENS // 4 * 3


def test_a_merging_step_counts_for_the_next_one() -> None:
    calls = Calls(RULES)
    plan(make(Spy(), calls, threshold=-1.0))
    assert int(calls.state.above[0]) == TOKENS // 4 * 3


def test_the_count_is_the_least_over_the_batch() -> None:
    alike = X[:1].expand(2, -1, -1).clone()
    alike[0] = 1.0  # every window is alike in one sample only
    calls = Calls(RULES)
    ops.measure_tokens(BlockContext(make(Spy(), calls, threshold=0.99), 0, {}), alike, alike)
    counts = [int(SSM().count_above(TokenView(alike[i : i + 1], GRID), 0.99)) for i in range(2)]
    assert counts[0] > counts[1]
    assert int(calls.state.above[0]) == counts[1]


def test_measuring_happens_once_in_a_group() -> None:
    calls, planned = Calls(RULES), {}
    call = make(Spy(), calls, threshold=-1.0, every_layers=2)
    first = ops.measure_tokens(BlockContext(call, 0, planned), X, X)
    calls.state.above[0] = marker = torch.tensor(5)
    ops.measure_tokens(BlockContext(call, 1, planned), X, X)
    assert calls.state.above[0] is marker
    assert first is X


# -- forecasts ----------------------------------------------------------------------------------------


def store(calls: Calls, step: int, value: torch.Tensor, order: int) -> None:
    if calls.state.set_refreshed(step):
        calls.state.shift()
    call = calls.make(forecast_order=order)
    assert ops.store_feature(BlockContext(call, 0, {}), value, "ff") is value


def forecast(calls: Calls, step: int) -> torch.Tensor:
    calls.state.set_slope(step, torch.device("cpu"))
    return ops.forecast_feature(BlockContext(calls.make(), 0, {}), "ff")


@pytest.mark.parametrize("steps", [(0, 1, 2), (0, 3, 4), (2, 5, 9), (0, 3, 6, 8)])
def test_order_one_is_exact_on_a_straight_line(steps: tuple[int, ...]) -> None:
    calls, start, slope = Calls(RULES), image(), image(seed=5)
    *refreshes, now = steps
    for step in refreshes:
        store(calls, step, start + step * slope, order=1)
    torch.testing.assert_close(forecast(calls, now), start + now * slope, rtol=1e-4, atol=1e-4)


def test_order_one_with_one_refresh_copies_it() -> None:
    calls, value = Calls(RULES), image()
    store(calls, 0, value, order=1)
    assert torch.equal(forecast(calls, 2), value)


def test_order_zero_copies_the_last_refresh() -> None:
    calls = Calls(RULES)
    for step in (0, 3):
        store(calls, step, image(seed=step), order=0)
    assert torch.equal(forecast(calls, 5), image(seed=3))


def test_a_second_evaluation_replaces_and_does_not_shift() -> None:
    calls = Calls(RULES)
    for step, seed in ((0, 10), (3, 11), (3, 12)):
        store(calls, step, image(seed=seed), order=1)
    feature = calls.state.features[0, "ff"]
    assert torch.equal(feature.newer, image(seed=12))
    assert torch.equal(feature.older, image(seed=10))  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [0, 1])
def test_what_is_stored_is_safe_from_work_in_place(order: int) -> None:
    calls, value = Calls(RULES), image()
    store(calls, 0, value, order)
    value.zero_()
    forecast(calls, 1).mul_(0)  # a block may go on in place
    assert torch.equal(forecast(calls, 1), image())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_merged_positions_blend(weight: float, dtype: torch.dtype) -> None:
    calls, stored = Calls(RULES), image(seed=3).to(dtype)
    store(calls, 0, stored, order=0)
    made = SSM().plan(TokenView(image(), GRID), 9)
    tokens = made.merge(image()).to(dtype)
    call = calls.make(forecast_weight=weight)
    out = ops.blend_forecast(BlockContext(call, 0, {}), made, tokens, "ff")
    new, mask = made.unmerge(tokens), made.merged_mask[..., None]
    expected = torch.where(mask, (weight * new.float() + (1 - weight) * stored.float()).to(dtype), new)
    assert out.dtype == dtype
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5  # bfloat16 has eight bits
    close(out, expected, tolerance)
    assert torch.equal(out[~mask.expand_as(out)], new[~mask.expand_as(out)])


# -- small ones ---------------------------------------------------------------------------------------


def test_a_prefix_is_cut_off() -> None:
    assert torch.equal(ops.image_tokens(X, 3, 0), X[:, 3:])
    assert torch.equal(ops.image_tokens(X, 3, 2), X[:, 3:-2])


def test_merge_and_unmerge_are_the_plans() -> None:
    made = SSM().plan(TokenView(X, GRID), 12)
    assert torch.equal(ops.merge_tokens(made, X), made.merge(X))
    assert torch.equal(ops.unmerge_tokens(made, X[:, :12]), made.unmerge(X[:, :12]))
    assert ops.place_plan(made, 3, 2).tokens == TOKENS + 5


def test_text_rows_of_a_table_stay() -> None:
    made = SSM().plan(TokenView(X[:1], GRID), 12)
    table = tables(5 + TOKENS)[0]
    gathered = rotary_ops.gather_rotary(made, table)
    assert torch.equal(gathered[:5], table[:5])
    assert torch.equal(gathered[5:], table[5:][made.positions[0]])


def test_rows_of_protected_tokens_references_and_text_stay_on_their_sides() -> None:
    made = SSM().plan(TokenView(X[:1], GRID), 12)
    table = torch.arange(3 + 2 + TOKENS + 4)
    inside = made.positions[0]
    first = rotary_ops.gather_rotary(made, table, 2, 4)
    assert torch.equal(first, torch.cat([table[:5], table[5:-4][inside], table[-4:]]))
    last = rotary_ops.gather_rotary(made, table, 2, 4, text_last=True)
    assert torch.equal(last, torch.cat([table[:2], table[2:-7][inside], table[-7:]]))
    turned = rotary_ops.gather_rotary(made, table[None, :, None, None], 2, 4, axis=1)
    assert torch.equal(turned[0, :, 0, 0], first)


def test_tables_along_another_axis_are_told_apart() -> None:
    made = SSM().plan(TokenView(X[:1], GRID), 12)
    with pytest.raises(
        PlanError, match=f"have 1 rows along axis 0, fewer than the {TOKENS} image tokens; check `rot"
    ):
        rotary_ops.gather_rotary(made, torch.zeros(1, TOKENS, 4))


def test_a_table_may_be_cut_instead() -> None:
    made = SSM().plan(TokenView(X[:1], GRID), 12)
    table = tables(5 + TOKENS)[0]
    assert torch.equal(rotary_ops.cut_rotary(made, table), table[: 5 + TOKENS - 12])
    assert not torch.equal(rotary_ops.cut_rotary(made, table), rotary_ops.gather_rotary(made, table))


def test_parts_of_a_linear_layer_add_up() -> None:
    linear, parts = nn.Linear(3 + 5 + WIDTH, 4), [torch.randn(2, 6, w) for w in (3, 5, WIDTH)]
    total = sum(ops.linear_part(linear, p, parts[:i], i == 0) for i, p in enumerate(parts))
    torch.testing.assert_close(total, linear(torch.cat(parts, -1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("start", "image_length"), [(3, 4), (0, 4), (0, 9), (5, 4)])
def test_the_prompt_mask_is_on_text_keys_only(start: int, image_length: int) -> None:
    call = Calls(RULES).make(prompt_bias=torch.tensor(0.5))
    tokens = torch.zeros(1, dtype=torch.bfloat16)
    mask = ops.prompt_mask(BlockContext(call, 0, {}), tokens, start, image_length, 9)
    expected = [0.0 if start <= i < start + image_length else 0.5 for i in range(9)]
    assert mask.shape == (1, 1, 1, 9)
    assert mask.dtype == torch.bfloat16
    assert mask.flatten().tolist() == expected
