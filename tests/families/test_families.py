"""Every shipped family on a small model of its class: what is exact is exact, and what merges merges as it says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import sdtm_fx
from sdtm_fx.layer_rates import coarser
from sdtm_fx.methods.base import Method
from sdtm_fx.recipe.match import compile_match
from tests.families.cases import FamilyCase, first, moving, run, run_plain
from tests.user.cases import all_equal, module_state, the_rewriting


def test_ratio_zero_and_restore_are_bit_identical(case: FamilyCase) -> None:
    model, inputs = case.model(), case.call(2, case.odd)
    expected, keys, before = run_plain(case, model, inputs), [*model.state_dict()], module_state(model)
    sdtm_fx.rewrite(model, case.recipe(0.0))
    assert [*model.state_dict()] == keys
    assert all_equal(run(case, model, inputs), expected)
    sdtm_fx.restore(model)
    assert module_state(model) == before
    assert [*model.state_dict()] == keys
    assert all_equal(run_plain(case, model, inputs), expected)


def test_sites_run_on_the_tokens_that_are_kept(case: FamilyCase) -> None:
    model, steps = case.model(), 2
    calls = {(batch, grid): case.call(batch, grid) for batch, grid in ((2, (8, 8)), (1, case.odd))}
    dense = {size: run_plain(case, model, inputs, steps) for size, inputs in calls.items()}
    sdtm_fx.rewrite(model, case.recipe(0.5))
    rewriting = the_rewriting(model)
    assert len(rewriting.cache.programs) == case.structures
    for (batch, grid), inputs in calls.items():
        with watched(model) as lengths, sdtm_fx.steps(model, steps) as clock, torch.no_grad():
            for step in range(steps):
                lengths.clear()
                with Attended() as attended:
                    output = first(model(**moving(case, inputs, step, steps)))
                assert output.shape == dense[batch, grid][step].shape
                assert bool(output.isfinite().all())
                assert not torch.equal(output, dense[batch, grid][step])
                stage = rewriting.recipe.stages[step]  # both are merged: one step each
                for site in rewriting.recipe.sites:
                    height, width = coarser(grid, site.downsample)
                    if site.id in stage.sites and site.merge == "keys":  # it is called as a graph
                        ((fewer, times),) = ((n, t) for n, t in attended.fewer.items() if n)
                        assert times == len(rewriting.bindings), (
                            "every block; refiners outside of them do not"
                        )
                        check_half(fewer, stage.method, (height, width))
                        assert not lengths[site.id]
                        continue
                    ((samples, length),) = lengths[site.id]
                    image, in_one = height * width, site.prefix is not None or site.suffix is not None
                    beside = case.beside(image, case.text_of(batch)) if in_one else 0
                    removed = beside + image + case.references - length
                    assert samples == batch
                    if site.id in stage.sites and site.merge == "tokens":
                        check_half(removed, stage.method, (height, width))
                    else:
                        assert removed == 0, site.id
                clock.advance()


def check_half(removed: int, method: Method, grid: tuple[int, int]) -> None:
    """Half of the tokens are removed, but for what is left of the last window, or all that windows can give."""
    half, most = grid[0] * grid[1] / 2, 3 * (grid[0] // 2) * (grid[1] // 2)
    assert removed % method.quantum() == 0
    assert abs(removed - min(half, most)) < 2, (removed, grid, method.name)


class Attended(TorchFunctionMode):
    """How many keys less than queries attention looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.fewer: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            query, key = (args[i] if i < len(args) else named[n] for i, n in enumerate(("query", "key")))
            if type(query) is torch.Tensor:  # not while tracing
                self.fewer[query.shape[2] - key.shape[2]] += 1
        return func(*args, **named)


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, set[tuple[int, int]]]]:
    """For every site of a rewritten model, (batch, length) of what its modules are given."""
    seen: dict[str, set[tuple[int, int]]] = defaultdict(set)

    def note(site: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else kwargs["hidden_states"]
            if type(value) is torch.Tensor:  # not while tracing
                seen[site].add((value.shape[0], value.shape[1]))

        return hook

    handles = [
        module.register_forward_pre_hook(note(spec.id), with_kwargs=True)
        for spec in the_rewriting(model).recipe.sites
        for path, module in model.named_modules()
        if compile_match(spec.match)(path)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
