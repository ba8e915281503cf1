"""Ratio 0 is the original model, bit for bit: the whole run, and the captured graph of each block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sdtm_fx
from sdtm_fx.capture.arguments import Signature, flatten
from tests.user.cases import (
    DENSE,
    FLUX_ATTENTION,
    FLUX_DEV,
    SD35_MEDIUM,
    Case,
    all_equal,
    run_plain,
    run_steps,
    the_rewriting,
)


def test_a_whole_run_is_bit_identical(case: Case) -> None:
    check_run(case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("half", [SD35_MEDIUM, FLUX_ATTENTION], ids=lambda case: case.name)
def test_a_whole_run_in_half_precision_is_bit_identical(half: Case, dtype: torch.dtype) -> None:
    check_run(half, dtype)


def check_run(case: Case, dtype: torch.dtype) -> None:
    model, inputs = case.model(dtype), case.inputs(dtype=dtype)
    expected = run_plain(model, inputs, 4)
    sdtm_fx.rewrite(model, case.recipe(DENSE))
    assert all_equal(run_steps(model, inputs, 4), expected)
    assert compare_blocks(model, inputs)


def test_the_captured_graph_of_each_block_is_bit_identical(case: Case) -> None:
    model = case.model()
    sdtm_fx.rewrite(model, case.recipe())
    sizes: list[dict[str, Any]] = [
        {},
        {"batch": 1, "grid": (6, 4), "text": 5},
        {"batch": 4, "grid": (9, 7), "text": 11},
        {"batch": 1, "grid": (33, 47)},
    ]
    for size in sizes:
        assert compare_blocks(model, case.inputs(**size)) == list(the_rewriting(model).bindings)
    assert len(the_rewriting(model).cache.programs) == case.structures  # no shape needed another trace


@pytest.mark.parametrize("moved", [SD35_MEDIUM, FLUX_DEV], ids=lambda case: case.name)
def test_another_dtype_after_the_rewrite_is_traced_again(moved: Case) -> None:
    model = moved.model()
    sdtm_fx.rewrite(model, moved.recipe())
    model.to(torch.bfloat16)
    inputs = moved.inputs(dtype=torch.bfloat16)
    outputs = run_steps(model, inputs)
    assert all(out.dtype == torch.bfloat16 and bool(out.isfinite().all()) for out in outputs)
    assert len(the_rewriting(model).cache.programs) > moved.structures
    assert compare_blocks(model, inputs)


def test_flux_in_fp16_clips_as_the_original_does() -> None:
    model = FLUX_DEV.model()
    sdtm_fx.rewrite(model, FLUX_DEV.recipe())
    model.to(torch.float16)
    run_steps(model, FLUX_DEV.inputs(dtype=torch.float16))
    programs = the_rewriting(model).cache.programs.values()
    clipping = [any("clip" in code for code in program.code.values()) for program in programs]
    assert sorted(clipping) == [False, False, True, True]


def compare_blocks(model: nn.Module, inputs: dict[str, Any]) -> list[str]:
    """Run the captured graph of every block beside the block's own forward; return the paths compared."""
    rewriting = the_rewriting(model)
    calls: dict[str, dict[str, Any]] = {}

    def note(path: str, signature: Signature) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[path] = signature.bind(args, kwargs)

        return hook

    blocks = {path: model.get_submodule(path) for path in rewriting.bindings}
    handles = [
        block.register_forward_pre_hook(note(path, rewriting.bindings[path].signature), with_kwargs=True)
        for path, block in blocks.items()
    ]
    type(model).forward(model, **inputs)
    for handle in handles:
        handle.remove()
    for path, block in blocks.items():
        key, leaves = flatten(calls[path])
        binding = rewriting.bindings[path]
        program = binding.programs.get(key) or rewriting.cache.program(block, key, leaves, binding.places)
        mine, own = program.dense(block, *leaves), type(block).forward(block, **calls[path])
        mine, own = (out if isinstance(out, tuple) else (out,) for out in (mine, own))
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(mine, own, strict=True)), path
    return list(blocks)
