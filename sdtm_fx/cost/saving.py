"""The cost of a step in multiply-accumulates, dense and merged, at any size, from one small measurement.

Removing R of N image tokens at a site saves linear work in proportion to R, and attention over a sequence of
L = N + T tokens (T text tokens) in proportion to L^2 - (L - R)^2. The two factors are counted once per block
structure, by running its graphs on fake tensors; sizes enter afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensor

from sdtm_fx.capture.arguments import Leaf
from sdtm_fx.cost.counter import MacCounter, Macs
from sdtm_fx.methods.base import Method, TokenView
from sdtm_fx.phase import Phase
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import Program, dense_variant
from sdtm_fx.runtime.call import BlockContext, Call, Variant
from sdtm_fx.runtime.state import BranchState

@dataclass(frozen=True)
class BlockSaving:
    """What one block saves in one stage.

    Attributes:
        linear: MACs of linear layers saved per removed token and sample.
        attention: MACs saved per sample and token pair that attention no longer compares.
        text_share: Part of the text that stands in the attended sequence; 1/2 where one of two attentions has none.
        sites: Linear MACs saved per removed token and sample, by site module.
        width: Channels that similarity is computed from.
    """

    linear: float
    attention: float
    text_share: float
    sites: dict[str, float]
    width: int

    def saved(self, tokens: int, text: int, remove: int) -> Macs:
        """MACs saved per sample by removing `remove` of `tokens` image tokens beside `text` text tokens."""
        sequence = tokens + self.text_share * text
        pairs = sequence**2 - (sequence - remove) ** 2
        linear = self.linear * remove
        return Macs(linear, linear + self.attention * pairs)


def plan_macs(method: Method, grid: tuple[int, int], width: int, remove: int) -> Macs:
    """What finding the tokens to merge costs, per plan; `width` is that of the tokens compared."""
    if remove <= 0 or method.name == "skip":
        return Macs(0.0, 0.0)
    tokens = grid[0] * grid[1]
    with torch.device("meta"):
        view = TokenView(
            torch.empty(1, tokens, width),
            grid,
            torch.empty(1, tokens, dtype=torch.int32) if "ages" in method.needs else None,
            torch.empty(1, tokens) if "attention" in method.needs else None,
        )
        with MacCounter() as counter:
            method.plan(view, remove)
        return counter.macs


def measure_saving(
    recipe: Recipe,
    stage: int,
    program: Program,
    block: torch.nn.Module,
    leaves: list[Leaf],
    grid: tuple[int, int],
    text: int,
) -> BlockSaving | None:
    """Measure what a block saves in a stage, on the example call that it was captured with.

    Args:
        recipe: The recipe.
        stage: Index of the stage.
        program: The rewritten block.
        block: A block of the program's structure.
        leaves: The arguments of the example call, fake tensors.
        grid: (height, width) in tokens of the example.
        text: Text tokens of the example.

    Returns:
        The saving, None when the stage leaves the block alone.
    """
    if Variant(stage=stage) not in program.functions:
        return None
    sequence = next(leaf for leaf in leaves if isinstance(leaf, FakeTensor) and leaf.ndim == 3)
    batch, width = sequence.shape[0], sequence.shape[-1]
    trial = _Trial(recipe, stage, program, block, leaves, grid)
    few, many = trial.counts()
    with torch.no_grad(), sequence.fake_mode:
        dense, dense_sites = trial.run(0)
        merged, sites = trial.run(many)
        merged_less, _ = trial.run(few)
    method, plans = recipe.stages[stage].method, 1 if "batch" in recipe.plan.share else batch
    saved = {
        remove: dense.attention - macs.attention + plans * plan_macs(method, grid, width, remove).attention
        for remove, macs in ((few, merged_less), (many, merged))
    }
    merges_attention = any(s.kind == "attention" and s.id in recipe.stages[stage].sites for s in recipe.sites)
    attention, sequence = _fit_attention(saved) if merges_attention else (0.0, 0.0)
    return BlockSaving(
        linear=(dense.linear - merged.linear) / batch / many,
        attention=attention / batch,
        text_share=(sequence - grid[0] * grid[1]) / text if attention and text else 0.0,
        sites={name: (dense_sites[name] - sites[name]).linear / batch / many for name in dense_sites},
        width=width,
    )


def _fit_attention(saved: dict[int, float]) -> tuple[float, float]:
    """Solve ``saved(R) = a * (2 L R - R^2)`` for a and L from two counts; one count: all of it, ``a * L^2``."""
    (few, less), (many, more) = min(saved.items()), max(saved.items())
    if few == many:
        return more / many**2, float(many)
    factor = (less / few - more / many) / (many - few)
    return factor, (more / many / factor + many) / 2 if factor else 0.0


@dataclass(frozen=True)
class _Trial:
    """Runs one block in one stage on fake tensors."""

    recipe: Recipe
    stage: int
    program: Program
    block: torch.nn.Module
    leaves: list[Leaf]
    grid: tuple[int, int]

    def counts(self) -> tuple[int, int]:
        """A small and a large number of tokens that the stage can remove on this grid."""
        method = self.recipe.stages[self.stage].method
        tokens = self.grid[0] * self.grid[1]
        if method.name == "skip":
            return tokens, tokens
        units = method.capacity(self.grid) // method.quantum()
        return max(1, units // 3) * method.quantum(), max(1, units) * method.quantum()

    def run(self, remove: int) -> tuple[Macs, dict[str, Macs]]:
        """Count one run, and what runs inside each site's module; `remove` 0 is the dense block."""
        state = BranchState()
        variant = Variant(stage=self.stage)
        if remove:
            self._call(dense_variant(self.recipe, self.stage), 0, state)  # stores what the stage may forecast from
        modules = {place.local: self.block.get_submodule(place.local) for place in self.program.places}
        with MacCounter() as counter, counter.watching(modules):
            self._call(variant if remove else None, remove, state)
        return counter.macs, counter.inside

    def _call(self, variant: Variant | None, remove: int, state: BranchState) -> None:
        if variant is None:
            self.program.dense(self.block, *self.leaves)
            return
        function = self.program.functions.get(variant)
        if function is not None:
            function(self.block, BlockContext(self._model_call(variant, remove, state), 0, {}), *self.leaves)

    def _model_call(self, variant: Variant, remove: int, state: BranchState) -> Call:
        return Call(
            variant=variant,
            phase=Phase(variant.stage, remove, refresh=variant.refresh is not None),
            method=self.recipe.stages[self.stage].method,
            grid=self.grid,
            halves=1,
            share_batch="batch" in self.recipe.plan.share,
            every_layers=1,
            one_age_counter=False,
            advance_ages=True,
            state=state,
            shift_features=False,
            forecast_order=0,
            forecast_weight=1.0,
            threshold=None if variant.stage is not None else 0.0,
            salt=None,
            prompt_bias=torch.zeros(()),
        )
