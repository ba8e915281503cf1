"""Linear plans: slots that are weighted means of tokens, and tokens that are weighted sums of slots (ToMA)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdtm_fx.base_plan import Plan
from sdtm_fx.regions import Regions
from sdtm_fx.rows import take_rows
from sdtm_fx.short_rows import ShortRows
from sdtm_fx.similarity import inverse_norms, without_autocast

_OWN = 0.75
"""A token counts as merged where less than this part of what it gets back is its own."""


@dataclass(frozen=True)
class LinearPlan(Plan):
    """Merges by a matrix and unmerges by its transpose or its pseudo-inverse (ToMA, equations 6 and 7).

    A [d, K] holds what every token of a region gives to each of the region's d slots; its columns sum to one.
    Merging is x_m = Ã x, with the rows of Ã = A / rowsum(A) summing to one. Unmerging is x' = Aᵀ y, in which
    every token is a mean of slots, or x' = Ã⁺ y. The pseudo-inverse is that of the matrix that merges, Ã, not
    of A: only so do the two ways agree where every token has one slot, as the paper has it, and only so does
    a constant come back as it was. Where A has full rank, Ã⁺ y = Aᵀ (A Aᵀ)⁻¹ (rowsum(A) ⊙ y).

    The matrices are kept region by region, so that R regions of K tokens hold R·d·K weights and not N·M. Slots:
    those of the regions, region by region, then tokens in no region, which stay as they are.

    Attributes:
        weights: [P, R, d, K] float32, A.
        mass: [P, R, d] float32, the row sums of A; 1 in rows that do not exist.
        positions: [P, M] int64, the token that each slot stands for.
        inverse: [P, R, d, K] float32, the transpose of Ã⁺, or None where the transpose unmerges.
        kept: M, the number of slots.
        regions: The regions.
        rows: Which rows of A exist: some regions may have one slot less.
        prefix: Number of leading tokens that stay as they are.
        suffix: Number of trailing tokens that stay as they are.
        ways: [P, R, d, K] each, what `merge` and `unmerge` multiply features of their dtype by; None: not prepared.
    """

    weights: Tensor
    mass: Tensor
    positions: Tensor
    inverse: Tensor | None
    kept: int
    regions: Regions
    rows: ShortRows
    prefix: int = 0
    suffix: int = 0
    ways: tuple[Tensor, Tensor] | None = None

    @property
    def tokens(self) -> int:
        """N, the number of tokens before merging."""
        return self.prefix + self.regions.tokens + self.suffix

    @property
    def slots(self) -> Tensor:
        """[P, N] int64, the slot that each token gives most to (the first on ties)."""
        best = self.weights.argmax(dim=2)
        table = self.rows.places(self.positions.device) + self.prefix
        inside = table.expand(best.shape[0], -1, -1).gather(2, best)
        return self._in_raster_order(inside, torch.arange(self.tokens, device=best.device))

    @property
    def merged_mask(self) -> Tensor:
        """[P, N] bool, the tokens of which less than three quarters of what they get back is their own.

        A destination is a mixture like every other slot, so "alone" is a matter of degree. What counts is the
        diagonal of Aᵀ Ã: 1 where a token is alone in its slot, at most 1/2 where two share one, so that plans
        with hard weights have the mask that an assignment has.
        """
        own = (self.weights.square() / self.mass[..., None]).sum(dim=2)
        return self._in_raster_order(own < _OWN, torch.zeros((), dtype=torch.bool, device=own.device))

    @property
    def macs_per_channel(self) -> int:
        """R·d·K: every weight once."""
        return self.weights[0].numel()

    def merge(self, x: Tensor) -> Tensor:
        """Return the weighted mean of each slot, Ã x.

        Args:
            x: [B, N, D] float.

        Returns:
            [B, M, D] in the dtype of `x`. Weights are float32 and take the dtype of `x` in the product, which
            accumulates in float32, as attention does.

        Raises:
            PlanError: `x` has another batch or length than the plan.
        """
        self._check(x, self.tokens, "merge")
        last = self.tokens - self.suffix
        image = x[:, self.prefix : last]
        rows = _product(self._way_in(x.dtype), self.regions.split(image))
        parts = [x[:, : self.prefix], self.rows.pack(rows), self.regions.rest(image), x[:, last:]]
        return _joined(parts)

    def unmerge(self, y: Tensor) -> Tensor:
        """Return for each token the sum of its slots, Aᵀ y or Ã⁺ y.

        Args:
            y: [B, M, D] float.

        Returns:
            [B, N, D] in the dtype of `y`, computed as in `merge`.

        Raises:
            PlanError: `y` has another batch or length than the plan.
        """
        self._check(y, self.kept, "unmerge")
        end, last = self.prefix + self.rows.number, self.kept - self.suffix
        inside = _product(self._way_out(y.dtype).mT, self.rows.unpack(y[:, self.prefix : end]))
        return _joined([y[:, : self.prefix], self.regions.join(inside, y[:, end:last]), y[:, last:]])

    def prepared(self, dtype: torch.dtype) -> LinearPlan:
        """Return the plan with its weights divided by their mass, and cast, once for all merges of a call."""
        return replace(self, ways=(self._way_in(dtype), self._way_out(dtype)))

    def placed(self, before: int, behind: int = 0) -> LinearPlan:
        """Return this plan in a sequence in which tokens stand around its own that stay as they are.

        Args:
            before: Number of tokens in front, for instance of text, or of a frame that is protected.
            behind: Number of tokens that follow, for instance of reference images, or of text.
        """
        rows, device = self.positions.shape[0], self.positions.device
        lead = torch.arange(before, device=device).expand(rows, before)
        tail = torch.arange(behind, device=device).expand(rows, behind) + (before + self.tokens)
        return replace(
            self,
            positions=torch.cat([lead, self.positions + before, tail], dim=1),
            kept=self.kept + before + behind,
            prefix=self.prefix + before,
            suffix=self.suffix + behind,
        )

    def names(self) -> tuple[str, ...]:
        """Return what the tensors are called, in the order of `tensors()`."""
        names = ("weights", "mass", "positions")
        return names if self.inverse is None else (*names, "inverse")

    def with_tensors(self, tensors: Iterable[Tensor]) -> LinearPlan:
        """Return the plan with other tensors, in the order of `tensors()`."""
        weights, mass, positions, *inverse = tensors
        return replace(
            self,
            weights=weights,
            mass=mass,
            positions=positions,
            inverse=inverse[0] if inverse else None,
            ways=None,
        )

    def _way_in(self, dtype: torch.dtype) -> Tensor:
        """Ã, in a dtype."""
        if self.ways is not None and self.ways[0].dtype == dtype:
            return self.ways[0]
        return (self.weights / self.mass[..., None]).to(dtype)

    def _way_out(self, dtype: torch.dtype) -> Tensor:
        """The transpose of what unmerges, in a dtype."""
        if self.ways is not None and self.ways[1].dtype == dtype:
            return self.ways[1]
        return (self.weights if self.inverse is None else self.inverse).to(dtype)

    def _in_raster_order(self, inside: Tensor, others: Tensor) -> Tensor:
        """Lay values of tokens in regions, [P, R, K], out as [P, N].

        `others` is for the tokens in no region: one value, or one for each slot number, of which they take theirs.
        """
        batch, outside, last = inside.shape[0], self.regions.outside, self.kept - self.suffix

        def take(start: int, stop: int) -> Tensor:
            taken = others.expand(stop - start) if others.ndim == 0 else others[start:stop]
            return taken.expand(batch, -1)

        image = self.regions.join(inside, take(last - outside, last))
        return _joined([take(0, self.prefix), image, take(last, self.kept)])


def weigh_tokens(
    metric: Tensor,
    chosen: Tensor,
    regions: Regions,
    rows: ShortRows,
    *,
    temperature: float,
    pseudo_inverse: bool,
) -> LinearPlan:
    """Make the plan that merges into chosen destinations (ToMA, equation 6).

    A is the softmax, over the destinations of a region, of their cosine to each token over the temperature.

    Args:
        metric: [P, N, D] float, the tokens in raster order.
        chosen: [P, R, d] int64, the destinations of every region, tokens of it. Where `rows` has no such row,
            what it says does not matter.
        regions: The regions.
        rows: Which of the destinations exist.
        temperature: Of the softmax, positive.
        pseudo_inverse: Whether to unmerge by it, or by the transpose.
    """
    batch, _, width = metric.shape
    x = regions.split(metric).float()
    to = take_rows(metric, chosen.flatten(1)).float().view(batch, *chosen.shape[1:], width)
    x, to = (v * inverse_norms(v)[..., None] for v in (x, to))
    with without_autocast(metric.device):
        logits = (to @ x.mT) / temperature
    missing = rows.missing(metric.device)[..., None]
    weights = logits.masked_fill(missing, -torch.inf).softmax(dim=2)
    mass = weights.sum(dim=3).masked_fill(missing[..., 0], 1.0)
    tokens = torch.arange(regions.tokens, device=metric.device)[None]
    outside = regions.rest(tokens).expand(batch, -1)
    return LinearPlan(
        weights=weights,
        mass=mass,
        positions=_joined([rows.pack(chosen[..., None])[..., 0], outside]),
        inverse=_inverse(weights / mass[..., None]) if pseudo_inverse else None,
        kept=rows.number + regions.outside,
        regions=regions,
        rows=rows,
    )


def _inverse(merging: Tensor) -> Tensor:
    """Return the transpose of Ã⁺ = Ãᵀ (Ã Ãᵀ)⁺.

    The inner pseudo-inverse, by eigenvalues, is the inverse wherever there is one. Destinations that are equal
    have equal rows; they then share their tokens evenly, where an inverse would be infinite.
    """
    with without_autocast(merging.device):
        return torch.linalg.pinv(merging @ merging.mT, hermitian=True) @ merging


def _product(matrix: Tensor, rows: Tensor) -> Tensor:
    """[P, R, a, b] times [B, R, b, D]."""
    with without_autocast(rows.device):
        return matrix @ rows


def _joined(parts: list[Tensor]) -> Tensor:
    """Concatenate along the tokens what is not empty."""
    filled = [part for part in parts if part.shape[1]]
    return filled[0] if len(filled) == 1 else torch.cat(filled, dim=1)
