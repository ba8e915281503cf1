"""The sites of the shipped recipes, against diffusers models with the released numbers of blocks."""

from __future__ import annotations

import functools

import pytest
from torch import nn

from sdtm_fx.explaining.shapes import build_shape, shape_of
from sdtm_fx.recipe import compile_match, list_recipes, load_recipe

# The toys are of the classes and layouts of these.
STAND_INS = {"toy-sd3": "sd3-medium", "toy-flux": "flux.1-dev"}


@functools.cache
def build(shape: str) -> nn.Module:
    return build_shape(STAND_INS.get(shape, shape))


@pytest.mark.parametrize("name", list_recipes())
def test_every_site_matches_as_often_as_expected(name: str) -> None:
    paths = [path for path, _ in build(shape_of(name)).named_modules()]
    for site in load_recipe(name).sites:
        matches = compile_match(site.match)
        found = sum(map(matches, paths))
        assert found == site.expect or (site.expect is None and found > 0), site.id
