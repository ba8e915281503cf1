"""The queries and keys of image tokens, as methods get them, and one score per token from one per head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionHeads:
    """What an attention map of image tokens is made of.

    Attributes:
        query: [B, H, N, d] float, the queries of the image tokens, as the attention kernel gets them.
        key: [B, H, N, d] float, their keys.
        text_key: [B, H, T, d] float, the other keys of joint attention, or None.
        scale: Factor on the logits; None is 1 / √d.
    """

    query: Tensor
    key: Tensor
    text_key: Tensor | None = None
    scale: float | None = None

    def shared(self, whole_batch: bool, halves: int) -> AttentionHeads:
        """Return the heads of samples that share a plan as heads of one sample.

        A mean over heads is then a mean over these samples too.

        Args:
            whole_batch: All samples share one plan.
            halves: How many guidance halves are stacked in the batch, otherwise.
        """
        samples = self.query.shape[0] if whole_batch else halves
        if samples == 1:
            return self
        text_key = None if self.text_key is None else _as_heads(self.text_key, samples)
        return AttentionHeads(
            _as_heads(self.query, samples), _as_heads(self.key, samples), text_key, self.scale
        )


def _as_heads(x: Tensor, samples: int) -> Tensor:
    """[S · B, H, L, d] to [B, S · H, L, d]."""
    return x.unflatten(0, (samples, -1)).transpose(0, 1).flatten(1, 2)


def attention_heads(
    query: Tensor, key: Tensor, *, image: tuple[int, int], text: bool, scale: float | None = None
) -> AttentionHeads:
    """Cut the image tokens out of the queries and keys of an attention.

    Args:
        query: [B, H, L, d].
        key: [B, H, L, d].
        image: Start and length of the image tokens.
        text: Whether the keys of all other tokens are wanted.
        scale: Factor on the logits.
    """
    start, length = image
    inside = slice(start, start + length)
    others = torch.cat([key[:, :, :start], key[:, :, start + length :]], dim=2) if text else None
    return AttentionHeads(query[:, :, inside], key[:, :, inside], others, scale)


def combine_heads(scores: Tensor, band: tuple[float, float]) -> Tensor:
    """Return the root mean square over the heads that tell tokens apart, but not by a few outliers (AT-EDM).

    Heads whose variance over the tokens lies outside of the band do not count; where that is all of them, all count.
    The variance is that of N times the scores, which have mean 1 then, so that it does not fall with the resolution:
    our reading, since no source says at which scale the band is meant. Heads are left out by weight, so shapes are
    static.

    Args:
        scores: [B, H, N] float32, summing to 1 per head.
        band: Least and largest variance.

    Returns:
        [B, N] float32.
    """
    variance = (scores * scores.shape[-1]).var(dim=-1, correction=0)
    counts = ((variance >= band[0]) & (variance <= band[1])).to(scores.dtype)
    counts = torch.where(counts.sum(dim=1, keepdim=True) > 0, counts, 1.0)[..., None]
    return ((scores.square() * counts).sum(dim=1) / counts.sum(dim=1)).sqrt()
