"""What attention says about tokens, without an attention map that is held whole.

A map A = softmax(Q Kᵀ · scale) of N image tokens has N² numbers per head. Everything here takes rows of it in chunks,
which is exact up to the order of sums, or only those of evenly spread probe queries, which is an estimate.

| function | says | products per head |
|---|---|---|
| received_attention | what each image token receives: column sums | N · L · d |
| page_rank | the same, weighted by the importance of who attends, repeatedly | iterations · N² · d |
| cross_rank | how much image tokens attend to text tokens that matter | (iterations + 1) · N · T · d |
| most_attended | which of some tokens each of some others attends to most | sources · N · d |

With S probes, S takes the place of N among the rows, and page_rank takes 2 · S · N · d whatever the iterations.
"""

from __future__ import annotations

from sdtm_fx.attention_score.attended import most_attended
from sdtm_fx.attention_score.cross import CrossScore, cross_rank, query_importance
from sdtm_fx.attention_score.heads import AttentionHeads, attention_heads, combine_heads
from sdtm_fx.attention_score.page_rank import page_rank
from sdtm_fx.attention_score.received import received_attention

__all__ = [
    "AttentionHeads",
    "CrossScore",
    "attention_heads",
    "combine_heads",
    "cross_rank",
    "most_attended",
    "page_rank",
    "query_importance",
    "received_attention",
]
