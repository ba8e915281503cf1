"""Fewer image keys where attention has a mask for the padding of prompts, on diffusers' own classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import sdtm_fx
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.methods import ToDo, TokenView
from tests.families.cases import FAMILIES
from tests.families.video import VIDEOS
from tests.measured import costs_measured_once
from tests.user.cases import all_equal, distance, module_state, run_plain, run_steps, the_rewriting

PADDED = 2
"""Text tokens of the first sample that are padding, at its end."""


@dataclass(frozen=True)
class Masked:
    """A model whose attention has a mask.

    Attributes:
        recipe_name: A shipped recipe for it.
        build: Makes a small one.
        inputs: The arguments of a call of two samples.
        grid: Its image tokens.
        sites: Attention sites whose keys are reduced.
        image_first: Whether image keys stand in front of those of text.
    """

    recipe_name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    grid: TokenGrid
    sites: tuple[str, ...]
    image_first: bool = False

    def recipe(self, method: str, changes: Mapping[str, Any] | None = None) -> sdtm_fx.Recipe:
        """Keys alone at every self-attention, in one stage of all steps."""
        merged = {f"sites.{site}.merge": "keys" for site in self.sites}
        stage = {"name": "all", "until": 1.0, "sites": list(self.sites), "method": {"name": method}}
        return sdtm_fx.load_recipe(self.recipe_name).override(
            {
                "sites.*.expect": None,
                **merged,
                "stages": [stage],
                "ratio": {"curve": "full"},
                "keep_dense": {"first_steps": 0, "last_steps": 0, "every_steps": None},
                "reuse": None,
                "gate": "off",
                "plan.round_to": 1,
                "plan.share": ["batch"],
                **(changes or {}),
            }
        )

    @property
    def kept(self) -> torch.Tensor:
        """The image tokens whose keys stay."""
        method = ToDo()
        view = TokenView(torch.zeros(1, tokens_on(self.grid), 1), self.grid)
        return method.plan(view, method.capacity(self.grid)).positions[0]


def _family(name: str) -> Callable[[], nn.Module]:
    return next(case for case in FAMILIES if case.recipe_name == name).model


def _qwen_inputs() -> dict[str, Any]:
    inputs = next(case for case in FAMILIES if case.recipe_name == "qwen-image").call(2, (8, 6))
    mask = torch.ones(inputs["encoder_hidden_states"].shape[:2], dtype=torch.bool)
    mask[0, -PADDED:] = False
    return inputs | {"encoder_hidden_states_mask": mask}


def _chroma_inputs() -> dict[str, Any]:
    inputs = next(case for case in FAMILIES if case.recipe_name == "chroma").call(2, (8, 6))
    text = inputs["encoder_hidden_states"].shape[1]
    mask = torch.ones(2, text + 48)
    mask[0, text - PADDED : text] = 0
    # As the pipeline has it, which joins numbers and booleans: the square is added to the logits.
    return inputs | {"attention_mask": mask}


MODELS = {
    "hunyuan-video": Masked(
        "hunyuan-video", VIDEOS["hunyuan"].build, lambda: VIDEOS["hunyuan"].inputs(2, (3, 4, 6)), (3, 4, 6),
        ("attn", "single_attn"), image_first=True,
    ),
    "qwen-image": Masked("qwen-image", _family("qwen-image"), _qwen_inputs, (8, 6), ("attn",)),
    "chroma": Masked("chroma", _family("chroma"), _chroma_inputs, (8, 6), ("attn", "single_attn")),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def masked(request: pytest.FixtureRequest) -> Masked:
    """Every model in turn."""
    return MODELS[request.param]


@pytest.fixture(autouse=True, scope="module")
def _measured_once() -> Iterator[None]:
    with costs_measured_once():
        yield


class Dropped(TorchFunctionMode):
    """Drops image keys, values and columns of the mask by hand, and adds a bias to those that stay."""

    def __init__(self, model: Masked, bias: float = 0.0) -> None:
        super().__init__()
        self.model, self.bias, self.calls = model, bias, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **named)
        operands = [
            args[i] if i < len(args) else named.pop(n) for i, n in enumerate(("query", "key", "value"))
        ]
        tokens, length = tokens_on(self.model.grid), operands[1].shape[2]
        if length > tokens:
            self.calls += 1
            start, mask = 0 if self.model.image_first else length - tokens, named["attn_mask"]
            image = self.model.kept + start
            kept = torch.cat([torch.arange(start), image, torch.arange(start + tokens, length)])
            operands[1:] = [rows[:, :, kept] for rows in operands[1:]]
            mask = mask[..., kept]
            if self.bias:
                added = torch.zeros(len(kept))
                added[start : start + len(image)] = self.bias
                mask = torch.where(mask, added, -math.inf) if mask.dtype == torch.bool else mask + added
            named["attn_mask"] = mask
        return func(*operands, *args[3:], **named)


@pytest.mark.parametrize("proportional", [pytest.param(False, marks=pytest.mark.slow), True])
def test_todo_is_attention_to_what_is_left_of_keys_and_mask(masked: Masked, proportional: bool) -> None:
    model, inputs = masked.build(), masked.inputs()
    dense = run_plain(model, inputs, 1)
    with Dropped(masked) as plain:
        sampled = run_plain(model, inputs, 1)
    with Dropped(masked, math.log(4.0) if proportional else 0.0):
        expected = run_plain(model, inputs, 1)
    rules = masked.recipe("todo", {"plan.proportional": proportional})
    sdtm_fx.rewrite(model, rules)
    got = run_steps(model, inputs, 1)
    assert plain.calls == sum(len(b.places) for b in the_rewriting(model).bindings.values()) - _feed_forwards(
        model
    )
    assert distance(got, expected) < 0.01 * distance(dense if not proportional else sampled, expected)


def _feed_forwards(model: nn.Module) -> int:
    recipe = the_rewriting(model).recipe
    places = [p for b in the_rewriting(model).bindings.values() for p in b.places]
    return sum(recipe.sites[p.site_index].kind == "feed_forward" for p in places)


@pytest.mark.parametrize("method", [pytest.param("todo", marks=pytest.mark.slow), "local_match"])
@pytest.mark.parametrize("name", ["hunyuan-video", "qwen-image"])
def test_padding_has_no_influence(name: str, method: str) -> None:
    """Not so for Chroma, whose pipeline adds 1 to the logits of what is not padding."""
    masked = MODELS[name]
    model, inputs = masked.build(), masked.inputs()
    other = inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"].clone()}
    other["encoder_hidden_states"][0, -PADDED:] += 3.0
    sdtm_fx.rewrite(model, masked.recipe(method, {"plan.proportional": True}))
    assert all_equal(run_steps(model, inputs, 1), run_steps(model, other, 1))


@pytest.mark.parametrize(
    "name", ["qwen-image", *(pytest.param(n, marks=pytest.mark.slow) for n in ("hunyuan-video", "chroma"))]
)
def test_dense_steps_and_restored_models_are_the_original_bit_for_bit(name: str) -> None:
    masked = MODELS[name]
    model, inputs = masked.build(), masked.inputs()
    before, expected = module_state(model), run_plain(model, inputs, 3)
    zero = {"ratio": {"curve": "constant", "start": 0.0}, "plan.proportional": True}
    with sdtm_fx.rewritten(model, masked.recipe("local_match", zero)):
        assert all_equal(run_steps(model, inputs, 3), expected)
    ends = {"keep_dense": {"first_steps": 1, "last_steps": 1, "every_steps": None}}
    with sdtm_fx.rewritten(model, masked.recipe("todo", ends)):
        got = run_steps(model, inputs, 3)
    assert all_equal([got[0], got[2]], [expected[0], expected[2]])
    assert not torch.equal(got[1], expected[1])
    assert module_state(model) == before
    assert all_equal(run_plain(model, inputs, 3), expected)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize(
    ("name", "method"), [("hunyuan-video", "local_match"), ("qwen-image", "local_match"), ("chroma", "todo")]
)
def test_it_compiles_without_a_graph_break(name: str, method: str) -> None:
    torch._dynamo.reset()
    masked = MODELS[name]
    model, inputs = masked.build(), masked.inputs()
    sdtm_fx.rewrite(model, masked.recipe(method, {"plan.proportional": True}))
    eager = run_steps(model, inputs, 1)
    sdtm_fx.compile(model, backend="eager", fullgraph=True)
    for mine, theirs in zip(run_steps(model, inputs, 1), eager, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
