"""AT-EDM: the least important tokens go, and come back as copies of whom they attended to."""

from __future__ import annotations

import pytest
import torch

from sdtm_fx.attention_score import AttentionHeads, combine_heads, most_attended, page_rank
from sdtm_fx.errors import PlanError
from sdtm_fx.methods import AtEdm, OptionError, TokenView, plan_merge

GRID, TOKENS = (5, 6), 30


def view(seed: int = 0) -> TokenView:
    draw = torch.Generator().manual_seed(seed)
    query, key, text = (torch.randn(2, 3, n, 8, generator=draw) for n in (TOKENS, TOKENS, 4))
    metric = torch.randn(2, TOKENS, 8, generator=draw)
    return TokenView(metric, GRID, heads=AttentionHeads(query * 2, key, text))


def test_the_most_important_stay_with_their_own_value() -> None:
    given = view()
    assert given.heads is not None
    method = AtEdm(probe_queries=None, band=(0.0, 100.0), iterations=3)
    plan = method.plan(given, 20)
    score = page_rank(given.heads.query, given.heads.key, iterations=3).square().mean(dim=1).sqrt()
    kept = score.topk(10).indices.sort(dim=1).values
    assert torch.equal(plan.positions, kept)
    x = torch.randn(2, TOKENS, 4)
    assert torch.equal(
        plan.merge(x), x.gather(1, kept[..., None].expand(-1, -1, 4))
    )  # pruned, nothing averaged


def test_pruned_tokens_copy_whom_they_attended_to() -> None:
    given = view(1)
    assert given.heads is not None
    plan = AtEdm().plan(given, 17)
    x = torch.randn(2, TOKENS, 4)
    back = plan.unmerge(plan.merge(x))
    for row in range(2):
        kept = plan.positions[row]
        gone = torch.tensor([t for t in range(TOKENS) if t not in kept.tolist()])
        assert torch.equal(back[row, kept], x[row, kept])
        sample = AttentionHeads(given.heads.query[row : row + 1], given.heads.key[row : row + 1])
        partner = most_attended(sample, gone[None], kept[None])[0]
        assert torch.equal(back[row, gone], x[row, partner])


def test_a_copy_may_be_chosen_by_cosine() -> None:
    given = view(2)
    plan = AtEdm(similarity="cosine").plan(given, 12)
    assert torch.equal(plan.positions, AtEdm().plan(given, 12).positions)  # who stays is the same
    unit = torch.nn.functional.normalize(given.metric, dim=-1)
    for row in range(2):
        kept = plan.positions[row]
        best = (unit[row] @ unit[row, kept].T).argmax(dim=1)
        assert torch.equal(plan.assign[row], best)


@pytest.mark.parametrize("rank", ["entropy", "hard_clip", "soft_clip", "power"])
def test_attention_to_text_says_something_else(rank: str) -> None:
    given = view(3)
    ours, text = AtEdm().score(given), AtEdm(rank=rank).score(given)  # type: ignore[arg-type]
    assert text.shape == ours.shape == (2, TOKENS)
    assert not torch.allclose(text, ours)


def test_the_scale_of_the_attention_is_kept() -> None:
    given = view(4)
    assert given.heads is not None
    scaled = TokenView(
        given.metric, GRID, heads=AttentionHeads(given.heads.query, given.heads.key, scale=1.0)
    )
    loud = AttentionHeads(given.heads.query * 8**0.5, given.heads.key)
    method = AtEdm(probe_queries=None)
    torch.testing.assert_close(method.score(scaled), method.score(TokenView(given.metric, GRID, heads=loud)))
    assert torch.equal(
        method.score(given),
        combine_heads(page_rank(given.heads.query, given.heads.key, iterations=10), method.band),
    )


def test_what_is_missing_is_named() -> None:
    given = view()
    assert given.heads is not None
    with pytest.raises(PlanError, match="at_edm: found no queries and keys"):
        plan_merge("at_edm", given.metric, grid=GRID, remove=3)
    short = AttentionHeads(given.heads.query[:, :, 1:], given.heads.key)
    with pytest.raises(
        PlanError, match=r"queries of shape \(2, 3, 29, 8\); accepted \[2, heads, 30, channels\]"
    ):
        plan_merge("at_edm", given.metric, grid=GRID, remove=3, heads=short)
    wordless = AttentionHeads(given.heads.query, given.heads.key)
    with pytest.raises(PlanError, match="found no text keys for rank 'power'"):
        plan_merge("at_edm", given.metric, grid=GRID, remove=3, heads=wordless, rank="power")
    with pytest.raises(OptionError, match=r"at_edm: found band \(0.5, 0.1\)"):
        AtEdm(band=(0.5, 0.1))
