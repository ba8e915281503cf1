"""What merging saves, at any size, from one small measurement.

Removing R of N image tokens saves linear work in proportion to R, and attention over a sequence of L = N + T tokens
(T text tokens) in proportion to L^2 - (L - R)^2. The factors are counted once per block structure, by running its
graphs on fake tensors for two values of R; sizes enter afterwards. A skipped site may leave out its text tokens too:
how much of its linear work runs on text, the lengths of the sequences tell.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sdtm_fx.capture.arguments import Leaf
from sdtm_fx.cost.counter import MacCounter, Macs
from sdtm_fx.cost.effort import Effort, EffortCounter
from sdtm_fx.cost.extra import Extra, fit_extra
from sdtm_fx.methods.base import Method, TokenView
from sdtm_fx.phase import Phase
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import Program, dense_variant
from sdtm_fx.runtime.call import BlockContext, Call, Variant
from sdtm_fx.runtime.ops import plan_tokens
from sdtm_fx.runtime.state import BranchState


@dataclass(frozen=True)
class Saving:
    """What removing image tokens saves in a block or at a site.

    Attributes:
        linear: MACs of linear layers per removed token and sample.
        attention: MACs per sample and pair of tokens that attention no longer compares.
        text_share: Part of the text that stands in the attended sequence; between 0 and 1 where a block has
            attention with and without text.
        text_linear: MACs of linear layers per text token and sample that are saved however many image tokens
            remain, where a skipped site computes no text either.
        skips_text: Whether attention among the text tokens is saved as well.
        fixed: MACs of linear layers per sample that are saved whatever the size: modulations of what is skipped.
    """

    linear: float
    attention: float
    text_share: float
    text_linear: float = 0.0
    skips_text: bool = False
    fixed: float = 0.0

    def at(self, tokens: int, text: int, remove: int) -> Macs:
        """MACs saved per sample by removing `remove` of `tokens` image tokens beside `text` text tokens."""
        sequence = tokens + self.text_share * text
        left = 0.0 if self.skips_text else sequence - remove
        linear = self.linear * remove + self.text_linear * text + self.fixed
        return Macs(linear, linear + self.attention * (sequence**2 - left**2))


@dataclass(frozen=True)
class BlockCost:
    """The cost of one block in one stage.

    Attributes:
        saving: What the stage saves in the whole block, the search for tokens left out.
        sites: The same at each site, by path inside the block; what lies between sites is in `saving` only.
        width: Channels that similarity is computed from.
        dense: MACs of the whole block at the measured size, per sample, nothing removed.
        size: Image and text tokens of the measured size.
        extra: What the stage adds and saves beside products, the search for tokens left out; None where only
            products were counted.
    """

    saving: Saving
    sites: dict[str, Saving]
    width: int
    dense: Macs
    size: tuple[int, int]
    extra: Extra | None

    def dense_at(self, tokens: int, text: int) -> float:
        """Total MACs per sample without merging, scaled from the measured size; good to a few percent."""
        grown = (tokens + text) / sum(self.size)
        return self.dense.linear * grown + self.dense.attention * grown**2


def plan_macs(method: Method, grid: tuple[int, int], text: int, width: int, remove: int) -> Macs:
    """What finding the tokens to merge costs, per plan; `width` is that of the tokens compared."""
    if remove <= 0 or method.name == "skip":
        return Macs()
    tokens = grid[0] * grid[1]
    # A continuous curve asks for counts between those that the method can remove; the search costs the same.
    remove = min(max(remove, method.quantum()), method.capacity(grid)) // method.quantum() * method.quantum()
    reads_attention = "attention" in method.wants()
    with torch.device("meta"):
        view = TokenView(
            torch.empty(1, tokens, width),
            grid,
            torch.empty(1, tokens, dtype=torch.int32) if "ages" in method.needs else None,
            torch.empty(1, tokens) if reads_attention else None,
        )
        with MacCounter() as counter:
            method.plan(view, remove)
    return counter.macs + _score_macs(method, grid, text, width)


def _score_macs(method: Method, grid: tuple[int, int], text: int, width: int) -> Macs:
    """What reading the attention that tokens receive costs, per plan."""
    if "attention" not in method.wants():
        return Macs()
    tokens = grid[0] * grid[1]
    probes = min(getattr(method, "probe_queries", None) or tokens, tokens)
    return Macs(0.0, float(probes * (tokens + text) * width))


def plan_effort(
    recipe: Recipe,
    stage: int,
    grid: tuple[int, int],
    text: int,
    width: int,
    remove: int,
    batch: int,
    dtype: torch.dtype,
) -> Effort:
    """All that making one plan asks of a device, as a block does it.

    Args:
        recipe: The recipe.
        stage: Index of the stage.
        grid: (height, width) in tokens.
        text: Text tokens.
        width: Channels of the tokens that are compared.
        remove: Tokens removed; what the method can remove.
        batch: Samples in the call; where the recipe shares plans over CFG halves, an even number has two.
        dtype: Of the tokens.
    """
    method, tokens = recipe.stages[stage].method, grid[0] * grid[1]
    if remove <= 0 or method.name == "skip":
        return Effort()
    reads_attention = "attention" in method.wants()
    counter = EffortCounter()
    with torch.no_grad(), FakeTensorMode():
        call = model_call(recipe, stage, Variant(stage=stage), grid, remove, BranchState())
        call = replace(call, halves=2 if "cfg" in recipe.plan.share and batch % 2 == 0 else 1)
        metric = torch.empty(batch, tokens, width, dtype=dtype)
        with counter.counting():
            plan_tokens(
                BlockContext(call, 0, {}), metric, torch.empty(batch, tokens) if reads_attention else None
            )
    return counter.effort + Effort(attention=_score_macs(method, grid, text, width).total * batch)


def measure_block(
    recipe: Recipe,
    stage: int,
    program: Program,
    block: torch.nn.Module,
    leaves: list[Leaf],
    grid: tuple[int, int],
    text: int,
    left_out: frozenset[str] = frozenset(),
    with_extra: bool = False,
) -> BlockCost | None:
    """Measure a block in a stage, on the example call that it was captured with.

    Args:
        recipe: The recipe.
        stage: Index of the stage.
        program: The rewritten block.
        block: A block of the program's structure.
        leaves: The arguments of the example call, fake tensors.
        grid: (height, width) in tokens of the example.
        text: Text tokens of the example.
        left_out: Sites that stay dense; the program has the variants of this stage without them.
        with_extra: Count what is no product too.

    Returns:
        The cost, None when the stage leaves the block alone.
    """
    if Variant(stage=stage, left_out=left_out) not in program.functions:
        return None
    sequence = next(leaf for leaf in leaves if isinstance(leaf, FakeTensor) and leaf.ndim == 3)
    batch, width, tokens = sequence.shape[0], sequence.shape[-1], grid[0] * grid[1]
    trial = _Trial(recipe, stage, program, block, leaves, grid, left_out, with_extra)
    method, plans = recipe.stages[stage].method, 1 if "batch" in recipe.plan.share else batch
    with torch.no_grad(), sequence.fake_mode:
        dense, stored, merged = trial.run(batch)
    extra = None
    if with_extra:
        added = {remove: counter.effort - dense.effort for remove, counter in merged.items()}
        extra = fit_extra(added, stored.effort - dense.effort, tokens, batch, sequence.dtype.itemsize)
    inside, whole = dense.products.inside, dense.products.macs * (1 / batch)
    if method.name == "skip":
        (skipped,) = merged.values()
        left = functools.partial(_skipped, dense.products, skipped.products, batch, tokens, text)
        return BlockCost(
            left(None), {name: left(name) for name in inside}, width, whole, (tokens, text), extra
        )
    counted = {remove: counter.products for remove, counter in merged.items()}
    scoring = _score_macs(method, grid, text, width) * plans
    saved = {remove: dense.products.macs - counter.macs + scoring for remove, counter in counted.items()}
    sites = {
        name: {remove: inside[name] - counter.inside[name] for remove, counter in counted.items()}
        for name in inside
        # An instrumented attention runs as a graph, not as a module call, and cannot be told apart.
        if all(counter.inside[name].total for counter in counted.values())
    }
    return BlockCost(
        saving=_fit(saved, batch, tokens, text),
        sites={name: _fit(site, batch, tokens, text) for name, site in sites.items()},
        width=width,
        dense=whole,
        size=(tokens, text),
        extra=extra,
    )


def _fit(saved: dict[int, Macs], batch: int, tokens: int, text: int) -> Saving:
    """Solve ``attention(R) = a (2 L R - R^2)`` for a and L from two counts; of one count, L is all tokens."""
    (few, less), (many, more) = min(saved.items()), max(saved.items())
    linear = more.linear / batch / many
    if not more.attention:
        return Saving(linear, 0.0, 0.0)
    if few == many:
        sequence = float(tokens + text)
        return Saving(linear, more.attention / batch / (2 * sequence * many - many**2), 1.0)
    attention = (less.attention / few - more.attention / many) / (many - few)
    sequence = (more.attention / many / attention + many) / 2
    return Saving(linear, attention / batch, (sequence - tokens) / text if text else 0.0)


def _skipped(
    dense: MacCounter, skipped: MacCounter, batch: int, tokens: int, text: int, name: str | None
) -> Saving:
    """What leaving sites out saves in the block (None) or at one site, from one count of each."""
    before, after = (c.macs if name is None else c.inside[name] for c in (dense, skipped))
    saved, rows = before - after, Counter(dense.rows[name])
    rows.subtract(skipped.rows[name])
    # A layer on both streams in one sequence counts for each by its tokens.
    on_text = rows[text] + rows[tokens + text] * text / (tokens + text) if text not in (0, tokens) else 0.0
    text_linear = on_text / text / batch if on_text else 0.0
    fixed = rows[0] / batch
    linear = (saved.linear / batch - text_linear * text - fixed) / tokens
    if not saved.attention:
        return Saving(linear, 0.0, 0.0, text_linear, fixed=fixed)
    names = dense.inside if name is None else (name,)
    skips_text = any(dense.inside[n].attention and not skipped.inside[n].attention for n in names)
    pairs = (tokens + text) ** 2 - (0 if skips_text else text**2)
    return Saving(linear, saved.attention / batch / pairs, 1.0, text_linear, skips_text, fixed)


@dataclass(frozen=True)
class _Trial:
    """Runs one block in one stage on fake tensors."""

    recipe: Recipe
    stage: int
    program: Program
    block: torch.nn.Module
    leaves: list[Leaf]
    grid: tuple[int, int]
    left_out: frozenset[str]
    with_extra: bool

    def counts(self) -> tuple[int, ...]:
        """A small and a large number of tokens that the stage can remove on this grid."""
        method = self.recipe.stages[self.stage].method
        if method.name == "skip":
            return (self.grid[0] * self.grid[1],)
        units = method.capacity(self.grid) // method.quantum()
        return tuple(sorted({max(1, units // 3) * method.quantum(), max(1, units) * method.quantum()}))

    def run(self, batch: int) -> tuple[EffortCounter, EffortCounter, dict[int, EffortCounter]]:
        """Count the dense block, the one that stores features, and the merged one, the plan being given."""
        state = BranchState(slope=torch.zeros((), device=self._device))
        dense = self._count(None, 0, state, {})
        stored = self._count(self._refresh, 0, state, {})  # stores what the stage may forecast from
        merged = {n: self._count(self._variant, n, state, self._plan(n, batch)) for n in self.counts()}
        return dense, stored, merged

    def _count(
        self, variant: Variant | None, remove: int, state: BranchState, planned: dict[int, object]
    ) -> EffortCounter:
        """Count one run, and what runs inside each site's module."""
        modules = {place.local: self.block.get_submodule(place.local) for place in self.program.places}
        counter = EffortCounter()
        function = None if variant is None else self.program.functions.get(variant)
        with counter.counting(not self.with_extra), counter.products.watching(modules):
            if variant is None or function is None:
                self.program.dense(self.block, *self.leaves)
            else:
                call = model_call(self.recipe, self.stage, variant, self.grid, remove, state)
                function(self.block, BlockContext(call, 0, planned), *self.leaves)
        return counter

    def _plan(self, remove: int, batch: int) -> dict[int, object]:
        """A plan that the block finds made already."""
        method, tokens = self.recipe.stages[self.stage].method, self.grid[0] * self.grid[1]
        if method.name == "skip":
            return {}
        rows = 1 if "batch" in self.recipe.plan.share else batch
        with self._device:
            ages = torch.zeros(rows, tokens, dtype=torch.int32) if "ages" in method.needs else None
            attention = torch.zeros(rows, tokens) if "attention" in method.needs else None
            view = TokenView(torch.zeros(rows, tokens, 8), self.grid, ages, attention)
        return {0: method.plan(view, remove)}

    @property
    def _device(self) -> torch.device:
        return next(v.device for v in self.leaves if isinstance(v, FakeTensor) and v.ndim == 3)

    @property
    def _variant(self) -> Variant:
        return Variant(stage=self.stage, left_out=self.left_out)

    @property
    def _refresh(self) -> Variant:
        dense = dense_variant(self.recipe, self.stage)
        return dense if dense.measure is not None else replace(dense, left_out=self.left_out)


def model_call(
    recipe: Recipe, stage: int, variant: Variant, grid: tuple[int, int], remove: int, state: BranchState
) -> Call:
    """A call of a model with one block and no generation around it."""
    return Call(
        variant=variant,
        phase=Phase(variant.stage, remove, refresh=variant.refresh is not None),
        method=recipe.stages[stage].method,
        grid=grid,
        halves=1,
        share_batch="batch" in recipe.plan.share,
        every_layers=1,
        keep_plans=False,
        one_age_counter=False,
        advance_ages=True,
        state=state,
        forecast_order=0 if recipe.reuse is None else recipe.reuse.order,
        forecast_weight=1.0,
        threshold=None if variant.stage is not None else 0.0,
        salt=None,
        prompt_bias=torch.zeros(()),
    )
