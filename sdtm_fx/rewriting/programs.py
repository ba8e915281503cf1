"""Programs: for one structure of block, the functions that it runs in each variant of the recipe."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import fx

from sdtm_fx.capture.arguments import Key, Leaf
from sdtm_fx.capture.blocks import capture_block
from sdtm_fx.capture.construction import construction, leaf_construction
from sdtm_fx.capture.tracer import Capture
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.codegen import BlockFunction, copy_graph, graph_function
from sdtm_fx.rewriting.runner import run_passes
from sdtm_fx.rewriting.serving import dense_variant, variants_of
from sdtm_fx.rewriting.spans import SpanPlace, Spans, active_span, forecast_span, sites_inside
from sdtm_fx.rewriting.structure import attention_texts, confirm_kinds, leaf_traits
from sdtm_fx.rewriting.work import BlockWork, SitePlace
from sdtm_fx.runtime import ops, span_ops
from sdtm_fx.runtime.call import OpenSpan, OpenStream, Variant


@dataclass(frozen=True)
class Program:
    """One block structure, rewritten.

    Attributes:
        captured: The captured graph.
        dense: The same as a function: what the block computes unchanged.
        functions: What a block runs, by variant; where a variant is missing, the block's own forward runs.
        code: The generated Python of each variant.
        applied: How often each pass applied, by variant.
        said: What passes noted, in order.
        places: The sites in it.
        spans: What it is in the spans of the recipe.
        features: By variant, the names of the features that it stores (dense steps) or reads (stages).
        moved: By variant, the channels that are brought into slots and back, over all merges and unmerges.
        streams: By variant, the span that is forecast or stored for and was begun before the block, and the argument
            that carries its tokens.
    """

    captured: fx.Graph
    dense: BlockFunction
    functions: dict[str, BlockFunction]
    code: dict[Variant, str]
    applied: dict[Variant, dict[str, int]]
    said: dict[str, None]
    places: tuple[SitePlace, ...]
    spans: Spans = ()
    features: dict[Variant, frozenset[str]] = field(default_factory=dict)
    moved: dict[Variant, int] = field(default_factory=dict)
    streams: dict[Variant, tuple[str, str]] = field(default_factory=dict)

    def begun(self, variant: Variant | None, leaves: list[Leaf]) -> dict[str, OpenSpan | OpenStream]:
        """The span that a block is called inside of, for whoever runs a block by itself: begun with its own tokens.

        Args:
            variant: The variant.
            leaves: The arguments of the block.
        """
        if variant is None or variant not in self.streams:
            return {}
        span, argument = self.streams[variant]
        names = [n.target for n in self.captured.nodes if n.op == "placeholder"]
        tokens = leaves[names.index(argument)]
        assert isinstance(tokens, torch.Tensor)
        return {span: OpenStream(tokens)}

    @property
    def notes(self) -> tuple[str, ...]:
        """Why something was not done."""
        return tuple(self.said)

    def __deepcopy__(self, memo: dict[int, object]) -> Program:
        """A program only ever grows by variants, and holds no module: copies of a model share it."""
        return self


@dataclass
class ProgramCache:
    """Rewrites each structure of block once.

    Attributes:
        recipe: The recipe.
        programs: By structure: that of the call, the text of the captured graph, the traits of the modules
            that it calls, the sites in it, and the widths of the sequences that it takes.
        traced: The same programs by what was traced, so that no block is traced of which an equal one was: the
            construction of block and arguments, the structure of the call, and the sites and spans in it.
    """

    recipe: Recipe
    programs: dict[tuple[object, ...], Program] = field(default_factory=dict)
    traced: dict[tuple[object, ...], Program] = field(default_factory=dict)

    def program(
        self,
        block: torch.nn.Module,
        key: Key,
        leaves: list[Leaf],
        places: tuple[SitePlace, ...],
        spans: Spans = (),
    ) -> Program:
        """Capture a block for one structure of call, and rewrite it unless an equal one was.

        Args:
            block: The block; it is not changed.
            key: Structure of the call.
            leaves: Example values, fake or real.
            places: The sites of the recipe in this block.
            spans: What it is in the spans of the recipe.

        Raises:
            CaptureError: The block cannot be traced.
            SiteError: A site is not what the recipe says.
            PassError: A pass failed.
        """
        made, given = construction(block), leaf_construction(leaves)
        if made is None or given is None:
            return self._of_structure(block, key, leaves, places, spans)
        known = (made, given, key, _inside(places), spans)
        if known not in self.traced:
            self.traced[known] = self._of_structure(block, key, leaves, places, spans)
        return self.traced[known]

    def _of_structure(
        self,
        block: torch.nn.Module,
        key: Key,
        leaves: list[Leaf],
        places: tuple[SitePlace, ...],
        spans: Spans,
    ) -> Program:
        capture = capture_block(block, key, leaves)
        opened = attention_texts(self.recipe, block, capture, places)
        # Blocks of other widths have equal graphs, but do not cost the same: the levels of a U-Net.
        widths = tuple(leaf.shape[-1] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim == 3)
        structure = (
            key,
            str(capture.graph),
            leaf_traits(block, capture),
            _inside(places),
            spans,
            opened,
            widths,
        )
        if structure not in self.programs:
            self.programs[structure] = _rewrite(self.recipe, block, capture, places, spans)
        return self.programs[structure]

    def gated(self, program: Program, block: torch.nn.Module, variant: Variant) -> None:
        """Rewrite a program once more, without the sites that a variant leaves out, unless that was done.

        Args:
            program: The program; the variant is added to it.
            block: A block of its structure; it is not changed.
            variant: The variant.
        """
        if variant.left_out and variant not in program.features:
            program.features[variant] = frozenset()  # where nothing is left to do, this is what is known
            _add_variant(self.recipe, block, program, variant)

    def refreshes(self, served: int, stage: int) -> bool:
        """Whether a dense step that stores features for one stage stores all that another stage reads."""
        return stores_enough(self.recipe, self.programs.values(), served, stage)


def _inside(places: tuple[SitePlace, ...]) -> tuple[tuple[int, str], ...]:
    """Which sites are where in a block, whichever block it is."""
    return tuple((place.site_index, place.local) for place in places)


def stores_enough(recipe: Recipe, programs: Iterable[Program], served: int, stage: int) -> bool:
    """Whether a dense step that stores features for one stage stores all that another stage reads.

    Args:
        recipe: The recipe of the programs.
        programs: What runs.
        served: The stage that the dense step stores for.
        stage: The stage that reads.
    """
    stored, read = dense_variant(recipe, served), Variant(stage=stage)
    nothing: frozenset[str] = frozenset()
    return all(p.features.get(read, nothing) <= p.features.get(stored, nothing) for p in programs)


def _rewrite(
    recipe: Recipe,
    block: torch.nn.Module,
    capture: Capture,
    places: tuple[SitePlace, ...],
    spans: Spans,
) -> Program:
    confirm_kinds(recipe, block, capture, places)
    dense = graph_function(capture.graph, block, f"{type(block).__name__}_captured")
    program = Program(capture.graph, dense, {}, {}, {}, {}, places, spans)
    for variant in variants_of(recipe):
        _add_variant(recipe, block, program, variant)
    return program


def _add_variant(recipe: Recipe, block: torch.nn.Module, program: Program, variant: Variant) -> None:
    """Rewrite the captured graph for a variant, unless there is nothing to do in it."""
    work = work_for(recipe, block, program, variant)
    if work is None:
        return
    program.applied[variant] = run_passes(work, importlib.import_module("sdtm_fx.passes").PASSES)
    name = f"{type(block).__name__}_{_label(recipe, variant)}"
    program.functions[variant.key] = graph_function(work.graph, block, name)
    program.code[variant] = work.graph.python_code("self").src
    program.said.update(dict.fromkeys(work.notes))
    program.moved[variant] = _moved(work)
    program.features[variant] = frozenset(
        str(n.args[-1])
        for n in work.calls(
            ops.store_feature,
            ops.forecast_feature,
            ops.blend_forecast,
            span_ops.store_stream,
            span_ops.forecast_stream,
        )
    )
    forecast = work.forecast
    if forecast is not None and forecast.last and not forecast.first:
        own = recipe.spans[forecast.span_index]
        program.streams[variant] = (own.id, own.input)


def work_for(recipe: Recipe, block: torch.nn.Module, program: Program, variant: Variant) -> BlockWork | None:
    """What passes do for one variant of a program: a copy of its captured graph, and what is in it.

    Args:
        recipe: The recipe.
        block: A block of the program's structure; it is not changed.
        program: Its graph, sites and spans.
        variant: Which steps the graph is for.

    Returns:
        The work, on which no pass has run yet; None where the block is left as it is.
    """
    attention = tuple(p for p in program.places if recipe.sites[p.site_index].kind == "attention")
    span = active_span(recipe, program.spans, variant)
    handled = _sites_of(recipe, variant, span)
    active = tuple(p for p in program.places if recipe.sites[p.site_index].id in handled)
    if variant.stage is None and variant.measure is None:  # where keys alone are merged, nothing is stored
        active = tuple(p for p in active if recipe.sites[p.site_index].merge == "tokens")
    forecast = forecast_span(recipe, program.spans, variant)
    if forecast is not None and not _has_part(forecast, variant):
        forecast = None
    if not active and span is None and forecast is None and (recipe.prompt is None or not attention):
        return None
    if variant == Variant(stage=None) and recipe.prompt is None:
        return None
    return BlockWork(copy_graph(program.captured), block, recipe, variant, active, attention, span, forecast)


def _has_part(place: SpanPlace, variant: Variant) -> bool:
    """Whether a block does anything for its span: on a dense step only the first and the last one do."""
    return variant.stage is not None or place.first or place.last


def _moved(work: BlockWork) -> int:
    """The channels that a graph brings into slots and back; a span of dense residual merges once more where it ends."""
    once = work.calls(ops.merge_tokens, ops.unmerge_tokens, ops.blend_forecast, span_ops.enter_span)
    left = work.calls(span_ops.leave_span)
    if work.span is not None and work.recipe.spans[work.span.span_index].residual == "dense":
        left = left * 2
    return sum(int(n.meta["val"].shape[-1]) for n in (*once, *left))


def _sites_of(recipe: Recipe, variant: Variant, span: SpanPlace | None) -> tuple[str, ...]:
    """Ids of the sites that a block handles: inside of a span those that merge there, elsewhere those of the stage."""
    if span is not None and span.is_short(recipe.spans[span.span_index]):
        return tuple(site for site in sites_inside(recipe, variant.stage) if site not in variant.left_out)
    stages = {i for i in (variant.stage, variant.refresh, variant.measure) if i is not None}
    return tuple(site for i in stages for site in recipe.stages[i].sites if site not in variant.left_out)


def _label(recipe: Recipe, variant: Variant) -> str:
    without = "".join(f"_without_{site}" for site in sorted(variant.left_out))
    if variant.stage is not None:
        return f"{recipe.stages[variant.stage].name}{without}".replace("-", "_")
    return (
        "dense"
        if variant.refresh is None
        else f"dense_for_{recipe.stages[variant.refresh].name}{without}".replace("-", "_")
    )
