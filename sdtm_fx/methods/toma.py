"""ToMA: destinations by facility location, and merging as attention does it (Lu and others 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from sdtm_fx.base_plan import Plan, Unmerging
from sdtm_fx.grids import TokenGrid
from sdtm_fx.linear_plan import LinearPlan, weigh_tokens
from sdtm_fx.methods.base import Count, Method, OptionError, TokenView, WindowSize, check_window
from sdtm_fx.methods.facility import facility_location, scanned_pairs
from sdtm_fx.regions import Regions, stripes, tiles, whole_grid
from sdtm_fx.short_rows import ShortRows
from sdtm_fx.similarity import inverse_norms, without_autocast

Region = Literal["global", "tile", "stripe"]
_COLDEST = 1e-6
"""Below this temperature the logits are beyond what float32 tells apart."""


@dataclass(frozen=True, kw_only=True)
class ToMA(Method):
    """Every slot is a weighted mean of tokens, and every token gets a weighted sum of slots back.

    Destinations are chosen region by region by facility location on cosines. A is the softmax over the
    destinations of cosine / temperature, x_m = Ã x with its rows normalised, and x' = Aᵀ y, or the pseudo-inverse
    of Ã. Cosines and weights are float32.

    The forms of the paper: ``{region: global}`` chooses in tiles and merges over the whole grid, its default after
    the ablation; ``{region: tile}`` and ``{region: stripe}`` do both in regions; ``{region: global, select:
    global}`` does neither, at the cost of one pass over all pairs of tokens for every destination. "Merge once per
    block" is a span of the recipe, whose `first` and `last` match every block. With n the tokens of a region, d its
    destinations and R regions, a plan takes R (n² + d n) D multiply-accumulates beside d scans of n² pairs, and a
    merge or an unmerge R d n D.

    Where regions do not go into the grid, what is left stays as it is. Where the removed tokens do not divide by
    the regions, some regions, spread evenly, lose one more. Slots: destinations region by region in the order of
    their choice, then what is left.

    Formula:
        Destinations one by one: the token of largest Σⱼ max(0, cos(xᵢ, xⱼ) - mⱼ), mⱼ being the largest cosine of j to
        those chosen. A = softmax(cos(d, x) / temperature) over d, x_m = Ã x, x' = Aᵀ y or Ã⁺ y.

    Use:
        To compare with ToMA. `plan.every_steps: 5` and `plan.destinations_every: 10` are what its authors keep plans
        for; region "tile" is cheaper.

    Attributes:
        region: Where tokens are merged: over the whole grid, or each tile or stripe on its own.
        select: Where destinations are chosen: the same, or any with region "global". By default tiles for region
            "global", and the region itself otherwise.
        tile: Height and width of a tile in tokens; 4 x 4 are the 256 tiles of 64 x 64 tokens in the released code.
        stripes: Number of stripes: equal runs of the raster, whole rows where it divides the height. The paper
            gives no number.
        temperature: Of the softmax. 0.001 is the 1000 that the released code multiplies its cosines by, which is
            close to an assignment.
        unmerge: By the transpose of A, or by the pseudo-inverse of Ã.
    """

    chooses_destinations: ClassVar[bool] = True

    name: Literal["toma"] = "toma"
    region: Region = "global"
    select: Region | None = None
    tile: WindowSize = (4, 4)
    stripes: Count = 16
    temperature: Annotated[float, Field(ge=_COLDEST, strict=True)] = 0.001
    unmerge: Literal["transpose", "pseudo_inverse"] = "transpose"

    def _check_options(self) -> None:
        check_window(self.tile, self.name)
        if self.stripes < 1:
            raise OptionError(f"{self.name}: found {self.stripes} stripes; accepted 1 or more")
        if not self.temperature >= _COLDEST:
            raise OptionError(
                f"{self.name}: found temperature {self.temperature}; accepted {_COLDEST} or more"
            )
        if self.region != "global" and self.select not in (None, self.region):
            raise OptionError(
                f"{self.name}: found select {self.select!r} with region {self.region!r}; accepted "
                f"{self.region!r}: only merging over the whole grid takes destinations from anywhere"
            )

    def capacity(self, grid: TokenGrid) -> int:
        """Return all tokens of the regions of choice but one of each."""
        regions = self._choice(grid)
        return regions.number * (regions.size - 1) if regions.number else 0

    def unmerging(self) -> Unmerging:
        """Return AVERAGE for the transpose, whose weights sum to one, and LINEAR for the pseudo-inverse."""
        return Unmerging.AVERAGE if self.unmerge == "transpose" else Unmerging.LINEAR

    def search_macs(self, grid: TokenGrid, remove: int) -> float:
        """Return the pairs that choosing the destinations looks at."""
        regions = self._choice(grid)
        rows = ShortRows.removing(remove, regions.number, regions.size)
        return float(scanned_pairs(regions.number, regions.size, rows.most))

    def _plan(self, view: TokenView, remove: int) -> LinearPlan:
        regions = self._choice(view.grid)
        rows = ShortRows.removing(remove, regions.number, regions.size)
        x = regions.split(view.metric).float()
        x = x * inverse_norms(x)[..., None]
        with without_autocast(x.device):
            similarity = x @ x.mT
        place = facility_location(similarity, rows.most)
        tokens = regions.numbers(x.device).expand(x.shape[0], -1, -1)
        return self._weigh(view, regions, rows, rows.pack(tokens.gather(2, place)[..., None])[..., 0])

    def _replan(self, view: TokenView, remove: int, former: Plan) -> LinearPlan:
        regions = self._choice(view.grid)
        rows = ShortRows.removing(remove, regions.number, regions.size)
        return self._weigh(view, regions, rows, former.positions[:, : rows.number])

    def _weigh(self, view: TokenView, regions: Regions, rows: ShortRows, destinations: Tensor) -> LinearPlan:
        """Weigh the tokens of a view for destinations, [P, slots] int64, that were chosen in `regions`."""
        if self.region == "global":
            regions, rows = regions.joined(), ShortRows(1, rows.number, 0)
        chosen = rows.unpack(destinations[..., None])[..., 0]
        return weigh_tokens(
            view.metric,
            chosen,
            regions,
            rows,
            temperature=self.temperature,
            pseudo_inverse=self.unmerge == "pseudo_inverse",
        )

    def _choice(self, grid: TokenGrid) -> Regions:
        """The regions in which destinations are chosen."""
        select = self.select or ("tile" if self.region == "global" else self.region)
        if select == "tile":
            return tiles(grid, self.tile)
        return whole_grid(grid) if select == "global" else stripes(grid, self.stripes)
