"""ToMA against its formulas, evaluated densely and one step at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdtm_fx.base_plan import Unmerging
from sdtm_fx.linear_plan import LinearPlan
from sdtm_fx.methods import SSM, TokenView, ToMA
from sdtm_fx.methods.facility import facility_location
from sdtm_fx.windows import Windows

GRID, TOKENS = (8, 6), 48
X = torch.randn(TOKENS, 8, generator=torch.Generator().manual_seed(3))
Y = torch.randn(TOKENS, 5, generator=torch.Generator().manual_seed(4))


def plan_of(grid: tuple[int, int] = GRID, remove: int = 24, x: Tensor = X, **options: Any) -> LinearPlan:
    plan = ToMA(**options).plan(TokenView(x[None], grid), remove)
    assert isinstance(plan, LinearPlan)
    return plan


def greedy(x: Tensor, count: int) -> list[int]:
    """Algorithm 1 with the gain of the appendix, in plain loops."""
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    table, chosen = (unit @ unit.mT).tolist(), list[int]()

    def value(tokens: list[int]) -> float:
        return sum(max(row[j] for j in tokens) for row in table)

    for _ in range(count):
        left = [v for v in range(len(x)) if v not in chosen]
        gains = [value([*chosen, v]) for v in left]
        chosen.append(left[next(i for i, g in enumerate(gains) if g >= max(gains) - 1e-6 * len(x))])
    return chosen


def formulas(x: Tensor, destinations: list[int], temperature: float) -> tuple[Tensor, Tensor]:
    """A and A with normalised rows, equation 6, by entries."""
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    a = torch.zeros(len(destinations), len(x), dtype=torch.float64)
    for i in range(len(x)):
        logits = torch.stack([unit[j] @ unit[i] for j in destinations]) / temperature
        a[:, i] = (logits - logits.max()).exp() / (logits - logits.max()).exp().sum()
    return a, a / a.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.001])
def test_the_global_form_is_the_formulas(temperature: float) -> None:
    plan = plan_of(select="global", temperature=temperature)
    destinations = greedy(X, TOKENS // 2)
    assert plan.positions[0].tolist() == destinations
    a, normalised = formulas(X, destinations, temperature)
    merged = normalised @ Y.double()
    torch.testing.assert_close(plan.merge(Y[None])[0].double(), merged, atol=1e-3, rtol=0)
    back = plan.unmerge(merged[None].float())[0].double()
    torch.testing.assert_close(back, a.mT @ merged, atol=1e-3, rtol=0)


@pytest.mark.parametrize("unmerge", ["transpose", "pseudo_inverse"])
@pytest.mark.parametrize(("region", "shape"), [("tile", (4, 3)), ("stripe", (2, 6))])
def test_every_region_is_the_global_form_of_its_tokens(
    region: str, shape: tuple[int, int], unmerge: str
) -> None:
    options: dict[str, Any] = {"temperature": 0.1, "unmerge": unmerge}
    plan = plan_of(region=region, tile=shape, stripes=4, **options)
    slots = 6
    for index, tokens in enumerate(Windows(GRID, shape).tokens(torch.device("cpu"))):
        alone = plan_of(shape, slots, X[tokens], region="global", select="global", **options)
        mine = slice(index * slots, (index + 1) * slots)
        assert torch.equal(plan.positions[0, mine], tokens[alone.positions[0]])
        torch.testing.assert_close(plan.merge(Y[None])[:, mine], alone.merge(Y[None, tokens]))
        slots_of = torch.randn(1, plan.kept, 3)
        torch.testing.assert_close(
            plan.unmerge(slots_of)[:, tokens], alone.unmerge(slots_of[:, mine]), atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize(("select", "shape"), [("tile", (4, 3)), ("stripe", (2, 6))])
def test_destinations_of_regions_take_tokens_from_anywhere(select: str, shape: tuple[int, int]) -> None:
    plan = plan_of(select=select, tile=shape, stripes=4, temperature=0.2)
    assert plan.weights.shape == (1, 1, 24, TOKENS)
    chosen = [
        int(tokens[place])
        for tokens in Windows(GRID, shape).tokens(torch.device("cpu"))
        for place in greedy(X[tokens], 6)
    ]
    assert plan.positions[0].tolist() == chosen
    _, normalised = formulas(X, chosen, 0.2)
    torch.testing.assert_close(plan.merge(Y[None])[0].double(), normalised @ Y.double(), atol=1e-4, rtol=0)


def test_tiles_are_the_default_choice_and_regions_that_of_themselves() -> None:
    for written, spelled in (
        (ToMA(), ToMA(region="global", select="tile")),
        (ToMA(region="stripe"), ToMA(region="stripe", select="stripe")),
    ):
        view = TokenView(X[None], GRID)
        pair = (m.plan(view, 20).tensors() for m in (written, spelled))
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("region", ["global", "tile", "stripe"])
def test_what_regions_do_not_cover_stays_as_it_is(region: str) -> None:
    grid = (7, 5)
    x, options = torch.randn(35, 8), {"region": region, "tile": (2, 2), "stripes": 4}
    if region == "global":
        options["select"] = "tile"
    plan = plan_of(grid, 9, x, **options)
    numbers = plan.regions.numbers(torch.device("cpu")).flatten()
    left = sorted(set(range(35)) - set(numbers.tolist()))
    assert len(left) == (3 if region == "stripe" else 11)
    assert plan.positions[0, -len(left) :].tolist() == left
    assert not plan.merged_mask[:, left].any()
    y = torch.randn(1, 35, 3)
    assert torch.equal(plan.merge(y)[:, -len(left) :], y[:, left])
    assert torch.equal(plan.unmerge(plan.merge(y))[:, left], y[:, left])
    # Nor do they have a share in any slot.
    other = y.clone()
    other[:, left] += 100
    assert torch.equal(plan.merge(y)[:, : -len(left)], plan.merge(other)[:, : -len(left)])


@pytest.mark.parametrize(
    "method",
    [ToMA(tile=(4, 3)), ToMA(region="tile", tile=(4, 3)), ToMA(region="stripe", stripes=3)],
    ids=repr,
)
@pytest.mark.parametrize("remove", [1, 13, 24])
def test_kept_destinations_weigh_tokens_anew(method: ToMA, remove: int) -> None:
    old, new = (TokenView(torch.randn(2, TOKENS, 8), GRID) for _ in range(2))
    former = method.plan(old, remove)
    plan = method.replan(new, remove, former)
    assert isinstance(plan, LinearPlan)
    assert torch.equal(plan.positions, former.positions)
    assert not torch.equal(plan.weights, former.weights)
    unchanged = method.replan(old, remove, former)
    assert all(torch.equal(a, b) for a, b in zip(unchanged.tensors(), former.tensors(), strict=True))
    nothing = method.replan(new, 0, method.plan(old, 0))
    assert nothing.removed == 0


def test_equal_tokens_give_distinct_destinations() -> None:
    plan = plan_of(x=torch.ones(TOKENS, 8), select="global")
    assert sorted(plan.positions[0].tolist()) == list(range(24))


def test_what_unmerging_is_follows_from_the_options() -> None:
    assert ToMA().unmerging() is Unmerging.AVERAGE
    assert ToMA(unmerge="pseudo_inverse").unmerging() is Unmerging.LINEAR
    assert SSM().unmerging() is Unmerging.COPY


def test_chosen_tokens_are_those_of_facility_location() -> None:
    unit = torch.nn.functional.normalize(X, dim=1)
    assert facility_location(unit @ unit.mT, 24).tolist() == greedy(X, 24)
