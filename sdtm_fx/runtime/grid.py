"""The token grid of a call: height and width from the latent, or from position ids."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch

from sdtm_fx.errors import PlanError
from sdtm_fx.recipe.tokens import FixedGrid, Grid, LatentGrid


class GridReader:
    """Reads (height, width) in tokens off the arguments of a model call.

    Ids live on the device, so reading them waits for it; the answer is kept for as long as the caller passes
    the same tensor, which pipelines do through a whole generation.
    """

    def __init__(self, layout: Grid) -> None:
        self._layout = layout
        self._last: tuple[weakref.ref[torch.Tensor], int, tuple[int, int]] | None = None

    def read(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Return (height, width) in tokens.

        Args:
            arguments: All arguments of the call, by name.

        Raises:
            PlanError: The argument is missing or does not describe a grid.
        """
        layout = self._layout
        if isinstance(layout, FixedGrid):
            return layout.height, layout.width
        name = layout.latent if isinstance(layout, LatentGrid) else layout.ids
        value = arguments.get(name)
        if not isinstance(value, torch.Tensor):
            raise PlanError(
                f"tokens.grid names argument {name!r}, this call has {type(value).__name__}; "
                f"it has {', '.join(k for k, v in arguments.items() if isinstance(v, torch.Tensor))}"
            )
        if isinstance(layout, LatentGrid):
            patch = (layout.patch, layout.patch) if isinstance(layout.patch, int) else layout.patch
            sides = zip(value.shape[-2:], patch, strict=True)
            height, width = (
                -(-side // edge) if layout.round == "up" else side // edge for side, edge in sides
            )
            return height, width
        return self._read_ids(name, value)

    def _read_ids(self, name: str, ids: torch.Tensor) -> tuple[int, int]:
        # Tensors of inference mode count no changes in place; theirs would go unnoticed.
        version = 0 if ids.is_inference() else ids._version
        if self._last is not None and self._last[0]() is ids and self._last[1] == version:
            return self._last[2]
        rows = ids.detach().reshape(-1, ids.shape[-1])[:, -2:]
        height, width = (int(v) + 1 for v in (rows.amax(0) - rows.amin(0)).tolist())
        if height * width != rows.shape[0]:
            raise PlanError(
                f"tokens.grid: ids {name!r} span {height} rows and {width} columns but hold {rows.shape[0]} tokens; "
                "they are not one grid"
            )
        self._last = (weakref.ref(ids), version, (height, width))
        return height, width

    def __deepcopy__(self, memo: dict[int, Any]) -> GridReader:
        return GridReader(self._layout)
