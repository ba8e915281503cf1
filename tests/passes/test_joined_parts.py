"""Two branches in one projection: joined where stages read both, kept apart where one reads one of them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.serving import dense_variant, parts_read_alone, variants_of
from sdtm_fx.runtime import ops
from sdtm_fx.runtime.call import Variant
from tests.passes.blocks import ParallelBlock, condition, image, text
from tests.passes.working import PARALLEL, REUSE, SSM, Calls, Worked, close, recipe, work_on

X, T, C = image(), text(), condition()
SKIP, AVERAGE = {"name": "skip"}, {"name": "toma"}
EARLY, LATE, STORE = Variant(stage=0), Variant(stage=1), Variant(stage=None, refresh=1)
BOTH = ["attn", "mlp"]


def staged(*stages: tuple[list[str], dict[str, Any]], **more: Any) -> Recipe:
    """A recipe of these stages, each with sites and a method."""
    spans = [
        {"name": f"stage-{i}", "until": (i + 1) / len(stages), "sites": sites, "method": method}
        for i, (sites, method) in enumerate(stages)
    ]
    return recipe(PARALLEL, stages=spans, **{"reuse": REUSE, **more})


FLUX = staged((["mlp"], SSM), (BOTH, SKIP))
"""As flux.1-dev: the MLP merges early, both branches are forecast late."""


def graph(variant: Variant, rules: Recipe = FLUX, block: nn.Module | None = None) -> Worked:
    return work_on(ParallelBlock() if block is None else block, (X, T, C), rules, variant=variant)


def names(worked: Worked, *functions: Any) -> list[str]:
    return sorted(str(n.args[-1]) for n in worked.work.calls(*functions))


# -- what dense steps store for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "refresh"),
    [
        ([(["mlp"], SSM), (BOTH, SKIP)], [1, 1]),
        ([(BOTH, SSM), (BOTH, SKIP)], [1, 1]),  # what is forecast beside them is stored, too
        ([(["mlp"], SSM), (["mlp"], SSM), (BOTH, SKIP)], [2, 2, 2]),
        ([(BOTH, SKIP), (["mlp"], SSM), (BOTH, SKIP)], [0, 0, 0]),
        ([(["mlp"], SSM), (BOTH, SSM)], [0, 1]),  # a stage that merges stores for itself
        ([(["mlp"], SSM), (["mlp"], SSM)], [0, 0]),
        ([(BOTH, SSM), (["mlp"], SKIP)], [0, 1]),  # not all that the first one reads
        ([(BOTH, SKIP), (["mlp"], SSM)], [0, 1]),  # nothing is stored for what is over
        ([(["mlp"], AVERAGE), (BOTH, SKIP)], [0, 1]),  # stored elsewhere in the block
    ],
)
def test_the_stage_that_says_what_is_stored(stages: Any, refresh: list[int]) -> None:
    rules = staged(*stages)
    assert [dense_variant(rules, index).refresh for index in range(len(stages))] == refresh
    stored = {v.refresh for v in variants_of(rules)} - {None}
    assert stored == set(refresh)


def test_parts_that_some_stage_reads_alone() -> None:
    both = frozenset(BOTH)
    assert parts_read_alone(FLUX, LATE, both) == parts_read_alone(FLUX, STORE, both) == {"mlp"}
    assert parts_read_alone(staged((BOTH, SSM), (BOTH, SKIP)), LATE, both) == frozenset()
    other = staged((["mlp"], AVERAGE), (BOTH, SKIP))  # has dense steps of its own
    assert parts_read_alone(other, LATE, both) == frozenset()
    three = staged((["mlp"], SSM), (["attn"], SSM), (BOTH, SKIP))
    assert parts_read_alone(three, Variant(stage=2), both) == both


# -- kept apart -----------------------------------------------------------------------------------------


def test_each_part_is_stored_behind_its_share_of_the_projection() -> None:
    store, early, late = graph(STORE), graph(EARLY), graph(LATE)
    assert names(store, ops.store_feature) == ["attn", "mlp"]
    assert names(early, ops.blend_forecast) == ["mlp"]
    assert names(late, ops.forecast_feature) == ["attn", "mlp"]
    assert [w.count(ops.linear_part) for w in (store, early, late)] == [2, 2, 0]
    assert [w.count("proj_out") for w in (store, early, late)] == [0, 0, 0]
    assert late.count("attn") == late.count("proj_mlp") == 0


def test_stages_that_read_both_read_one_feature_of_them() -> None:
    rules = staged((BOTH, SSM), (BOTH, SKIP))
    assert names(graph(STORE, rules), ops.store_feature) == ["attn+mlp"]
    assert names(graph(EARLY, rules), ops.blend_forecast) == ["attn+mlp"]
    assert names(graph(LATE, rules), ops.forecast_feature) == ["attn+mlp"]


def test_a_part_that_another_stage_stores_for_itself_is_joined_all_the_same() -> None:
    rules = staged((["mlp"], AVERAGE), (BOTH, SKIP))
    assert names(graph(LATE, rules), ops.forecast_feature) == ["attn+mlp"]


class MlpFirst(ParallelBlock):
    """The part that is read alone comes first."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any) -> Any:
        stream = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(stream, temb)
        parts = [self.act_mlp(self.proj_mlp(normed)), self.attn(normed)]
        return stream + gate * self.proj_out(torch.cat(parts, -1))


class Unbiased(ParallelBlock):
    def __init__(self) -> None:
        super().__init__()
        self.proj_out = nn.Linear(self.proj_out.in_features, self.proj_out.out_features, bias=False)


class ThreeParts(ParallelBlock):
    """A part that is no site's is joined, too."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_out = nn.Linear(2 * 8 + 16, 8)

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any) -> Any:
        stream = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(stream, temb)
        parts = [self.act_mlp(self.proj_mlp(normed)), self.attn(normed), normed]
        return stream + gate * self.proj_out(torch.cat(parts, -1))


THREE = staged((["mlp"], SSM), (["attn"], SSM), (BOTH, SKIP))


@pytest.mark.parametrize("kind", [ParallelBlock, MlpFirst, Unbiased, ThreeParts])
@pytest.mark.parametrize("rules", [FLUX, THREE], ids=["mlp alone", "each alone"])
def test_what_is_stored_serves_every_stage(kind: type[ParallelBlock], rules: Recipe) -> None:
    block, calls, last = kind(), Calls(rules), len(rules.stages) - 1
    with torch.no_grad():
        dense = block(X, T, C)
    variant = Variant(stage=None, refresh=last)
    for _ in range(2):  # two dense steps with one input: a line through equal values
        close(graph(variant, rules, block).run(X, T, C, call=calls.make(variant=variant)), dense)
    calls.state.set_refreshed(0)
    calls.state.set_refreshed(3)
    calls.state.set_slope(5, torch.device("cpu"))
    for stage in range(last):  # weight 0: merged positions are forecast, the others computed
        merging = graph(Variant(stage=stage), rules, block)
        call = calls.make(remove=12, variant=Variant(stage=stage), forecast_weight=0.0)
        got = merging.run(X, T, C, call=call)
        if rules.stages[stage].sites == ("mlp",):
            close(got, dense)  # other tokens' MLPs do not depend on it
        assert names(merging, ops.blend_forecast) == list(rules.stages[stage].sites)
    close(
        graph(Variant(stage=last), rules, block).run(X, T, C, call=calls.make(0, Variant(stage=last))), dense
    )


# -- where the projection cannot be cut -------------------------------------------------------------------


def hooked() -> ParallelBlock:
    block = ParallelBlock()
    block.proj_out.register_forward_hook(lambda module, args, output: output)
    return block


def adapted() -> nn.Module:
    config = LoraConfig(r=2, target_modules=["proj_out"], init_lora_weights=False)
    return inject_adapter_in_model(config, ParallelBlock())


@pytest.mark.parametrize(
    ("block", "more"),
    [(adapted, {}), (hooked, {}), (ParallelBlock, {"passes": {"split_projection": False}})],
    ids=["adapter", "hook", "switched off"],
)
def test_the_part_that_is_read_alone_is_stored_beside_the_joined_ones(
    block: Any, more: dict[str, Any]
) -> None:
    rules, made = staged((["mlp"], SSM), (BOTH, SKIP), **more), block()
    store, early, late = (graph(v, rules, made) for v in (STORE, EARLY, LATE))
    assert names(store, ops.store_feature) == ["attn+mlp", "mlp"]
    assert names(early, ops.blend_forecast) == ["mlp"]
    assert names(late, ops.forecast_feature) == ["attn+mlp"]
    calls = Calls(rules)
    with torch.no_grad():
        dense = made(X, T, C)
    close(store.run(X, T, C, call=calls.make(variant=STORE)), dense)
    calls.state.set_slope(1, torch.device("cpu"))
    close(early.run(X, T, C, call=calls.make(12, EARLY, forecast_weight=0.0)), dense)
    close(late.run(X, T, C, call=calls.make(0, LATE)), dense)
