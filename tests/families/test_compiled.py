"""Families compiled without a graph break, model and blocks in one graph for each phase where the model allows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import sdtm_fx
from sdtm_fx.errors import CaptureError
from tests.compiling.counting import graph_breaks
from tests.families.cases import FAMILIES, FamilyCase, run
from tests.user.cases import all_equal

pytestmark = pytest.mark.compile


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Every test starts without compiled code."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def named(name: str) -> FamilyCase:
    return next(case for case in FAMILIES if case.name == name)


@pytest.mark.slow
def test_a_rewritten_model_compiles_without_a_graph_break(case: FamilyCase) -> None:
    check_compiled(case, "eager")


def test_the_cheapest_compiles_without_a_graph_break() -> None:
    check_compiled(named("dit-xl-2"), "eager")


@pytest.mark.slow
def test_the_cheapest_is_what_it_was_in_inductor() -> None:
    check_compiled(named("dit-xl-2"), "inductor")


def test_a_model_that_does_not_compile_as_a_whole_says_what_does() -> None:
    case = named("lumina-2")
    model, inputs = case.model(), case.call(2, (8, 8))
    sdtm_fx.rewrite(model, case.recipe(0.5))
    sdtm_fx.compile(model, backend="eager")
    with pytest.raises(
        CaptureError, match=r"does not compile as a whole, rewritten or not; accepted: .*regional=True"
    ):
        run(case, model, inputs, 1)


def check_compiled(case: FamilyCase, backend: str) -> None:
    model, inputs = case.model(), case.call(2, (8, 8))
    sdtm_fx.rewrite(model, case.recipe(0.5))
    eager = run(case, model, inputs, 2)
    sdtm_fx.compile(model, backend=backend, fullgraph=True, regional=not case.whole)
    compiled = run(case, model, inputs, 2)
    if backend == "eager":
        assert all_equal(compiled, eager)
    else:
        for mine, theirs in zip(compiled, eager, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not graph_breaks()
