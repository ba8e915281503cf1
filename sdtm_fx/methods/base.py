"""What a merging method is: options, and a pure function from the tokens of one site to a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from sdtm_fx.attention_score.heads import AttentionHeads
from sdtm_fx.errors import PlanError
from sdtm_fx.plan import MergePlan, identity_plan

# Fields are strict one by one: a strict dataclass would take instances only, and a recipe holds mappings.
Count = Annotated[int, Field(ge=1, strict=True)]
Radius = Annotated[int, Field(ge=0, strict=True)]
Weight = Annotated[float, Field(ge=0, strict=True)]
WindowSize = tuple[Count, Count]
"""Height and width of a window in tokens; recipes write it as a list."""


class OptionError(PlanError, ValueError):
    """An option of a method has a value it cannot have. A ValueError too, so that recipes can place it."""


@dataclass(frozen=True)
class TokenView:
    """What a method may look at.

    Attributes:
        metric: [B, N, D] float, the image tokens of the site in raster order.
        grid: Height and width of the token grid; their product is N.
        ages: [B, N] int32, steps since each token was last alone in its slot, or None.
        attention: [B, N] float, attention received by each token, or None.
        heads: Queries and keys of the image tokens, or None.
        salt: Counter for hashing: mixes seed, step and layer. An int or a 0-d int64 tensor.
    """

    metric: Tensor
    grid: tuple[int, int]
    ages: Tensor | None = None
    attention: Tensor | None = None
    salt: int | Tensor = 0
    heads: AttentionHeads | None = None


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of the methods; a subclass is a frozen dataclass whose fields are its options.

    Attributes:
        name: What recipes call the method.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)
    needs: ClassVar[frozenset[str]] = frozenset()
    """What the method reads beside the tokens: a subset of {"ages", "attention", "heads", "text"}: token ages,
    which may be missing, the attention that tokens receive, the queries and keys of attention, and among these the
    keys of text."""
    merges: ClassVar[bool] = True
    """Whether sites run on fewer tokens, by a plan; otherwise nothing is computed there and there is no plan."""

    name: str

    def __post_init__(self) -> None:
        """Check the options, however the method was made."""
        self._check_options()

    @abstractmethod
    def capacity(self, grid: tuple[int, int]) -> int:
        """Return the most tokens that can be removed on a grid of (height, width) tokens."""

    def quantum(self) -> int:
        """Return the number of which every removed count is a multiple."""
        return 1

    def wants(self) -> frozenset[str]:
        """Return the part of `needs` that these options really read."""
        return self.needs

    def reads_attention(self) -> bool:
        """Return whether the method reads the attention of the block that it plans for."""
        return not self.wants().isdisjoint({"attention", "heads"})

    def blank_view(self, rows: int, grid: tuple[int, int], width: int, text: int = 1) -> TokenView:
        """Return a view of the right shapes that holds nothing: for sizes and costs, on fake or meta tensors.

        Args:
            rows: Samples.
            grid: (height, width) in tokens.
            width: Channels.
            text: Text tokens.
        """
        tokens, heads = grid[0] * grid[1], None
        if "heads" in self.needs:
            # One head of all channels asks for the products of many heads.
            query, key = torch.empty(2, rows, 1, tokens, width).unbind()
            heads = AttentionHeads(query, key, torch.empty(rows, 1, max(text, 1), width))
        return TokenView(
            metric=torch.empty(rows, tokens, width),
            grid=grid,
            ages=torch.empty(rows, tokens, dtype=torch.int32) if "ages" in self.needs else None,
            attention=torch.empty(rows, tokens) if "attention" in self.needs else None,
            heads=heads,
        )

    def probes(self) -> int | None:
        """Return how many image queries tell the attention that tokens receive; None for all of them."""
        return None

    def plan(self, view: TokenView, remove: int) -> MergePlan:
        """Choose which tokens share a slot.

        Args:
            view: The tokens of one site.
            remove: How many of them go away.

        Returns:
            A plan with N - remove slots, one row per sample of `view.metric`.

        Raises:
            PlanError: The grid does not fit the tokens, or `remove` is out of reach.
        """
        self._check_view(view)
        self._check_remove(view.grid, remove)
        if remove == 0:
            return identity_plan(view.metric.shape[0], view.metric.shape[1], view.metric.device)
        return self._plan(view, remove)

    @abstractmethod
    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        """Make the plan; the arguments are checked and `remove` is positive."""

    def _check_options(self) -> None:  # noqa: B027 - most methods have nothing to check
        """Raise OptionError for options that do not go together or are out of range."""

    def _check_view(self, view: TokenView) -> None:
        shape, (height, width) = tuple(view.metric.shape), view.grid
        if len(shape) != 3 or shape[1] != height * width:
            raise PlanError(
                f"{self.name}: found tokens of shape {shape} on a {height}x{width} grid; "
                f"accepted [batch, {height * width}, width]"
            )
        for what, values in (("ages", view.ages), ("attention", view.attention)):
            if values is not None and tuple(values.shape) != shape[:2]:
                raise PlanError(
                    f"{self.name}: found {what} of shape {tuple(values.shape)}; accepted {list(shape[:2])}, "
                    "one value per token"
                )
        if view.heads is not None and view.heads.query.shape[0::2] != shape[:2]:
            raise PlanError(
                f"{self.name}: found queries of shape {tuple(view.heads.query.shape)}; accepted "
                f"[{shape[0]}, heads, {shape[1]}, channels], one per token and head"
            )

    def _check_remove(self, grid: tuple[int, int], remove: int) -> None:
        most, step = self.capacity(grid), self.quantum()
        if 0 <= remove <= most and remove % step == 0:
            return
        fit = min(max(remove, 0), most) // step * step
        raise PlanError(
            f"{self.name} on a {grid[0]}x{grid[1]} grid: found {remove} tokens to remove; "
            f"accepted 0 to {most} in multiples of {step} (nearest below: {fit})"
        )


def check_window(window: tuple[int, int], name: str) -> None:
    """Raise OptionError unless a window has positive sides and at least two tokens."""
    if len(window) != 2 or min(window) < 1 or window[0] * window[1] < 2:
        raise OptionError(
            f"{name}: found window {tuple(window)}; accepted (height, width) with two tokens or more"
        )


def check_age_sign(sign: int, name: str) -> None:
    """Raise OptionError unless an age sign is +1 or -1."""
    if sign not in (1, -1):
        raise OptionError(f"{name}: found age_sign {sign}; accepted 1 (merge old tokens on) or -1 (fair)")


def check_radius(radius: int, name: str) -> None:
    """Raise OptionError unless a radius is zero or more."""
    if radius < 0:
        raise OptionError(f"{name}: found radius {radius}; accepted 0 or more windows")


def relative_ages(ages: Tensor) -> Tensor:
    """Return each age over the mean age of its sample, [B, N] float32 (SDTM, P_fre); 0 before any merge."""
    values = ages.to(torch.float32)
    return values / (values.mean(dim=1, keepdim=True) + 1e-6)
