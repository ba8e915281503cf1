"""The recipe language: strict YAML that says what is merged, where, and when."""

from __future__ import annotations

from sdtm_fx.recipe.editor_schema import json_schema
from sdtm_fx.recipe.extend import list_recipes
from sdtm_fx.recipe.load import RecipeLike, load_recipe
from sdtm_fx.recipe.match import compile_match, near_misses
from sdtm_fx.recipe.ratio import ConstantRatio, CurveRatio, FullRatio, ListRatio, Ratio, ThresholdRatio, peak
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.sections import (
    KeepDense,
    PassSwitches,
    PlanSharing,
    PromptWeight,
    Reuse,
    SiteSpec,
    Stage,
)
from sdtm_fx.recipe.tokens import (
    ArgumentsGrid,
    FixedGrid,
    Grid,
    IdsGrid,
    InputSpec,
    LatentGrid,
    NumberInput,
    Protect,
    ShapesGrid,
    ShapesInput,
    Tokens,
)

__all__ = [
    "ArgumentsGrid",
    "ConstantRatio",
    "CurveRatio",
    "FixedGrid",
    "FullRatio",
    "Grid",
    "IdsGrid",
    "InputSpec",
    "KeepDense",
    "LatentGrid",
    "ListRatio",
    "NumberInput",
    "PassSwitches",
    "PlanSharing",
    "PromptWeight",
    "Protect",
    "Ratio",
    "Recipe",
    "RecipeLike",
    "Reuse",
    "ShapesGrid",
    "ShapesInput",
    "SiteSpec",
    "Stage",
    "ThresholdRatio",
    "Tokens",
    "compile_match",
    "json_schema",
    "list_recipes",
    "load_recipe",
    "near_misses",
    "peak",
]
