"""Fewer image keys on whole models: ToDo against sampling keys and values by hand, and all that must not change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import sdtm_fx
from sdtm_fx.errors import SiteError
from sdtm_fx.recipe import Recipe, load_recipe
from tests.user.cases import all_equal, distance, module_state, run_plain, run_steps, the_rewriting
from tests.zoo import ZOO, build

TEXT = 5
ATTENTION: dict[str, list[dict[str, Any]]] = {
    "sd3": [{"id": "attn", "match": "transformer_blocks.*.attn", "output": 0}],
    "sd3.5": [
        {"id": "attn", "match": "transformer_blocks.*.attn", "output": 0},
        {"id": "attn2", "match": "transformer_blocks.*.attn2"},
    ],
    "flux": [
        {"id": "attn", "match": "transformer_blocks.*.attn", "output": 0, "rotary": "image_rotary_emb"},
        {
            "id": "single",
            "match": "single_transformer_blocks.*.attn",
            "prefix": "encoder_hidden_states",
            "rotary": "image_rotary_emb",
        },
    ],
    "pixart": [{"id": "attn", "match": "transformer_blocks.*.attn1"}],
}
FF = {
    "id": "ff",
    "kind": "feed_forward",
    "match": r"re:(single_)?transformer_blocks\.\d+\.(ff|proj_mlp)",
}
TEXT_FIRST = {"flux"}


def recipe(family: str, *, method: Mapping[str, Any], sites: list[str] | None = None, **more: Any) -> Recipe:
    """Keys alone at every self-attention, in one stage of all steps."""
    chosen = [
        {"kind": "attention", "input": "hidden_states", "merge": "keys", **s} for s in ATTENTION[family]
    ]
    ids = [s["id"] for s in chosen]
    data: dict[str, Any] = {
        "version": 1,
        "name": "keys",
        "model": [type(build(family)).__name__],
        "tokens": {
            "grid": {"ids": "img_ids"} if family == "flux" else {"latent": "hidden_states", "patch": 2}
        },
        "sites": [*chosen, *([FF] if sites else [])],
        "stages": [{"name": "all", "until": 1.0, "sites": sites or ids, "method": dict(method)}],
        "ratio": {"curve": "full"},
        "keep_dense": {"first_steps": 0, "last_steps": 0},
        "plan": {"round_to": 1},
    }
    return load_recipe(data | more)


class Sampled(TorchFunctionMode):
    """Samples the image part of keys and values at every self-attention, nearest-exact, one in factor x factor."""

    def __init__(self, family: str, grid: tuple[int, int], factor: int, bias: float = 0.0) -> None:
        super().__init__()
        self.first, self.grid, self.factor, self.bias = family in TEXT_FIRST, grid, factor, bias
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            operands = [
                args[i] if i < len(args) else named.pop(n) for i, n in enumerate(("query", "key", "value"))
            ]
            tokens = self.grid[0] * self.grid[1]
            length = operands[1].shape[2]
            if length in (tokens, tokens + TEXT):
                self.calls += 1
                start = length - tokens if self.first else 0
                named["attn_mask"] = self.mask(length, start, operands[0].dtype) if self.bias else None
                operands[1:] = [self.sample(rows, start) for rows in operands[1:]]
            return func(*operands, *args[3:], **named)
        return func(*args, **named)

    def sample(self, rows: torch.Tensor, start: int) -> torch.Tensor:
        tokens = self.grid[0] * self.grid[1]
        image = rows[:, :, start : start + tokens]
        heads = image.shape[1]
        table = image.flatten(0, 1).mT.unflatten(2, self.grid)
        size = [-(-side // self.factor) for side in self.grid]
        fewer = F.interpolate(table, size=size, mode="nearest-exact").flatten(2).mT.unflatten(0, (-1, heads))
        return torch.cat([rows[:, :, :start], fewer, rows[:, :, start + tokens :]], dim=2)

    def mask(self, length: int, start: int, dtype: torch.dtype) -> torch.Tensor:
        tokens = self.grid[0] * self.grid[1]
        kept = -(-self.grid[0] // self.factor) * -(-self.grid[1] // self.factor)
        mask = torch.zeros(length - tokens + kept, dtype=dtype)
        mask[start : start + kept] = self.bias
        return mask[None, None, None]


def calls_of(family: str, grid: tuple[int, int]) -> dict[str, Any]:
    return ZOO[family].inputs(2, grid, TEXT)


@pytest.mark.parametrize(("grid", "factor"), [((8, 6), 2), ((7, 9), 2), ((9, 6), 3)], ids=str)
@pytest.mark.parametrize("family", ["sd3", "sd3.5", "flux", "pixart"])
def test_todo_is_attention_to_sampled_keys_and_values(
    family: str, grid: tuple[int, int], factor: int
) -> None:
    model, inputs = build(family), calls_of(family, (8, 6))
    dense = run_plain(model, calls_of(family, grid), 2)
    with Sampled(family, grid, factor) as sampled:
        expected = run_plain(model, calls_of(family, grid), 2)
    rules = recipe(family, method={"name": "todo", "factor": factor})
    with sdtm_fx.rewritten(model, rules, example=inputs):
        got = run_steps(model, calls_of(family, grid), 2)
        sites = sum(len(binding.places) for binding in the_rewriting(model).bindings.values())
    assert sampled.calls == 2 * sites > 0
    assert distance(got, expected) < 0.01 * distance(dense, expected)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_proportional_attention_adds_the_logarithm_of_the_cell(family: str) -> None:
    model, inputs = build(family), calls_of(family, (8, 6))
    with Sampled(family, (8, 6), 2):
        plain = run_plain(model, inputs, 1)
    with Sampled(family, (8, 6), 2, bias=torch.tensor(4.0).log().item()):
        expected = run_plain(model, inputs, 1)
    rules = recipe(family, method={"name": "todo"}, plan={"round_to": 1, "proportional": True})
    with sdtm_fx.rewritten(model, rules, example=inputs):
        got = run_steps(model, inputs, 1)
    assert distance(got, expected) < 0.01 * distance(plain, expected)


@pytest.mark.parametrize("family", ["sd3", "sd3.5", "flux", "pixart"])
def test_dense_steps_and_restored_models_are_the_original_bit_for_bit(family: str) -> None:
    model, inputs = build(family), calls_of(family, (8, 6))
    before, expected = module_state(model), run_plain(model, inputs, 3)
    zero = recipe(
        family,
        method={"name": "uniform"},
        ratio={"curve": "constant", "start": 0.0},
        plan={"proportional": True},
    )
    with sdtm_fx.rewritten(model, zero, example=inputs):
        assert all_equal(run_steps(model, inputs, 3), expected)
    kept = recipe(family, method={"name": "todo"}, keep_dense={"first_steps": 1, "last_steps": 1})
    with sdtm_fx.rewritten(model, kept, example=inputs):
        got = run_steps(model, inputs, 3)
    assert all_equal([got[0], got[2]], [expected[0], expected[2]])
    assert not torch.equal(got[1], expected[1])
    assert module_state(model) == before
    assert all_equal(run_plain(model, inputs, 3), expected)


@pytest.mark.parametrize("method", ["ssm", "tome", "local_match"])
def test_the_feed_forward_merges_by_the_same_plan(method: str) -> None:
    model, inputs = build("sd3"), calls_of("sd3", (8, 6))
    rules = recipe(
        "sd3", method={"name": method}, sites=["attn", "ff"], ratio={"curve": "constant", "start": 0.5}
    )
    sdtm_fx.rewrite(model, rules, example=inputs)
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, inputs, 1)
    for block in ("transformer_blocks.0", "transformer_blocks.1"):
        attn, ff = record.at(block=block)
        assert (attn.action, ff.action, attn.kept, ff.kept) == ("keys", "merged", 24, 24)
        assert attn.assign is not None
        assert torch.equal(attn.assign, ff.assign)  # type: ignore[arg-type]


def test_features_are_stored_for_the_feed_forward_alone() -> None:
    model, inputs = build("sd3"), calls_of("sd3", (8, 6))
    rules = recipe(
        "sd3",
        method={"name": "todo"},
        sites=["attn", "ff"],
        reuse={"order": 0, "weight": 0.1},
        keep_dense={"first_steps": 1, "last_steps": 0, "every_steps": 2},
    )
    sdtm_fx.rewrite(model, rules, example=inputs)
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, inputs, 2)
    assert [s.action for s in record.at(step=0, block="transformer_blocks.0")] == ["dense", "refresh"]
    assert [s.action for s in record.at(step=1, block="transformer_blocks.0")] == ["keys", "merged"]
    (branch,) = the_rewriting(model).runtime.state.branches.values()
    assert {name for _, name in branch.features} == {"ff"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_half_precision_works(family: str, dtype: torch.dtype) -> None:
    model, inputs = build(family).to(dtype), calls_of(family, (8, 6))
    half = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    rules = recipe(family, method={"name": "uniform"}, plan={"proportional": True})
    sdtm_fx.rewrite(model, rules, example=half)
    (out,) = run_steps(model, half, 1)
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_keys_of_text_are_refused_and_the_model_is_left_alone() -> None:
    model, inputs = build("pixart"), calls_of("pixart", (8, 6))
    before = module_state(model)
    cross = {"id": "cross", "kind": "attention", "match": "transformer_blocks.*.attn2", "merge": "keys"}
    rules = recipe("pixart", method={"name": "todo"}).to_data()
    rules["sites"], rules["stages"][0]["sites"] = [cross | {"input": "hidden_states"}], ["cross"]
    message = "site 'cross': its keys do not come from the image tokens (cross-attention: they are text)"
    with pytest.raises(SiteError, match=re.escape(message)):
        sdtm_fx.rewrite(model, rules, example=inputs)
    assert module_state(model) == before


def test_a_processor_that_is_swapped_is_opened_anew() -> None:
    model, inputs = build("sd3"), calls_of("sd3", (8, 6))
    sdtm_fx.rewrite(model, recipe("sd3", method={"name": "todo"}), example=inputs)
    first = run_steps(model, inputs, 1)

    class Louder:
        def __init__(self, own: Any) -> None:
            self.own = own

        def __call__(self, attn: nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            image, text = self.own(attn, hidden_states, *args, **kwargs)
            return 2 * image, text

    attn = model.transformer_blocks[0].attn
    attn.processor = Louder(attn.processor)
    with sdtm_fx.steps(model, 1):
        louder = model(**inputs)[0]
    assert not torch.equal(louder, first[0])
