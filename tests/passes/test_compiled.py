"""Generated code under torch.compile: one graph, no break, the same result. One small block per family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdtm_fx.capture.arguments import Signature, flatten
from sdtm_fx.phase import Phase
from sdtm_fx.rewriting.codegen import graph_function
from sdtm_fx.runtime.call import BlockContext, Call
from tests.passes.blocks import (
    CrossBlock,
    DualBlock,
    GatedBlock,
    ParallelBlock,
    RotaryBlock,
    condition,
    image,
    tables,
    text,
)
from tests.passes.working import (
    ATTN,
    DUAL,
    FF,
    PARALLEL,
    REFRESH,
    REUSE,
    Calls,
    Worked,
    close,
    recipe,
    work_on,
)

pytestmark = pytest.mark.compile

X, T, C = image(), text(), condition()
ROTARY = ATTN | {"prefix": "encoder_hidden_states", "rotary": "rotary"}
CROSS = [ATTN | {"id": "attn1", "match": "attn1"}, FF]
KEYS = {"merge": "keys"}
WEIGHED = {"plan": {"proportional": True}}
IDM = {"name": "idm", "probe_queries": None}
BATCH = {"plan": {"share": ["batch"]}}


def compiled(worked: Worked) -> Callable[..., Any]:
    torch.compiler.reset()
    function = graph_function(worked.work.graph, worked.block, "worked")
    return torch.compile(function, fullgraph=True, backend="eager")


def leaves_of(block: nn.Module, args: tuple[Any, ...]) -> list[Any]:
    return flatten(Signature.of(type(block).forward).bind(args, {}))[1]


@pytest.mark.parametrize(
    ("block", "args", "rules"),
    [
        (GatedBlock(), (X, C), recipe([ATTN, FF])),
        (ParallelBlock(), (X, T, C), recipe(PARALLEL, merged=["mlp"])),
        (DualBlock(), (X, T, C), recipe(DUAL)),
        (CrossBlock(), (X, T, C), recipe(CROSS)),
        (RotaryBlock(), (X, T, C, tables()), recipe([ROTARY], **BATCH)),
        (DualBlock(), (X, T, C), recipe(DUAL, merged=["ff"], method=IDM, prompt={"start": 2.0})),
        (DualBlock(), (X, T, C), recipe([DUAL[0] | KEYS, DUAL[1] | KEYS, FF], **WEIGHED)),
        (RotaryBlock(), (X, T, C, tables()), recipe([ROTARY | KEYS], method={"name": "todo"})),
    ],
    ids=["gated", "parallel", "dual", "cross", "rotary", "read and weighed", "keys", "keys behind rotary"],
)
def test_a_merging_block_is_one_graph(block: nn.Module, args: tuple[Any, ...], rules: Any) -> None:
    worked = work_on(block, args, rules)
    function, leaves = compiled(worked), leaves_of(block, args)
    expected = worked.run(*args, call=Calls(rules).make(remove=12))
    with torch.no_grad():
        close(function(block, BlockContext(Calls(rules).make(remove=12), 0, {}), *leaves), expected)


def count_graphs(run: Callable[[], None]) -> int:
    torch._dynamo.utils.counters.clear()
    run()
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_storing_and_blending_do_not_compile_again_as_steps_go_by() -> None:
    rules, block = recipe([FF], reuse=REUSE), GatedBlock()
    store, blend = (work_on(block, (X, C), rules, **k) for k in ({"variant": REFRESH}, {}))
    state = Calls(rules).state
    calls = Calls(rules, state)
    torch.compiler.reset()
    functions = [
        torch.compile(graph_function(w.work.graph, block, "f"), fullgraph=True, backend="eager")
        for w in (store, blend)
    ]

    def step(index: int, call: Call) -> Any:
        with torch.no_grad():
            return functions[index](block, BlockContext(call, 0, {}), X, C)

    def steps(first: int) -> None:
        for number in range(first, first + 4, 2):
            if state.set_refreshed(number):
                state.shift()
            step(0, calls.make(variant=REFRESH))
            state.set_slope(number + 1, X.device)
            step(1, calls.make(phase=Phase(0, 12, refresh=False)))

    steps(0)
    assert count_graphs(lambda: steps(4)) == 0


def test_the_compiled_result_is_the_eager_one_through_a_refresh() -> None:
    rules, block = recipe([ATTN, FF], reuse=REUSE), GatedBlock()
    store, blend = (work_on(block, (X, C), rules, **k) for k in ({"variant": REFRESH}, {}))
    results = []
    for compile_it in (False, True):
        calls = Calls(rules)
        outputs = []
        for worked, call in ((store, calls.make(variant=REFRESH)), (blend, calls.make(remove=12))):
            if call.variant != REFRESH:
                calls.state.set_slope(1, X.device)
            function = compiled(worked) if compile_it else graph_function(worked.work.graph, block, "f")
            with torch.no_grad():
                outputs.append(function(block, BlockContext(call, 0, {}), X, C))
        results.append(outputs)
    close(results[0], results[1])
