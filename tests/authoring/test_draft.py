"""Drafted sites against those of the recipes that were written by hand, family by family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import nn

import sdtm_fx
from sdtm_fx.authoring.sites import draft_sites
from sdtm_fx.authoring.write import write_draft
from sdtm_fx.inspecting.groups import group_sites
from sdtm_fx.inspecting.inspect import survey
from sdtm_fx.recipe.sections import SiteSpec
from sdtm_fx.sites.matching import match_sites
from tests.families.cases import FAMILIES
from tests.inspecting.models import subject_of
from tests.pipelines import tiny_flux_transformer, tiny_sd3_transformer
from tests.unets import tiny_sdxl
from tests.zoo import sd35_medium

MODELS: dict[str, Callable[[], nn.Module]] = {
    # The padding of Z-Image hides which part of its sequence is the image: the draft says that it is unsure. Recipes
    # for keys stand beside others for the same models.
    **{
        case.recipe_name: case.make
        for case in FAMILIES
        if case.recipe_name != "z-image" and not case.recipe_name.endswith("-keys")
    },
    "sd3-medium-merge": lambda: tiny_sd3_transformer(layers=2),
    "sd3.5-medium": sd35_medium,
    "flux.1-dev-merge": lambda: tiny_flux_transformer(layers=2, single_layers=2),
    "sdxl": tiny_sdxl,
}


@dataclass(frozen=True)
class Difference:
    """Where a draft is not what was written by hand, and why that is right.

    Attributes:
        more: Names of sites that only the draft has: by hand they were judged not worth it.
        inputs: Arguments of the example call that differ.
        share: What the plans are shared over by hand: the pipeline decides, which a model does not tell.
        settings: Why ratios, dense steps and forecasts differ.
        tokens: Why the layout of the tokens differs.
        renamed: Names of sites in the draft, and by hand, where its names are longer.
        refused: An argument that calls are refused for by hand: whoever makes a draft sees calls without it.
    """

    more: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    share: tuple[str, ...] | None = None
    settings: str | None = None
    tokens: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    refused: str | None = None


# An optional mask that the pipeline passes always: the model runs without it.
_MASK = Difference(inputs=("encoder_attention_mask",))
DIFFERENCES: dict[str, Difference] = {
    # Numbers in place of ones, which change nothing in a trace.
    "pixart-alpha": Difference(
        inputs=("added_cond_kwargs.aspect_ratio", "added_cond_kwargs.resolution", "encoder_attention_mask")
    ),
    "pixart-alpha-512": _MASK,
    "pixart-sigma": _MASK,
    "sana": Difference(
        inputs=("encoder_attention_mask",), settings="a lower ratio, since its tokens are few and large"
    ),
    # By hand, `when` says that version 1.2 takes neither.
    "hunyuan-dit": Difference(inputs=("image_meta_size", "style")),
    "sd3.5-medium": Difference(settings="late steps are forecast by hand, behind more dense ones"),
    # Its pipeline runs guidance halves apart.
    "chroma": Difference(share=()),
    # The lengths of the text are for older versions of diffusers alone.
    "qwen-image": Difference(inputs=("txt_seq_lens",), share=()),
    "qwen-image-edit": Difference(inputs=("txt_seq_lens",), share=()),
    "flux.1-kontext-windows": Difference(
        tokens="that reference images follow is not in the config",
        settings="late steps are forecast by hand; a draft merges in both stages, as `tune` takes it",
    ),
    # Its one table of positions serves the whole batch, and guidance is an argument of some checkpoints only.
    "flux.2": Difference(
        inputs=("guidance",),
        share=("batch",),
        settings="single blocks are one module with attention in it, and would stay whole",
        tokens="that reference images follow is not in the config",
    ),
    # Two blocks refine the image before it joins the text; its pipeline runs guidance halves apart.
    "lumina-2": Difference(
        more=("attn", "ff"), share=(), renamed={"layers_ff": "ff"}, refused="attention_mask"
    ),
    "sdxl-turbo": Difference(share=(), settings="distilled to few steps, of which the config knows nothing"),
    "sd1.5": Difference(
        more=("coarse4_self", "coarse4_cross", "coarse4_ff", "coarse8_self", "coarse8_cross", "coarse8_ff")
    ),
}


@dataclass(frozen=True)
class Drafted:
    """A draft and the recipe that was written by hand."""

    name: str
    draft: sdtm_fx.Recipe
    hand: sdtm_fx.Recipe
    model: nn.Module = field(repr=False)

    def sites(self, recipe: sdtm_fx.Recipe) -> dict[str, SiteSpec]:
        changed = recipe.override({"sites.*.expect": None})
        return {found.path: found.spec for found in match_sites(self.model, changed.sites)}


_SLOW = ("hunyuan-dit", "sd1.5", "sdxl-turbo")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name for name in sorted(MODELS)],
)
def drafted(request: pytest.FixtureRequest) -> Drafted:
    name = request.param
    found = survey(subject_of(MODELS[name]()))
    text = write_draft(found, draft_sites(group_sites(found)), "draft")
    return Drafted(name, sdtm_fx.Recipe.from_yaml_text(text), sdtm_fx.load_recipe(name), found.model)


def test_it_finds_the_same_modules(drafted: Drafted) -> None:
    expected = DIFFERENCES.get(drafted.name, Difference())
    hand, draft = drafted.sites(drafted.hand), drafted.sites(drafted.draft)
    more = {path: spec.id for path, spec in draft.items() if path not in hand}
    assert set(hand) - set(draft) == set()
    assert set(more.values()) == set(expected.more)


def test_it_says_the_same_of_each(drafted: Drafted) -> None:
    hand, draft = drafted.sites(drafted.hand), drafted.sites(drafted.draft)
    refused = DIFFERENCES.get(drafted.name, Difference()).refused
    for path, spec in hand.items():
        assert spec.without == refused, path
        assert _said(draft[path]) == _said(spec.model_copy(update={"without": None})), path


def _said(spec: SiteSpec) -> dict[str, Any]:
    return spec.model_dump(exclude={"id", "match", "expect"})


def test_it_says_the_same_of_the_call(drafted: Drafted) -> None:
    expected = DIFFERENCES.get(drafted.name, Difference())
    hand, draft = drafted.hand.inputs, drafted.draft.inputs
    differ = {name for name in {*hand, *draft} if hand.get(name) != draft.get(name)}
    assert differ == set(expected.inputs)
    same = drafted.draft.tokens == drafted.hand.tokens
    assert same == (expected.tokens is None)


def test_it_takes_the_same_settings(drafted: Drafted) -> None:
    expected = DIFFERENCES.get(drafted.name, Difference())
    share = drafted.draft.plan.share if expected.share is None else expected.share
    assert drafted.hand.plan.share == share
    if expected.settings is not None:
        return
    assert drafted.draft.reuse == drafted.hand.reuse
    assert drafted.draft.keep_dense == drafted.hand.keep_dense
    assert drafted.draft.ratio == drafted.hand.ratio
    by_hand = [set(stage.sites) for stage in drafted.hand.stages]
    less = [set(stage.sites) - set(expected.more) for stage in drafted.draft.stages]
    assert [{expected.renamed.get(site, site) for site in sites} for sites in less] == by_hand
