"""Models of several blocks, recipes with spans, and what a span computes, written out with hooks on the plain model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import sdtm_fx
from sdtm_fx.base_plan import Plan
from tests.pipelines import randomize, tiny_flux_transformer, tiny_sd3_transformer
from tests.user.cases import FLUX_DEV, SD3, Case

GRID, TOKENS, KEPT = (8, 8), 64, 34
"""Ten windows of four become ten tokens."""
SPAN = {"id": "body", "first": 1, "last": -2, "output": 1}
FLUX_SPAN = {**SPAN, "rotary": "image_rotary_emb"}
CONSTANT = {
    "reuse": None,
    "keep_dense.every_steps": None,
    "ratio": {"curve": "constant", "start": 30 / 64},
    "plan.share": ["batch"],
}
SSM = {"name": "ssm", "age_weight": 0.0}
TOMA = {"name": "toma", "region": "tile", "tile": (2, 2), "temperature": 0.1}


def sd3(layers: int = 4) -> nn.Module:
    return randomize(tiny_sd3_transformer(layers=layers), seed=3, scale=0.15)


def flux() -> nn.Module:
    """Two double and two single blocks."""
    return randomize(tiny_flux_transformer(layers=2, single_layers=2), seed=3, scale=0.15)


def recipe(case: Case, *spans: Mapping[str, Any], **changes: Any) -> sdtm_fx.Recipe:
    """Both stages merge by the spans alone."""
    method, names = changes.pop("method", SSM), [span["id"] for span in spans]
    stages = {"sites": names, "method": method}
    base = {**CONSTANT, "spans": list(spans), "stages.structure": stages, "stages.detail": stages}
    return case.recipe(base).override(changes)


@dataclass(frozen=True)
class Kind:
    """A family with spans."""

    case: Case
    span: Mapping[str, Any]

    def model(self) -> nn.Module:
        return sd3() if self.case is SD3 else flux()

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        lists = ("transformer_blocks", "single_transformer_blocks")
        return [block for name in lists for block in getattr(model, name, ())]


KINDS = [Kind(SD3, SPAN), Kind(FLUX_DEV, FLUX_SPAN)]


@contextmanager
def by_hand(
    blocks: list[nn.Module],
    first: int,
    last: int,
    *,
    enter: str,
    residual: str,
    method: Mapping[str, Any] = SSM,
) -> Iterator[list[Plan]]:
    """A span on a model that is not rewritten; yields the plan of the call in progress."""
    plans: list[Plan] = []
    options: dict[str, Any] = {key: value for key, value in method.items() if key != "name"}
    streams: list[torch.Tensor] = []

    def merge(x: torch.Tensor) -> torch.Tensor:
        plan = sdtm_fx.plan_merge(
            method["name"], x.mean(0, keepdim=True), grid=GRID, remove=TOKENS - KEPT, **options
        )
        plans[:], streams[:] = [plan], [x]
        return plan.merge(x)

    def before(number: int) -> Any:
        def hook(block: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            if number == first:
                kwargs["hidden_states"] = merge(kwargs["hidden_states"])
            tables = kwargs.get("image_rotary_emb")
            if tables is not None:
                text = tables[0].shape[0] - TOKENS
                rows = torch.cat([torch.arange(text), plans[0].positions[0] + text])
                kwargs["image_rotary_emb"] = tuple(table[rows] for table in tables)
            return args, kwargs

        return hook

    def behind_first(block: nn.Module, args: Any, output: Any) -> Any:
        return output[0], merge(output[1])

    def behind_last(block: nn.Module, args: Any, output: Any) -> Any:
        text, y = output
        if residual == "merged":
            return text, plans[0].unmerge(y)
        return text, streams[0] + plans[0].unmerge(y - plans[0].merge(streams[0]))

    start = first if enter == "start" else first + 1
    handles = [
        blocks[n].register_forward_pre_hook(before(n), with_kwargs=True) for n in range(start, last + 1)
    ]
    if enter == "end":
        handles.append(blocks[first].register_forward_hook(behind_first))
    handles.append(blocks[last].register_forward_hook(behind_last))
    try:
        yield plans
    finally:
        for handle in handles:
            handle.remove()
