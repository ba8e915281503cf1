"""The memory that features take, before anything has run."""

from __future__ import annotations

from collections.abc import Mapping

from sdtm_fx.cost.model import CostModel, MeasuredBlock
from sdtm_fx.grids import TokenGrid, tokens_on

LeftOut = Mapping[str, frozenset[str]]


def feature_bytes(cost: CostModel, stages: Mapping[int, LeftOut], grid: TokenGrid, references: int) -> float:
    """Bytes per sample that a generation stores for forecasts.

    Args:
        cost: The cost model of the rewriting.
        stages: The stages that the generation has steps in, each with the sites that stay dense there, by path of the
            block.
        grid: Of the tokens that may be merged.
        references: Tokens of reference images.
    """
    return sum(_of_block(cost, block, stages, grid, references) for block in cost.blocks)


def _of_block(
    cost: CostModel, block: MeasuredBlock, stages: Mapping[int, LeftOut], grid: TokenGrid, references: int
) -> float:
    each: dict[str, float] = {}  # stages share features of one name
    for stage, left_out in stages.items():
        measured = cost.block_cost(block, stage, left_out.get(block.path, frozenset()))
        each |= {} if measured is None else measured.held
    own = cost.layers.grid(block.index, grid)
    return sum(each.values()) * (tokens_on(own) + cost.beside(own, references))
