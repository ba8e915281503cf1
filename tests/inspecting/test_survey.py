"""What an inspection finds in models whose structure is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from sdtm_fx.cli.main import app
from sdtm_fx.errors import InspectionError, RewriteError
from sdtm_fx.inspecting.groups import group_sites
from sdtm_fx.inspecting.inspect import survey
from sdtm_fx.inspecting.marks import mark
from sdtm_fx.inspecting.pointwise import is_pointwise, keep_pointwise
from sdtm_fx.inspecting.small import small_copy
from sdtm_fx.inspecting.survey import FoundSite, Survey
from sdtm_fx.recipe import load_recipe
from tests.inspecting.models import subject_of
from tests.pipelines import tiny_flux_transformer, tiny_sd3_transformer
from tests.zoo import ZOO


@pytest.fixture(scope="module")
def flux() -> Survey:
    return survey(subject_of(tiny_flux_transformer(layers=2, single_layers=1)), grid=(8, 8), text=5)


def one(found: Survey, ending: str) -> FoundSite:
    return next(site for site in found.sites if site.path.endswith(ending))


def test_blocks_are_grouped_by_their_graphs(flux: Survey) -> None:
    assert [s.paths for s in flux.structures] == [
        ("transformer_blocks.0", "transformer_blocks.1"), ("single_transformer_blocks.0",),
    ]  # fmt: skip
    assert all(s.nodes > 10 for s in flux.structures)
    assert isinstance(flux.outer, int)


def test_sequences_say_where_the_image_is(flux: Survey) -> None:
    attn, single = one(flux, "transformer_blocks.0.attn"), one(flux, "single_transformer_blocks.0.attn")
    assert (attn.order, attn.tokens.says(), attn.keys and attn.keys.says()) == ("image", "N", "N + T")
    assert (single.order, single.beside, single.tokens.says()) == (
        "text first",
        "encoder_hidden_states",
        "N + T",
    )
    assert single.rotary is not None
    assert (single.rotary.argument, single.rotary.axis) == ("image_rotary_emb", 0)


def test_modules_that_meet_in_one_projection_know_each_other(flux: Survey) -> None:
    assert one(flux, "proj_mlp").parallel == ("single_transformer_blocks.0.attn",)
    assert one(flux, "single_transformer_blocks.0.attn").parallel == ("single_transformer_blocks.0.proj_mlp",)


def test_macs_are_those_of_the_modules(flux: Survey) -> None:
    mlp = one(flux, "proj_mlp")
    linear: Any = flux.model.get_submodule(mlp.path)
    assert flux.macs[mlp.path].linear == (64 + 5) * linear.in_features * linear.out_features
    assert flux.total.total > sum(m.total for m in flux.macs.values())


def test_a_convolution_is_no_feed_forward_site() -> None:
    found = survey(subject_of(ZOO["sana"].build()))
    assert {(site.path.rpartition(".")[2], site.kind) for site in found.sites} == {
        ("attn1", "linear attention"), ("attn2", "cross-attention"),
    }  # fmt: skip
    assert {(m.path.rpartition(".")[2], m.kind) for m in found.left_out} == {("ff", "feed-forward")}


class Mixing(nn.Module):
    """Hands a feed-forward tokens that have seen their neighbours."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x + x.roll(1, dims=1))
        return out


def test_tokens_that_see_each_other_are_found_by_permuting_them(flux: Survey) -> None:
    copy = small_copy(flux.subject, flux.call)
    ff = one(flux, "transformer_blocks.0.ff")
    assert is_pointwise(ff, copy)
    block: Any = copy.model.get_submodule("transformer_blocks.0")
    block.ff = Mixing(block.ff)
    kept, mixing = keep_pointwise(flux.sites, copy)
    assert {m.path for m in mixing} == {"transformer_blocks.0.ff", "transformer_blocks.1.ff"}
    assert len(kept) == len(flux.sites) - 2
    assert "permuted tokens do not come out permuted" in mixing[0].why


def test_a_size_that_the_model_does_not_take_is_named() -> None:
    tables = subject_of(ZOO["wan"].build())
    message = r"does not run on a latent of 128x128 .*choose --height, --width and --text"
    with pytest.raises(InspectionError, match=message):
        survey(tables, grid=(64, 64))


def test_a_recipe_is_marked(flux: Survey) -> None:
    recipe = load_recipe("toy-flux-windows").override({"sites.*.expect": None})
    marks = mark(flux, recipe)
    assert marks.unknown == ()
    assert set(marks.stages) <= {site.path for site in flux.sites}
    groups = {group.pattern: marks.of(group) for group in group_sites(flux)}
    assert groups["transformer_blocks.*.ff"] == "merged in structure; forecast in detail"
    assert marks.says() == "recipe toy-flux-windows merges 3 modules, and forecasts 6 modules"
    with pytest.raises(
        RewriteError, match="is for SD3Transformer2DModel, this model is a FluxTransformer2DModel"
    ):
        mark(flux, load_recipe("toy-sd3-windows"))


def test_a_recipe_that_uses_one_block_says_so(flux: Survey) -> None:
    one = {
        "sites.*.expect": None,
        "sites.ff.match": "transformer_blocks.0.ff",
        "stages.detail.sites": ["attn"],
    }
    marks = mark(flux, load_recipe("toy-flux-windows").override(one | {"stages.structure.sites": ["ff"]}))
    groups = {group.pattern: marks.of(group) for group in group_sites(flux)}
    assert groups["transformer_blocks.*.ff"] == "1 of 2: merged in structure"
    assert groups["transformer_blocks.*.attn"] == "forecast in detail"
    assert "named, never used" in groups.values()


def test_the_command_prints_tables_and_data(tmp_path: Path) -> None:
    tiny_sd3_transformer(layers=2).save_config(tmp_path)
    arguments = ["inspect", str(tmp_path), "--recipe", "toy-sd3", "--height", "8", "--width", "8"]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "2 blocks in 2 structures, 4 sites, a token is 2 x 2 of the latent" in shown.output
    assert "forecast in all" in shown.output
    assert "recipe toy-sd3 forecasts 4 modules" in shown.output
    data = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [site["match"] for site in data["sites"]] == [
        "transformer_blocks.*.attn",
        "transformer_blocks.*.ff",
    ]
    assert (data["recipe"]["unknown"], data["recipe"]["merged"]) == ([], [])
    assert len(data["recipe"]["forecast"]) == 4


def test_errors_of_the_command_are_text() -> None:
    result = CliRunner().invoke(app, ["inspect", "SD3Transformr2DModel"])
    assert result.exit_code == 1
    assert "InspectionError: 'SD3Transformr2DModel' is no model class of diffusers" in result.stderr
