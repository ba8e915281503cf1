"""Page rank and attention to text: as networkx says, as the formulas say, whole or in chunks, or estimated."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from networkx.algorithms.link_analysis.pagerank_alg import _pagerank_python
from torch import Tensor

from sdtm_fx.attention_score import (
    AttentionHeads,
    attention_heads,
    combine_heads,
    cross_rank,
    most_attended,
    page_rank,
    query_importance,
    received_attention,
)
from sdtm_fx.errors import PlanError

SCORES = ("entropy", "hard_clip", "soft_clip", "power")


def heads(tokens: int, seed: int = 0, batch: int = 2, count: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, batch, count, tokens, 8, generator=draw).unbind()
    return query * 2, key


def whole_map(query: Tensor, key: Tensor) -> Tensor:
    return torch.softmax(query.double() @ key.double().mT / 8**0.5, dim=-1)


def smooth(side: int, seed: int) -> Tensor:
    """[1, 2, side², 16]: tokens that resemble their neighbours."""
    coarse = torch.randn(2, 16, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return (
        torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").flatten(2).mT[None] * 1.5
    )


def test_many_iterations_are_the_page_rank_of_networkx() -> None:
    query, key = heads(24, batch=1)
    found = page_rank(query, key, iterations=200)[0]
    for head, attention in enumerate(whole_map(query, key)[0]):
        graph = nx.from_numpy_array(attention.numpy(), create_using=nx.DiGraph)
        # The paper has no damping, which is alpha 1; the map is positive, so there is one stationary distribution.
        # The public function is this one in scipy, which nothing here needs.
        ranks = _pagerank_python(graph, alpha=1.0, max_iter=1000, tol=1e-12)
        expected = torch.tensor([ranks[token] for token in range(24)])
        torch.testing.assert_close(found[head], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_are_the_whole_map(iterations: int, chunk: int) -> None:
    query, key = heads(50)
    expected = torch.full((2, 3, 50), 1 / 50, dtype=torch.float64)
    for _ in range(iterations):
        expected = (whole_map(query, key).mT @ expected[..., None])[..., 0]
    found = page_rank(query, key, iterations=iterations, chunk=chunk)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-7, rtol=1e-5)


def test_one_iteration_is_the_attention_received() -> None:
    query, key = heads(40)
    received = received_attention(query, key, image=(0, 40))
    torch.testing.assert_close(page_rank(query, key, iterations=1).mean(dim=1), received)


@pytest.mark.parametrize("tokens", [64, 61])
def test_probes_keep_the_mass_and_come_close(tokens: int) -> None:
    query, key = (smooth(16, seed)[:, :, : tokens * 4] for seed in (2, 3))
    exact = page_rank(query, key, iterations=8)
    errors = []
    for probes in (8, 32, 128):
        found = page_rank(query, key, iterations=8, probes=probes)
        torch.testing.assert_close(found.sum(dim=-1), torch.ones(1, 2))
        errors.append((found - exact).abs().sum(dim=-1).max().item() / 2)
    # Half the summed error is the part of the importance that is at another token.
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.25
    assert errors[2] < 0.02


def test_probes_are_the_walk_over_spans() -> None:
    query, key = heads(12, batch=1, count=1)
    rows = whole_map(query, key)[0, 0][[1, 4, 7, 10]]  # the middle queries of four spans of three
    mass = torch.full((4,), 0.25, dtype=torch.float64)
    for _ in range(2):
        mass = (mass @ rows).view(4, 3).sum(dim=1)
    found = page_rank(query, key, iterations=3, probes=4)[0, 0]
    torch.testing.assert_close(found.double(), mass @ rows, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("chunk", [1, 13, 1000])
def test_attention_to_text_is_the_formula(score: str, chunk: int) -> None:
    query, key = heads(30)
    key = key[:, :, :6]
    attention = torch.softmax(query.double() @ key.double().mT / 8**0.5, dim=-1)
    importance = torch.full((2, 3, 30), 1 / 30, dtype=torch.float64)
    for _ in range(2):
        s_key = (attention.mT @ importance[..., None])[..., 0][:, :, None]
        importance = {
            "entropy": (attention * s_key).sum(-1) / -(attention * attention.log()).sum(-1),
            "hard_clip": ((attention >= 0.2) * s_key).sum(-1),
            "soft_clip": (s_key / (1 + torch.exp(0.2 - attention))).sum(-1),
            "power": ((3 * s_key) ** (5 * attention)).sum(-1),
        }[score]
        importance = importance / importance.sum(-1, keepdim=True)
    found = cross_rank(query, key, score=score, iterations=2, chunk=chunk)  # type: ignore[arg-type]
    torch.testing.assert_close(found.double(), importance, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("score", SCORES)
def test_probes_estimate_the_attention_to_text(score: str) -> None:
    query, key = smooth(16, 4), smooth(16, 5)[:, :, ::40]
    exact = cross_rank(query, key, score=score)  # type: ignore[arg-type]
    few, many = (
        (cross_rank(query, key, score=score, probes=probes) - exact).abs().sum(-1).max().item() / 2  # type: ignore[arg-type]
        for probes in (8, 128)
    )
    assert many < 0.02
    assert many < few


def test_scores_without_any_importance_are_uniform() -> None:
    query, key = torch.zeros(1, 1, 9, 4), torch.zeros(1, 1, 40, 4)  # 1 / 40 everywhere, below the clip
    assert torch.equal(cross_rank(query, key, score="hard_clip", iterations=3), torch.full((1, 1, 9), 1 / 9))
    certain = torch.eye(3)[None]
    assert torch.isfinite(query_importance(certain, torch.ones(1, 3), "entropy")).all()


def test_heads_outside_the_band_do_not_count() -> None:
    draw = torch.Generator().manual_seed(0)
    even, lively, wild = torch.full((8,), 1 / 8), torch.rand(8, generator=draw), torch.eye(8)[0]
    lively = lively / lively.sum()
    scores = torch.stack([even, lively, wild])[None]
    torch.testing.assert_close(combine_heads(scores, (0.01, 0.7))[0], lively)
    both = ((even**2 + lively**2) / 2).sqrt()
    torch.testing.assert_close(combine_heads(scores, (0.0, 0.7))[0], both)
    none = scores.square().mean(dim=1).sqrt()
    torch.testing.assert_close(combine_heads(scores, (0.69, 0.7)), none)  # all heads are out: all count
    finer = scores.repeat_interleave(4, dim=-1) / 4  # the same image at twice the resolution
    torch.testing.assert_close(combine_heads(finer, (0.01, 0.7))[0], lively.repeat_interleave(4) / 4)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_the_most_attended_keeper_is_found(chunk: int) -> None:
    query, key = heads(20)
    order = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    keepers, sources = order[:, :7], order[:, 7:]
    found = most_attended(AttentionHeads(query, key), sources, keepers, chunk=chunk)
    mean = whole_map(query, key).mean(dim=1)
    for row in range(2):
        best = mean[row][sources[row]][:, keepers[row]].argmax(dim=1)
        assert torch.equal(found[row], keepers[row][best])


def test_image_tokens_are_cut_out_of_joint_attention() -> None:
    query, key = heads(10)
    cut = attention_heads(query, key, image=(3, 5), text=True, scale=0.5)
    assert torch.equal(cut.query, query[:, :, 3:8])
    assert torch.equal(cut.key, key[:, :, 3:8])
    assert cut.text_key is not None
    assert torch.equal(cut.text_key, key[:, :, [0, 1, 2, 8, 9]])
    assert cut.scale == 0.5
    assert attention_heads(query, key, image=(3, 5), text=False).text_key is None


def test_samples_that_share_a_plan_are_more_heads() -> None:
    query, key = heads(9, batch=4, count=2)
    halves = AttentionHeads(query, key, key[:, :, :2]).shared(False, 2)
    assert halves.query.shape == halves.key.shape == (2, 4, 9, 8)
    assert torch.equal(halves.query[1], torch.cat([query[1], query[3]]))
    assert halves.text_key is not None
    assert torch.equal(halves.text_key[0], torch.cat([key[0], key[2]])[:, :2])
    assert AttentionHeads(query, key).shared(True, 1).query.shape == (1, 8, 9, 8)
    alone = AttentionHeads(query, key)
    assert alone.shared(False, 1) is alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"iterations": 0},
            "page_rank: found iterations 0, probes None and chunk 256; accepted counts of one",
        ),
        ({"iterations": 1, "probes": 0}, "probes 0"),
        ({"iterations": 1, "chunk": 0}, "chunk 0"),
    ],
)
def test_counts_below_one(options: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        page_rank(*heads(5), **options)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="cross_rank: found"):
        cross_rank(*heads(5), score="entropy", **options)  # type: ignore[arg-type]


def test_autocast_takes_nothing_off_the_precision() -> None:
    query, key = heads(40)
    plain = page_rank(query, key, iterations=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(page_rank(query, key, iterations=3), plain)
        estimated = page_rank(query, key, iterations=3, probes=10)
    assert torch.equal(estimated, page_rank(query, key, iterations=3, probes=10))
