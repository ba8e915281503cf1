"""Toy blocks: the structures that diffusion transformers have, in a few lines each.

All take image tokens [B, N, WIDTH] and a condition [B, WIDTH]; text, where there is some, is [B, T, WIDTH].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 8
HIDDEN = 16


class Attention(nn.Module):
    """Self-attention, or attention over `context` where it is given."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        query = self.qkv(hidden_states).chunk(3, dim=-1)[0]
        _, key, value = self.qkv(hidden_states if context is None else context).chunk(3, dim=-1)
        heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (query, key, value)]
        return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class JointAttention(Attention):
    """Attention over text and image, joined before heads are split off; returns image and text."""

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self.qkv(encoder_hidden_states), self.qkv(hidden_states)]
        query, key, value = torch.cat(parts, dim=-2).chunk(3, dim=-1)
        heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (query, key, value)]
        joint = self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        length = encoder_hidden_states.shape[1]
        return joint[:, length:], joint[:, :length]


class RotaryAttention(Attention):
    """Self-attention with position tables (cos, sin), [sequence, WIDTH] each."""

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        cos, sin = rotary
        query, key = (t * cos + t.flip(-1) * sin for t in (query, key))
        heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (query, key, value)]
        return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers; `per_token` stands for any module between them."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Modulation(nn.Module):
    """Adaptive norm: shift and scale for the tokens, and a gate [B, 1, width]."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.linear = nn.Linear(width, 3 * width)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shift, scale, gate = self.linear(temb)[:, None].chunk(3, dim=-1)
        return self.norm(x) * (1 + scale) + shift, gate


class GatedBlock(nn.Module):
    """Attention, then feed-forward, each behind a norm and a gate, added to the stream (PixArt, Wan, DiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = Modulation(), Attention()
        self.norm2, self.ff = Modulation(), FeedForward()

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        normed, gate = self.norm1(hidden_states, temb)
        hidden_states = hidden_states + gate * self.attn(normed)
        normed, gate = self.norm2(hidden_states, temb)
        return hidden_states + gate * self.ff(normed)


class ParallelBlock(nn.Module):
    """Attention beside an MLP on text and image; both meet in one projection (FLUX single blocks)."""

    def __init__(self, width: int = WIDTH, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.norm, self.attn = Modulation(width), Attention(width)
        self.proj_mlp, self.act_mlp = nn.Linear(width, hidden), nn.GELU()
        self.proj_out = nn.Linear(width + hidden, width)

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length = encoder_hidden_states.shape[1]
        stream = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(stream, temb)
        mlp = self.act_mlp(self.proj_mlp(normed))
        joined = self.proj_out(torch.cat([self.attn(normed), mlp], dim=2))
        stream = stream + gate * joined
        return stream[:, :length], stream[:, length:]


class DualBlock(nn.Module):
    """Joint attention and image-only attention after one norm, then a feed-forward (SD3.5-medium)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.attn2 = Modulation(), JointAttention(), Attention()
        self.norm2, self.ff = Modulation(), FeedForward()

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, gate = self.norm1(hidden_states, temb)
        image, text = self.attn(hidden_states=normed, encoder_hidden_states=encoder_hidden_states)
        hidden_states = hidden_states + gate * image
        hidden_states = hidden_states + gate * self.attn2(normed)
        normed, gate = self.norm2(hidden_states, temb)
        return hidden_states + gate * self.ff(normed), encoder_hidden_states + text


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to text, feed-forward (PixArt, SDXL, Wan)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn1, self.attn2 = Modulation(), Attention(), Attention()
        self.norm2, self.ff = Modulation(), FeedForward()

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor
    ) -> torch.Tensor:
        normed, gate = self.norm1(hidden_states, temb)
        hidden_states = hidden_states + gate * self.attn1(normed)
        hidden_states = hidden_states + self.attn2(hidden_states, encoder_hidden_states)
        normed, gate = self.norm2(hidden_states, temb)
        return hidden_states + gate * self.ff(normed)


class RotaryBlock(nn.Module):
    """Self-attention with rotary tables and text in front of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = Modulation(), RotaryAttention()

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        stream = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(stream, temb)
        return stream + gate * self.attn(normed, rotary=rotary)


class TailBlock(nn.Module):
    """A feed-forward whose output goes through `tail` before the residual addition.

    `tail(block, y, x, temb)` gets the output, the stream and the condition.
    """

    def __init__(
        self, tail: Callable[[TailBlock, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.ff = FeedForward()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.act = nn.SiLU()
        self.norm = nn.LayerNorm(WIDTH)
        self.wide = nn.Linear(2 * WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.randn(WIDTH))
        self.__dict__["tail"] = tail

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.__dict__["tail"](self, self.ff(hidden_states), hidden_states, temb)


GRID = (4, 6)
TOKENS = GRID[0] * GRID[1]
TEXT = 3


def image(batch: int = 2, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    return _noise(batch, TOKENS, width, seed=seed)


def text(batch: int = 2, width: int = WIDTH) -> torch.Tensor:
    return _noise(batch, TEXT, width, seed=1)


def condition(batch: int = 2, width: int = WIDTH) -> torch.Tensor:
    return _noise(batch, width, seed=2)


def tables(length: int = TEXT + TOKENS) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(length)[:, None] * 0.1 * torch.arange(1, WIDTH + 1)
    return angles.cos(), angles.sin()


def _noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
