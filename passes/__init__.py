"""Graph rewrites, one per file. `PASSES` is the order in which they run over every block graph.

| pass | rewrite |
|---|---|
| locate_sites | finds the sites of the recipe in the graph and checks them |
| measure_threshold | counts what a threshold would merge, on dense steps (SDTM*) |
| insert_merges | ``f(x)`` becomes ``unmerge(f(merge(x)))`` at every site |
| insert_spans | merges at the start or end of a block, unmerges at the end of a later one |
| share_plans | one plan for all sites of a block |
| gather_rotary | position tables follow the tokens |
| reduce_keys | inside attention, fewer image keys and values; queries stay dense |
| weigh_slots | inside attention, log(size of its slot) on the logits of every image key |
| instrument_attention | reads the attention that tokens receive; adds a log-weight to text keys |
| call_opened | attention that was changed inside is called as a graph |
| sink_unmerge | moves elementwise work and projections in front of the unmerge |
| split_projection | ``proj(cat[a, unmerge(m)])`` becomes ``proj_a(a) + unmerge(proj_m(m))`` |
| reuse_features | stores outputs on dense steps, blends or forecasts them on others |
| forecast_spans | leaves a run of blocks out and forecasts what they add, from dense steps that store it |
"""

from __future__ import annotations

if __name__ != "sdtm_fx.passes":
    raise ImportError("import sdtm_fx.passes, not passes: the folder is part of the sdtm_fx package")

from sdtm_fx.passes.call_opened import CALL_OPENED
from sdtm_fx.passes.forecast_spans import FORECAST_SPANS
from sdtm_fx.passes.gather_rotary import GATHER_ROTARY
from sdtm_fx.passes.insert_merges import INSERT_MERGES
from sdtm_fx.passes.insert_spans import INSERT_SPANS
from sdtm_fx.passes.instrument_attention import INSTRUMENT_ATTENTION
from sdtm_fx.passes.locate_sites import LOCATE_SITES
from sdtm_fx.passes.measure_threshold import MEASURE_THRESHOLD
from sdtm_fx.passes.reduce_keys import REDUCE_KEYS
from sdtm_fx.passes.reuse_features import REUSE_FEATURES
from sdtm_fx.passes.share_plans import SHARE_PLANS
from sdtm_fx.passes.sink_unmerge import SINK_UNMERGE
from sdtm_fx.passes.split_projection import SPLIT_PROJECTION
from sdtm_fx.passes.weigh_slots import WEIGH_SLOTS
from sdtm_fx.rewriting.work import Pass

PASSES: tuple[Pass, ...] = (
    LOCATE_SITES,
    MEASURE_THRESHOLD,
    INSERT_MERGES,
    INSERT_SPANS,
    SHARE_PLANS,
    GATHER_ROTARY,
    REDUCE_KEYS,
    WEIGH_SLOTS,
    INSTRUMENT_ATTENTION,
    CALL_OPENED,
    SINK_UNMERGE,
    SPLIT_PROJECTION,
    REUSE_FEATURES,
    FORECAST_SPANS,
)

__all__ = ["PASSES"]
