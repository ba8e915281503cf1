"""Running small copies of models: a generation step by step, and how many tokens modules are given meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.errors import InspectionError
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import restore, rewrite, steps
from sdtm_fx.rewriting.rewriting import rewriting_of

COPY: Mapping[str, Any] = {"sites.*.expect": None, "plan.round_to": 1, "gate": "off"}
"""What a recipe needs on a copy, which has other numbers of layers and few tokens."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: What.
        passed: How it went.
        says: What was seen, or what to edit.
    """

    name: str
    passed: bool
    says: str


def run_steps(
    recipe: Recipe, model: torch.nn.Module, arguments: Mapping[str, Any], count: int
) -> list[list[torch.Tensor]]:
    """The outputs of a generation on equal inputs, step by step; afterwards the model is as it was.

    Args:
        recipe: What it is rewritten by.
        model: A model that can be run.
        arguments: Of every call.
        count: Denoising steps.

    Raises:
        InspectionError: The rewritten model does not run.
    """
    rewrite(model, recipe)
    outputs = []
    try:
        halves = 2 if recipe.reads_halves else None
        with torch.no_grad(), steps(model, count, cfg_halves=halves) as clock:
            for _ in range(count):
                outputs.append(tensors(model(**arguments)))
                clock.advance()
    except (RuntimeError, TypeError, ValueError) as error:
        raise InspectionError(
            f"the rewritten copy does not run: {type(error).__name__}: {error}; take the site that its place names out "
            "of the stages"
        ) from error
    finally:
        if rewriting_of(model) is not None:
            restore(model)
    return outputs


def worst_difference(expected: list[torch.Tensor], outputs: list[list[torch.Tensor]]) -> float:
    """The largest absolute difference of any step from what is expected of every step."""
    return max(float((a - b).abs().max()) for run in outputs for a, b in zip(expected, run, strict=True))


def all_finite(outputs: list[list[torch.Tensor]]) -> bool:
    """Whether every number of every step is finite."""
    return all(bool(torch.isfinite(t).all()) for run in outputs for t in run)


@contextlib.contextmanager
def noted_calls(model: torch.nn.Module, paths: Iterable[str]) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """The arguments of every call of some modules while the block lasts, by path, then by name.

    Args:
        model: The model.
        paths: The modules.
    """
    seen: dict[str, list[dict[str, Any]]] = {}

    def noting(path: str) -> Any:
        def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            bound = Signature.of(type(module).forward).bind(args, kwargs)
            seen.setdefault(path, []).append(bound)

        return note

    handles = [
        model.get_submodule(path).register_forward_pre_hook(noting(path), with_kwargs=True) for path in paths
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def length_of(arguments: Mapping[str, Any], name: int | str) -> int | None:
    """The length of a sequence among the arguments of a call, by position or name; None where there is no such one."""
    named = list(arguments)
    key = (named[name] if name < len(named) else None) if isinstance(name, int) else name
    value = None if key is None else arguments.get(key)
    return value.shape[1] if isinstance(value, torch.Tensor) and value.ndim > 1 else None


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors in what a model returned."""
    if isinstance(output, torch.Tensor):
        return [output]
    return [t for item in output for t in tensors(item)] if isinstance(output, list | tuple) else []
