"""``proj(cat[a, unmerge(m)])`` becomes ``proj_a(a) + unmerge(proj_m(m))`` for plain linear layers only."""

from __future__ import annotations

import operator
import re
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from sdtm_fx.passes.split_projection import SPLIT_PROJECTION
from sdtm_fx.rewriting.runner import run_passes
from sdtm_fx.runtime import ops
from tests.passes.blocks import FeedForward, ParallelBlock, TailBlock, condition, image, text
from tests.passes.working import (
    FF,
    PARALLEL,
    REFRESH,
    REUSE,
    Calls,
    Worked,
    capture_work,
    close,
    recipe,
    up_to,
    without,
    work_on,
)

X, T, C = image(), text(), condition()
RULES = recipe(PARALLEL, merged=["mlp"])
SITES = up_to("split_projection")


def parallel(block: nn.Module, **more: Any) -> Worked:
    return work_on(block, (X, T, C), recipe(PARALLEL, merged=["mlp"], **more), passes=SITES)


def test_the_projection_is_cut_in_two() -> None:
    worked = parallel(ParallelBlock())
    assert worked.applied["split_projection"] == 1
    assert worked.count("proj_out") == 0
    assert worked.count(torch.cat) == 1  # that of text and image
    dense, merged = worked.work.calls(ops.linear_part)
    assert dense.args[1].target == "attn"
    assert merged.args[1].target == "act_mlp"
    assert (dense.args[3], merged.args[3]) == (True, False)  # one bias
    (unmerge,) = worked.work.calls(ops.unmerge_tokens)
    assert unmerge.args[1] is merged
    assert unmerge.meta["site"] == "mlp"
    assert worked.work.notes == []


@pytest.mark.parametrize("remove", [0, 3, 12, 18])
def test_the_cut_is_exact_up_to_the_order_of_the_sum(remove: int) -> None:
    block = ParallelBlock()
    cut = work_on(block, (X, T, C), RULES, passes=SITES)
    whole = work_on(block, (X, T, C), RULES, passes=SITES[:-1])
    one, other = (w.run(X, T, C, call=Calls(RULES).make(remove=remove)) for w in (cut, whole))
    close(one, other)


def test_a_plan_that_removes_nothing_gives_the_dense_block() -> None:
    block = ParallelBlock()
    worked = work_on(block, (X, T, C), RULES, passes=SITES)
    with torch.no_grad():
        close(worked.run(X, T, C, call=Calls(RULES).make(remove=0)), block(X, T, C))


class MergedFirst(ParallelBlock):
    """The merged part in front, a third part behind, no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_out = nn.Linear(2 * 8 + 16, 8, bias=False)

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any) -> Any:
        stream = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(stream, temb)
        parts = [self.act_mlp(self.proj_mlp(normed)), self.attn(normed), normed]
        return stream + gate * self.proj_out(torch.cat(parts, -1))


class MergedFirstWithBias(MergedFirst):
    def __init__(self) -> None:
        super().__init__()
        self.proj_out = nn.Linear(2 * 8 + 16, 8)


@pytest.mark.parametrize("kind", [MergedFirst, MergedFirstWithBias])
def test_any_number_and_order_of_parts(kind: type[MergedFirst]) -> None:
    block = kind()
    worked = parallel(block)
    assert worked.count(ops.linear_part) == 3
    with torch.no_grad():
        close(worked.run(X, T, C, call=Calls(RULES).make(remove=0)), block(X, T, C))


def test_one_graph_serves_blocks_of_other_widths() -> None:
    worked, wide = parallel(ParallelBlock()), ParallelBlock(width=12, hidden=20)
    x, t, c = image(width=12), text(width=12), condition(width=12)
    with torch.no_grad():
        close(worked.run(x, t, c, call=Calls(RULES).make(remove=0), block=wide), wide(x, t, c))


# -- what is not split ---------------------------------------------------------------------------


class MyLinear(nn.Linear):
    """A subclass may do more than multiply."""


def subclass(block: ParallelBlock) -> None:
    block.proj_out = MyLinear(24, 8)


def lora(block: ParallelBlock) -> None:
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["proj_out"], init_lora_weights=False), block)


def wrapped(block: ParallelBlock) -> None:
    block.proj_out.forward = block.proj_out.forward


def hook(block: ParallelBlock) -> None:
    block.proj_out.register_forward_hook(lambda m, args, out: 2 * out)


def pre_hook(block: ParallelBlock) -> None:
    block.proj_out.register_forward_pre_hook(lambda m, args: (2 * args[0],))


def parametrized(block: ParallelBlock) -> None:
    nn.utils.parametrizations.weight_norm(block.proj_out)


def old_weight_norm(block: ParallelBlock) -> None:
    nn.utils.weight_norm(block.proj_out)


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        (subclass, r"it is a \S+\.MyLinear"),
        (lora, r"it is a peft\.tuners\.lora\.layer\.Linear"),
        (wrapped, "it has a hook"),
        (hook, "it has a hook"),
        (pre_hook, "it has a hook"),
        (parametrized, r"it is a \S+\.ParametrizedLinear"),
        (old_weight_norm, "it has a hook"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_what_is_not_a_plain_linear_is_not_split(change: Any, obstacle: str) -> None:
    block = ParallelBlock()
    change(block)
    worked = parallel(block)
    assert worked.applied["split_projection"] == 0
    (note,) = worked.work.notes
    assert re.fullmatch(f"proj_out is not split: {obstacle}; only a plain Linear can be cut", note)
    assert worked.inputs_of("proj_out") == (torch.cat,)
    with torch.no_grad():
        close(worked.run(X, T, C, call=Calls(RULES).make(remove=0)), block(X, T, C))


class QuantizedWeight(torch.Tensor):
    """Stands for a weight that cannot be cut."""


def test_a_weight_of_another_kind_is_not_split() -> None:
    block = ParallelBlock()
    work = capture_work(block, (X, T, C), RULES)
    block.proj_out.weight = nn.Parameter(block.proj_out.weight.detach().as_subclass(QuantizedWeight))
    assert run_passes(work, SITES)["split_projection"] == 0
    assert work.notes == [
        "proj_out is not split: its weight is a QuantizedWeight; only a plain Linear can be cut"
    ]


class AlongTokens(ParallelBlock):
    """A concatenation of tokens in front of a linear layer is no concatenation of channels."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any) -> Any:
        stream = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(stream, temb)
        both = torch.cat([stream, self.act_mlp(self.narrow(normed))], dim=1)
        return stream + gate * self.out(both)[:, stream.shape[1] :]

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.out = nn.Linear(8, 8), nn.Linear(8, 8)


def test_a_concatenation_of_tokens_is_not_split() -> None:
    sites = [PARALLEL[1] | {"match": "narrow"}]
    worked = work_on(AlongTokens(), (X, T, C), recipe(sites), passes=SITES)
    assert worked.applied["split_projection"] == 0
    assert worked.work.notes == []


class SecondUse(ParallelBlock):
    """The joined branches are used twice."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any) -> Any:
        stream = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(stream, temb)
        joined = torch.cat([self.attn(normed), self.act_mlp(self.proj_mlp(normed))], dim=2)
        return stream + gate * self.proj_out(joined) * joined.mean(-1, keepdim=True)


class SecondUseOfPart(SecondUse):
    """The merged branch is used twice."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any) -> Any:
        stream = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(stream, temb)
        mlp = self.act_mlp(self.proj_mlp(normed))
        joined = torch.cat([self.attn(normed), mlp], dim=2)
        return stream + gate * self.proj_out(joined) * mlp.mean(-1, keepdim=True)


class NoModule(ParallelBlock):
    """The projection is a function."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any) -> Any:
        stream = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(stream, temb)
        joined = torch.cat([self.attn(normed), self.act_mlp(self.proj_mlp(normed))], dim=2)
        return stream + gate * joined[..., :8]


@pytest.mark.parametrize("kind", [SecondUse, SecondUseOfPart, NoModule])
def test_near_misses_are_left_alone(kind: type[ParallelBlock]) -> None:
    block = kind()
    worked = parallel(block)
    assert worked.applied["split_projection"] == 0
    with torch.no_grad():
        close(worked.run(X, T, C, call=Calls(RULES).make(remove=0)), block(X, T, C))


def test_two_merged_branches_were_joined_before_and_need_no_cut() -> None:
    worked = work_on(ParallelBlock(), (X, T, C), recipe(PARALLEL), passes=SITES)
    assert worked.applied["split_projection"] == 0
    assert worked.count("proj_out") == 1


def test_no_concatenation_no_cut() -> None:
    worked = work_on(TailBlock(lambda b, y, x, t: b.linear(y)), (X, C), recipe([FF]), passes=SITES)
    assert worked.applied["split_projection"] == 0


def test_a_concatenation_that_is_not_merged_is_left_alone() -> None:
    block = TailBlock(lambda b, y, x, t: b.wide(torch.cat([x, t[:, None].expand_as(x)], -1)) + y)
    worked = work_on(block, (X, C), recipe([FF]), passes=SITES)
    assert worked.applied["split_projection"] == 0
    assert isinstance(block.ff, FeedForward)


def test_a_recipe_may_switch_it_off() -> None:
    worked = parallel(ParallelBlock(), passes={"split_projection": False})
    assert worked.applied["split_projection"] == 0
    assert worked.count("proj_out") == 1


def test_without_sinking_the_activation_is_in_the_way() -> None:
    worked = work_on(ParallelBlock(), (X, T, C), RULES, passes=without("sink_unmerge", "reuse_features"))
    assert worked.applied["split_projection"] == 0


def test_dense_steps_are_cut_at_the_same_place() -> None:
    rules = recipe(PARALLEL, merged=["mlp"], reuse=REUSE)
    worked = work_on(ParallelBlock(), (X, T, C), rules, variant=REFRESH, passes=SITES)
    (mark,) = worked.work.calls(ops.unmerge_tokens)
    assert mark.meta["site"] == "mlp"
    assert mark.args[0] is None
    assert mark.args[1].target is ops.linear_part
    assert [n.target for n in mark.users] == [operator.add]


def test_a_second_run_finds_nothing() -> None:
    worked = parallel(ParallelBlock())
    before = str(worked.work.graph)
    assert run_passes(worked.work, (SPLIT_PROJECTION,)) == {"split_projection": 0}
    assert str(worked.work.graph) == before
