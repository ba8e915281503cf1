"""Running passes over one block, and the result on real tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sdtm_fx.capture.arguments import Signature, flatten
from sdtm_fx.capture.blocks import capture_block
from sdtm_fx.passes import PASSES
from sdtm_fx.phase import Phase
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.codegen import copy_graph, graph_function
from sdtm_fx.rewriting.runner import run_passes
from sdtm_fx.rewriting.spans import SpanPlace, sites_inside
from sdtm_fx.rewriting.work import BlockWork, Pass, SitePlace
from sdtm_fx.runtime.call import BlockContext, Call, OpenSpan, OpenStream, Variant
from sdtm_fx.runtime.state import BranchState
from tests.passes.blocks import GRID

# Matrix products over fewer rows may add in another order; values here are of size one.
SHAPES_CHANGE = 1e-5

MERGE, REFRESH = Variant(stage=0), Variant(stage=None, refresh=0)
SSM = {"name": "ssm", "window": [2, 2]}

ATTN = {"id": "attn", "kind": "attention", "match": "attn", "input": "hidden_states"}
FF = {"id": "ff", "kind": "feed_forward", "match": "ff"}
PARALLEL = [
    ATTN | {"prefix": "encoder_hidden_states"},
    {"id": "mlp", "kind": "feed_forward", "match": "proj_mlp", "prefix": "encoder_hidden_states"},
]
DUAL = [ATTN | {"output": 0}, ATTN | {"id": "attn2", "match": "attn2"}, FF]


def recipe(sites: Sequence[dict[str, Any]], merged: Sequence[str] | None = None, **more: Any) -> Recipe:
    """A recipe of one stage; `match` of a site is the path inside the block."""
    stage = {"method": more.pop("method", SSM), "reduce": more.pop("reduce", None)}
    stage["inside"] = more.pop("inside", None)
    data: dict[str, Any] = {
        "version": 1,
        "name": "toy",
        "model": ["Block"],
        "tokens": {"grid": {"height": GRID[0], "width": GRID[1]}},
        "sites": list(sites),
        "stages": [
            {
                "name": "all",
                "until": 1.0,
                "sites": list(merged or [s["id"] for s in sites]),
                **stage,
            }
        ],
        "ratio": {"curve": "constant", "start": 0.5},
        "keep_dense": {"every_steps": 3},
    }
    return Recipe.from_mapping(data | more)


REUSE = {"order": 1, "weight": 0.1}


@dataclass
class Worked:
    """A block after some passes."""

    work: BlockWork
    block: nn.Module
    applied: dict[str, int]

    def count(self, function: Any) -> int:
        """How many calls of a function, a method (by name) or a module (by path) the graph has."""
        return sum(n.target == function for n in self.work.graph.nodes if n.op.startswith("call"))

    def inputs_of(self, module: str) -> tuple[Any, ...]:
        """What the call of a module is given: the targets of its operands."""
        (node,) = [n for n in self.work.graph.nodes if n.op == "call_module" and n.target == module]
        return tuple(n.target for n in node.all_input_nodes)

    def run(
        self,
        *args: Any,
        call: Call,
        planned: dict[int, object] | None = None,
        block: nn.Module | None = None,
        spans: dict[str, OpenSpan | OpenStream] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the generated code."""
        block = self.block if block is None else block
        _, leaves = flatten(Signature.of(type(block).forward).bind(args, kwargs))
        function = graph_function(self.work.graph, block, "worked")
        with torch.no_grad():
            context = BlockContext(
                call, 0, {} if planned is None else planned, spans={} if spans is None else spans
            )
            return function(block, context, *leaves)

    def nodes(self) -> Counter[str]:
        """The multiset of what the graph calls."""
        return Counter(str(n.target) for n in self.work.graph.nodes if n.op.startswith("call"))


def capture_work(
    block: nn.Module,
    args: tuple[Any, ...],
    rules: Recipe,
    variant: Variant = MERGE,
    span: SpanPlace | None = None,
    forecast: SpanPlace | None = None,
    **kwargs: Any,
) -> BlockWork:
    """Capture a block; the sites of the recipe are paths inside it, and its place is one in the first span."""
    key, leaves = flatten(Signature.of(type(block).forward).bind(args, kwargs))
    places = tuple(SitePlace(i, s.match, s.match) for i, s in enumerate(rules.sites))
    stage = variant.stage if variant.stage is not None else variant.refresh
    wanted = rules.stages[stage if stage is not None else variant.measure or 0].sites
    if span is not None:
        wanted = sites_inside(rules, variant.stage) if span.is_short(rules.spans[0]) else ()
    return BlockWork(
        graph=copy_graph(capture_block(block, key, leaves).graph),
        block=block,
        recipe=rules,
        variant=variant,
        places=tuple(p for p in places if rules.sites[p.site_index].id in wanted),
        attention_places=tuple(p for p in places if rules.sites[p.site_index].kind == "attention"),
        span=span,
        forecast=forecast,
    )


def work_on(
    block: nn.Module,
    args: tuple[Any, ...],
    rules: Recipe,
    variant: Variant = MERGE,
    passes: Sequence[Pass] = PASSES,
    **kwargs: Any,
) -> Worked:
    """Capture a block and run passes over it; the block must not change."""
    before = {k: (id(v), v._version) for k, v in block.state_dict(keep_vars=True).items()}
    modules = dict(block.named_modules())
    work = capture_work(block, args, rules, variant, **kwargs)
    applied = run_passes(work, passes)
    work.graph.lint()
    assert {k: (id(v), v._version) for k, v in block.state_dict(keep_vars=True).items()} == before
    assert dict(block.named_modules()) == modules
    return Worked(work, block, applied)


def without(*names: str) -> tuple[Pass, ...]:
    """All passes but some."""
    return tuple(p for p in PASSES if p.name not in names)


def up_to(name: str) -> tuple[Pass, ...]:
    """All passes up to one, which is the last."""
    return PASSES[: [p.name for p in PASSES].index(name) + 1]


@dataclass
class Calls:
    """Makes the call that blocks see, with state that lasts over calls."""

    rules: Recipe
    state: BranchState = field(default_factory=BranchState)

    def make(self, remove: int = 12, variant: Variant = MERGE, **changes: Any) -> Call:
        """One call; `remove` of the 24 tokens go."""
        index = variant.stage if variant.stage is not None else variant.refresh or variant.measure or 0
        reuse, share = self.rules.reuse, self.rules.plan.share
        values: dict[str, Any] = {
            "variant": variant,
            "phase": Phase(variant.stage, remove, refresh=variant.refresh is not None),
            "method": self.rules.stages[index].method,
            "grid": GRID,
            "halves": 1,
            "share_batch": "batch" in share,
            "keep_plans": self.rules.plan.every_steps > 1,
            "every_layers": self.rules.plan.every_layers,
            "one_age_counter": self.rules.plan.ages == "call",
            "advance_ages": True,
            "state": self.state,
            "forecast_order": reuse.order if reuse else 0,
            "forecast_weight": reuse.weight if reuse else 1.0,
            "threshold": None,
            "salt": None,
            "prompt_bias": torch.zeros(()),
            "reduce": self.rules.stages[0].reduce,
            "updates_tokens": reuse is not None and reuse.update == "tokens",
        }
        return Call(**(values | changes))


def close(one: Any, other: Any, tolerance: float = SHAPES_CHANGE) -> None:
    """Two results agree up to the order of sums."""
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
