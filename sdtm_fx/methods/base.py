"""What a merging method is: options, and a pure function from the tokens of one site to a plan."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from sdtm_fx.attention_score.heads import AttentionHeads
from sdtm_fx.base_plan import Plan, Unmerging
from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, show_grid, tokens_on
from sdtm_fx.plan import identity_plan

# Fields are strict one by one: a strict dataclass would take instances only, and a recipe holds mappings.
Count = Annotated[int, Field(ge=1, strict=True)]
Radius = Annotated[int, Field(ge=0, strict=True)]
Weight = Annotated[float, Field(ge=0, strict=True)]
WindowSize = Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)]
"""Height and width of a window in tokens, or frames, height and width; recipes write it as a list."""

_HEAD = 64  # channels of a head where only the width is known, as in SD3


class OptionError(PlanError, ValueError):
    """An option of a method has a value it cannot have. A ValueError too, so that recipes can place it."""


@dataclass(frozen=True)
class TokenView:
    """What a method may look at.

    Attributes:
        metric: [B, N, D] float, the image tokens of the site in raster order.
        grid: Height and width of the token grid, behind its frames if it has some; their product is N.
        ages: [B, N] int32, steps since each token was last alone in its slot, or None.
        attention: [B, N] float, attention received by each token, or None.
        salt: Counter for hashing: mixes seed, step and layer. An int or a 0-d int64 tensor.
        importance: [B, N] float, how much guidance changed the model's output at each token in the step
            before, or None.
        heads: Queries and keys of the image tokens, or None.
    """

    metric: Tensor
    grid: TokenGrid
    ages: Tensor | None = None
    attention: Tensor | None = None
    salt: int | Tensor = 0
    importance: Tensor | None = None
    heads: AttentionHeads | None = None


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of the methods; a subclass is a frozen dataclass whose fields are its options.

    Attributes:
        name: What recipes call the method.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)
    needs: ClassVar[frozenset[str]] = frozenset()
    """What the method reads beside the tokens: a subset of {"ages", "attention", "heads", "text", "importance"}: token
    ages, which may be missing, the attention that tokens receive, the queries and keys of attention, among these the
    keys of text, and how much guidance changed each token."""
    merges: ClassVar[bool] = True
    """Whether sites run on fewer tokens, by a plan; otherwise nothing is computed there and there is no plan."""
    caches: ClassVar[bool] = False
    """Whether tokens that go share no slot: they get what is stored of an earlier step, and nothing of this one."""
    chooses_destinations: ClassVar[bool] = False
    """Whether a plan is made in two steps, destinations and then their weights, so that `replan` can keep the
    first."""

    name: str

    def __post_init__(self) -> None:
        """Check the options, however the method was made."""
        self._check_options()

    @abstractmethod
    def capacity(self, grid: TokenGrid) -> int:
        """Return the most tokens that can be removed on a grid of tokens, with or without frames."""

    def quantum(self) -> int:
        """Return the number of which every removed count is a multiple."""
        return 1

    def needs_grid(self) -> str | None:
        """Return why tokens have to lie on a grid; None where any row of them will do (inside of spans)."""
        return "the method goes by where tokens lie on it"

    def wants(self) -> frozenset[str]:
        """Return the part of `needs` that these options really read."""
        return self.needs

    def reads_attention(self) -> bool:
        """Return whether the method reads the attention of the block that it plans for."""
        return not self.wants().isdisjoint({"attention", "heads"})

    def blank_view(self, rows: int, grid: TokenGrid, width: int, text: int = 1) -> TokenView:
        """Return a view of the right shapes that holds nothing: for sizes and costs, on fake or meta tensors.

        Args:
            rows: Samples.
            grid: The token grid.
            width: Channels.
            text: Text tokens.
        """
        tokens, heads = tokens_on(grid), None
        if "heads" in self.needs:
            number = width // _HEAD if width % _HEAD == 0 else 1
            query, key = torch.empty(2, rows, number, tokens, width // number).unbind()
            heads = AttentionHeads(query, key, torch.empty(rows, number, max(text, 1), width // number))
        return TokenView(
            metric=torch.empty(rows, tokens, width),
            grid=grid,
            ages=torch.empty(rows, tokens, dtype=torch.int32) if "ages" in self.needs else None,
            attention=torch.empty(rows, tokens) if "attention" in self.needs else None,
            importance=torch.empty(rows, tokens) if "importance" in self.needs else None,
            heads=heads,
        )

    def probes(self) -> int | None:
        """Return how many image queries tell the attention that tokens receive; None for all of them."""
        return None

    def count_above(self, view: TokenView, threshold: float) -> Tensor:
        """Return how many tokens would go if everything with a score of `threshold` or more did.

        This is what an adaptive threshold (SDTM*) counts; turning it into a static number is the caller's.

        Returns:
            [B] int64, on the device of the tokens.

        Raises:
            PlanError: The method scores nothing that a threshold could be laid on.
        """
        raise PlanError(
            f"{self.name}: found a threshold; accepted a ratio, this method has no score of its own"
        )

    def unmerging(self) -> Unmerging:
        """Return what unmerging does to a slot under the plans of this method."""
        return Unmerging.COPY

    @property
    def assigns(self) -> bool:
        """Whether every token has one slot, whose copy it gets back; slots have sizes then."""
        return self.unmerging() is Unmerging.COPY

    def search_macs(self, grid: TokenGrid, remove: int) -> float:
        """Return what a plan costs per sample beside products, in multiply-accumulates; 0 where it is little."""
        return 0.0

    def plan(self, view: TokenView, remove: int) -> Plan:
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

    def replan(self, view: TokenView, remove: int, former: Plan) -> Plan:
        """Make a plan with the destinations of a former one, and with weights from the tokens as they are now.

        Args:
            view: The tokens of one site.
            remove: How many of them go away.
            former: A plan of this method, for as many tokens and as many that go.

        Raises:
            PlanError: The method chooses no destinations, or the former plan has another size.
        """
        self._check_view(view)
        self._check_remove(view.grid, remove)
        if (former.tokens, former.removed) != (view.metric.shape[1], remove):
            raise PlanError(
                f"{self.name}: found a former plan that removes {former.removed} of {former.tokens} tokens; "
                f"accepted one that removes {remove} of {view.metric.shape[1]}"
            )
        return self._replan(view, remove, former) if remove else self.plan(view, remove)

    @abstractmethod
    def _plan(self, view: TokenView, remove: int) -> Plan:
        """Make the plan; the arguments are checked and `remove` is positive."""

    def _replan(self, view: TokenView, remove: int, former: Plan) -> Plan:
        """As `_plan`, with the destinations of a former plan; methods that choose some say how."""
        raise PlanError(f"{self.name}: found a request to keep destinations; it chooses none of its own")

    def _check_options(self) -> None:  # noqa: B027 - most methods have nothing to check
        """Raise OptionError for options that do not go together or are out of range."""

    def _check_view(self, view: TokenView) -> None:
        shape, tokens = tuple(view.metric.shape), tokens_on(view.grid)
        if len(shape) != 3 or shape[1] != tokens:
            raise PlanError(
                f"{self.name}: found tokens of shape {shape} on a {show_grid(view.grid)} grid; "
                f"accepted [batch, {tokens}, width]"
            )
        for what in ("ages", "attention", "importance"):
            values = getattr(view, what)
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

    def _check_remove(self, grid: TokenGrid, remove: int) -> None:
        most, step = self.capacity(grid), self.quantum()
        if 0 <= remove <= most and remove % step == 0:
            return
        fit = min(max(remove, 0), most) // step * step
        raise PlanError(
            f"{self.name} on a {show_grid(grid)} grid: found {remove} tokens to remove; "
            f"accepted 0 to {most} in multiples of {step} (nearest below: {fit})"
        )


def check_window(window: TokenGrid, name: str) -> None:
    """Raise OptionError unless a window has two or three positive sides and at least two tokens."""
    if len(window) not in (2, 3) or min(window) < 1 or math.prod(window) < 2:
        raise OptionError(
            f"{name}: found window {tuple(window)}; accepted (height, width), or (frames, height, width) on a grid "
            "with frames, with two tokens or more"
        )


def row_of_cells(window: TokenGrid) -> str | None:
    """Return why cells need a grid; None for those within a row, which may be any row of tokens."""
    if math.prod(window[:-1]) == 1:
        return None
    return f"its cells are {' x '.join(map(str, window))} tokens of it"


def check_radius(radius: int, name: str) -> None:
    """Raise OptionError unless a radius is zero or more."""
    if radius < 0:
        raise OptionError(f"{name}: found radius {radius}; accepted 0 or more windows")
