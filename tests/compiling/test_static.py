"""Inside a phase: nothing that waits for the host, and an unmerge that is one gather in the residual addition."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.utils import run_and_get_code
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

import sdtm_fx
from sdtm_fx.phase import Phase
from tests.compiling.counting import FEW, features_of
from tests.user.cases import (
    FLUX_ATTENTION,
    FLUX_DEV,
    FLUX_SCHNELL,
    SD3,
    SD35_MEDIUM,
    Case,
    moving,
    run_steps,
    the_rewriting,
)

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


def shipped_case(name: str) -> Case:
    """A small model for a shipped recipe, and the recipe as it is but for its numbers of blocks."""
    if "flux" not in name:
        model = SD35_MEDIUM if "3.5-medium" in name else SD3
    else:
        model = FLUX_SCHNELL if "schnell" in name else FLUX_DEV
    return replace(model, name=name, recipe_name=name, pinned={})


@pytest.mark.parametrize("case", [SD3, SD35_MEDIUM, FLUX_DEV, FLUX_ATTENTION], ids=lambda case: case.name)
def test_no_compiled_phase_waits_for_the_host(case: Case) -> None:
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, _: object) -> GraphModule:
        graphs.append(graph)
        return graph

    model, inputs = case.model(), case.inputs()
    sdtm_fx.rewrite(model, case.recipe(FEW))
    sdtm_fx.compile(model, backend=aot_autograd(fw_compiler=keep), dynamic=False)
    run_steps(model, inputs)
    assert len(graphs) >= 4
    for graph in graphs:
        check_static(graph)


# The methods of baselines are compiled one by one elsewhere; the small models here have too few blocks for them.
FAMILIES = {"SD3Transformer2DModel", "FluxTransformer2DModel"}  # what small cases there are of
OWN = [
    name
    for name in sdtm_fx.list_recipes()
    if not name.startswith("baselines/") and set(sdtm_fx.load_recipe(name).model) <= FAMILIES
]


@pytest.mark.parametrize("name", OWN)
def test_no_phase_of_a_shipped_recipe_waits_for_the_host(name: str) -> None:
    """Every operation of every phase, told without the compiler, which takes a minute a recipe."""
    case = shipped_case(name)
    model, inputs = case.model(), case.inputs()
    sdtm_fx.rewrite(model, case.recipe(FEW))
    schedule = the_rewriting(model).runtime.schedule(8, (8, 8), 5)
    traced: set[Phase] = set()
    the_rewriting(model).runtime.grid.read(
        inputs
    )  # ids wait for the host, once a generation and before any phase
    with torch.no_grad(), sdtm_fx.steps(model, 8) as clock:
        for step in range(8):
            latent = moving(inputs, step, 8)["hidden_states"]
            phase = schedule.phase(step)
            if phase in traced:
                model(**{**inputs, "hidden_states": latent})
            else:
                graph = make_fx(lambda x: model(**{**inputs, "hidden_states": x}))(latent)
                assert len(graph.graph.nodes) > 50
                check_static(graph)
                traced.add(phase)
            clock.advance()
    assert traced == set(schedule.phases)


def check_static(graph: GraphModule) -> None:
    """Fail where a node waits for the host, picks by a mask, or has a shape that is not fixed."""
    for node in (n for n in graph.graph.nodes if n.op == "call_function"):
        name = str(node.target)
        assert not any(word in name for word in WAITING), name
        value = node.meta.get("val")
        sizes = [*value.shape] if isinstance(value, torch.Tensor) else []
        assert all(isinstance(size, int) for size in sizes), f"{name}: {sizes}"
        for index in _indices(node):
            assert index.meta["val"].dtype != torch.bool, f"{name} picks by a mask"


@pytest.mark.parametrize(
    "run",
    [lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.masked_select(x > 0), torch.rand_like],
    ids=["mask", "nonzero", "masked_select", "rand"],
)
def test_the_check_finds_what_it_looks_for(run: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(AssertionError):
        check_static(make_fx(run)(torch.arange(4.0)))


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


# Sizes in the code of `merged_block_code`: 2 samples of 64 image tokens, 33 of them removed; 16 channels.
FULL, MERGED = "(2, 64, 16)", 31


@pytest.mark.slow
def test_an_unmerge_is_one_gather_inside_the_residual_addition() -> None:
    plain = {"reuse": None, "keep_dense": {"first_steps": 1, "last_steps": 0, "every_steps": None}}
    codes = merged_block_code(plain)
    assert len(codes) == SD3.structures
    for code in codes:
        body = code[code.rindex("def call(") :]
        kernels = re.findall(r"(cpp_fused_\w+)\(", body)
        gathers = [name for name in kernels if gathers_slots(code, name)]
        # Behind attention: gather, residual, norm and the next merge; behind the feed-forward: gather and residual.
        assert len(gathers) == 2
        assert all("add" in name.split("_") for name in gathers), kernels
        # Full-size tensors that merging needs: the normed tokens in front of each of the two merges. Residuals are
        # added in place of the first, and the tokens that come back are nowhere written out.
        assert body.count(f"empty_strided_cpu({FULL}") == 2
        products = [match.end() for match in re.finditer(r"extern_kernels\.\w+\(", body)]
        behind = body[products[-1] :]
        assert "empty_strided" not in behind
        (last,) = re.findall(r"(cpp_fused_\w+)\(", behind)
        assert last == gathers[-1]
        assert outputs(code, last) == ["float*"]


def gathers_slots(code: str, kernel: str) -> bool:
    """Whether a kernel reads rows by numbers that it checks to be slots."""
    return f"< {MERGED}L" in source(code, kernel) and "index out of bounds" in source(code, kernel)


def outputs(code: str, kernel: str) -> list[str]:
    """The floating arguments that a kernel writes."""
    arguments = re.search(rf"^{kernel} = async_compile\.cpp_pybinding\(\[(.*?)\]", code, re.MULTILINE)
    assert arguments is not None
    found = [argument.strip(" '") for argument in arguments[1].split(",")]
    return [argument for argument in found if argument == "float*"]


def source(code: str, kernel: str) -> str:
    """The C++ of a kernel."""
    found = re.search(rf"^{kernel} = async_compile\.cpp_pybinding\(.*?r'''(.*?)'''\)", code, re.M | re.S)
    assert found is not None
    return found[1]
