"""The runner: order, counts, and blame for a pass that breaks a graph."""

from __future__ import annotations

import dataclasses

import pytest

from sdtm_fx.errors import PassError, SiteError
from sdtm_fx.passes import PASSES
from sdtm_fx.rewriting.runner import run_passes
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops
from tests.passes.blocks import GatedBlock, condition, image
from tests.passes.working import ATTN, FF, capture_work, recipe


def fresh() -> BlockWork:
    return capture_work(GatedBlock(), (image(), condition()), recipe([ATTN, FF]))


def raises(work: BlockWork) -> int:
    raise KeyError("lost")


def unordered(work: BlockWork) -> int:
    """Leave a graph that uses a value before it is made."""
    nodes = list(work.graph.nodes)
    nodes[1].append(work.calls(ops.unmerge_tokens)[-1])
    return 1


def refuses(work: BlockWork) -> int:
    raise SiteError("not this block")


def test_every_pass_is_counted_in_order() -> None:
    applied = run_passes(fresh(), PASSES)
    assert list(applied) == [p.name for p in PASSES]
    assert applied == {
        "locate_sites": 2,
        "measure_threshold": 0,
        "insert_merges": 2,
        "insert_spans": 0,
        "share_plans": 1,
        "gather_rotary": 0,
        "reduce_keys": 0,
        "weigh_slots": 0,
        "instrument_attention": 0,
        "call_opened": 0,
        "sink_unmerge": 2,
        "split_projection": 0,
        "reuse_features": 0,
        "forecast_spans": 0,
    }


def test_a_pass_that_raises_is_named_with_those_before_it() -> None:
    with pytest.raises(
        PassError,
        match=r"pass 'bad' broke the graph of GatedBlock: KeyError: 'lost' "
        r"\(passes before it: locate_sites, measure_threshold, insert_merges\)",
    ) as caught:
        run_passes(fresh(), (*PASSES[:3], Pass("bad", exact=True, run=raises)))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_pass_that_leaves_a_malformed_graph_is_named() -> None:
    with pytest.raises(
        PassError,
        match=r"(?s)pass 'tangle' broke the graph .*used before it has been defined.*insert_merges\)$",
    ):
        run_passes(fresh(), (*PASSES[:3], Pass("tangle", exact=True, run=unordered)))


def test_the_first_pass_has_none_before_it() -> None:
    with pytest.raises(PassError, match=r"\(passes before it: none\)"):
        run_passes(fresh(), (Pass("bad", exact=True, run=raises),))


def test_a_refusal_is_passed_on_in_its_own_words() -> None:
    with pytest.raises(SiteError, match=r"^not this block$"):
        run_passes(fresh(), (Pass("picky", exact=True, run=refuses),))


def test_passes_have_names_of_their_own() -> None:
    names = [p.name for p in PASSES]
    assert len(set(names)) == len(names)
    assert [p.name for p in PASSES if p.exact] == [
        "locate_sites",
        "measure_threshold",
        "call_opened",
        "sink_unmerge",
        "split_projection",
    ]


def test_passes_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PASSES[0].name = "other"  # type: ignore[misc]


def test_passes_are_not_a_package_of_their_own() -> None:
    with pytest.raises(ImportError, match=r"import sdtm_fx\.passes, not passes"):
        __import__("passes")
