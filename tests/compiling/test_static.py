"""Inside a phase: nothing that waits for the host, and an unmerge that is one gather in the residual addition."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.utils import run_and_get_code
from torch.fx import GraphModule

import sdtm_fx
from tests.compiling.counting import FEW, features_of
from tests.user.cases import FLUX_ATTENTION, FLUX_DEV, SD3, SD35_MEDIUM, Case, run_steps, the_rewriting

pytestmark = pytest.mark.compile

# What makes the host wait for a device, and what depends on values where shapes should be fixed.
WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique",
    "rand",
    "scatter_add",
    "scatter_reduce",
)


@pytest.mark.parametrize("case", [SD3, SD35_MEDIUM, FLUX_DEV, FLUX_ATTENTION], ids=lambda case: case.name)
def test_no_phase_waits_for_the_host(case: Case) -> None:
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, _: object) -> GraphModule:
        graphs.append(graph)
        return graph

    model, inputs = case.model(), case.inputs()
    sdtm_fx.rewrite(model, case.recipe(FEW))
    sdtm_fx.compile(model, backend=aot_autograd(fw_compiler=keep), dynamic=False)
    run_steps(model, inputs)
    assert len(graphs) >= 4
    for node in (n for graph in graphs for n in graph.graph.nodes if n.op == "call_function"):
        name = str(node.target)
        assert not any(word in name for word in WAITING), name
        value = node.meta.get("val")
        sizes = [*value.shape] if isinstance(value, torch.Tensor) else []
        assert all(isinstance(size, int) for size in sizes), f"{name}: {sizes}"
        for index in _indices(node):
            assert index.meta["val"].dtype != torch.bool, f"{name} picks by a mask"


def _indices(node: torch.fx.Node) -> list[torch.fx.Node]:
    if "aten.index." not in str(node.target) and "index_put" not in str(node.target):
        return []
    return [i for i in node.args[1] if i is not None]  # type: ignore[union-attr]


def test_kept_state_stays_where_it_is() -> None:
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(
        model,
        SD3.recipe(
            {**FEW, "plan.every_steps": 2, "keep_dense.first_steps": 2, "keep_dense.every_steps": None}
        ),
    )
    sdtm_fx.compile(model, backend="eager")
    run_steps(model, inputs)

    def places() -> list[int]:
        (branch,) = the_rewriting(model).runtime.state.branches.values()
        plans = [t for p in branch.plans.values() for t in (p.assign, p.positions, p.order, p.starts)]
        scalars = [branch.slope, branch.salt]
        kept: list[Any] = [*features_of(model), *branch.ages.values(), *plans, *scalars]
        return [t.data_ptr() for t in kept]

    before = places()
    assert len(before) > 8
    run_steps(model, inputs)
    assert places() == before


def merged_block_code(changes: dict[str, Any]) -> list[str]:
    """The code that inductor makes of a merging block, one string per structure."""
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe({**FEW, "plan.share": [], **changes}))
    sdtm_fx.compile(model, regional=True)
    with sdtm_fx.steps(model, 8) as clock:
        clock.step = 1
        _, codes = run_and_get_code(lambda: model(**inputs))
    return [code for code in codes if "argsort" in code or "sort" in code]


@pytest.mark.slow
def test_an_unmerge_is_one_gather_inside_the_residual_addition() -> None:
    plain = {"reuse": None, "keep_dense": {"first_steps": 1, "last_steps": 0, "every_steps": None}}
    codes = merged_block_code(plain)
    assert codes
    for code in codes:
        body = code[code.rindex("def call(") :]
        kernels = re.findall(r"cpp_fused_(\w+?)_\d+\(", body)
        gathers = [name for name in kernels if "index" in name.split("_")]
        # Behind attention: gather, residual, norm and the next merge; behind the feed-forward: gather and residual.
        assert all("add" in name.split("_") for name in gathers), kernels
        products = [match.end() for match in re.finditer(r"extern_kernels\.\w+\(", body)]
        behind = body[products[-1] :]
        last = re.findall(r"cpp_fused_(\w+?)_\d+\(", behind)
        assert len(last) == 1, last
        assert {"add", "index"} <= set(last[0].split("_"))
