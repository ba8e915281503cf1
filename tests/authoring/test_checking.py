"""Trying a recipe on the class that it is for: what goes well is said, and what does not names the key to look at."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from diffusers import CogView3PlusTransformer2DModel, CogView4Transformer2DModel
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import sdtm_fx
from sdtm_fx.authoring.author import author
from sdtm_fx.authoring.checking import try_recipe
from sdtm_fx.authoring.running import Check, length_of, noted_calls, run_steps
from sdtm_fx.capture.example import ExampleSize, example_call
from sdtm_fx.cli.main import app
from sdtm_fx.explaining.shapes import shape_of
from sdtm_fx.inspecting.inspect import survey
from sdtm_fx.inspecting.opening import Subject, open_subject
from sdtm_fx.inspecting.render import render
from tests.inspecting.models import write_config

CONFIG: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
    "text_embed_dim": 16, "time_embed_dim": 16, "condition_dim": 8, "sample_size": 32, "pos_embed_max_size": 32,
}  # fmt: skip
SUBJECT = Subject(CogView3PlusTransformer2DModel, CONFIG, "a test")
# Attention is given the image alone, the feed-forward text and image in one sequence.
RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "mine",
    "model": ["CogView3PlusTransformer2DModel"],
    "tokens": {"grid": {"latent": "hidden_states", "patch": 2}},
    "inputs": {
        "hidden_states": ["batch", "in_channels", "height", "width"],
        "encoder_hidden_states": ["batch", "text", "text_embed_dim"],
        "timestep": ["batch"],
        "original_size": ["batch", 2],
        "target_size": ["batch", 2],
        "crop_coords": {"shape": ["batch", 2], "fill": "zeros"},
    },
    "sites": [
        {"id": "attn", "kind": "attention", "match": "transformer_blocks.*.attn1", "output": 0, "expect": 2},
        {
            "id": "ff", "kind": "feed_forward", "match": "transformer_blocks.*.ff", "expect": 2,
            "prefix": "encoder_hidden_states",
        },
    ],
    "stages": [{"name": "all", "until": 1.0, "sites": ["attn", "ff"], "method": {"name": "ssm"}}],
    "ratio": {"curve": "constant", "start": 0.5},
    "keep_dense": {"layers": [0, -1]},
}  # fmt: skip


def recipe(changes: Mapping[str, Any] | None = None) -> sdtm_fx.Recipe:
    return sdtm_fx.load_recipe(RECIPE).override(changes or {})


def tried(changes: Mapping[str, Any]) -> Check:
    """The last check."""
    return try_recipe(recipe(changes), SUBJECT)[-1]


def test_a_recipe_that_works() -> None:
    assert try_recipe(recipe(), SUBJECT) == [
        Check("sites", True, "attn 2, ff 2 of CogView3PlusTransformer2DModel"),
        Check("call", True, "`inputs` run on a copy with the model itself"),
        Check("tokens", True, "image among all: attn 48 of 48, ff 48 of 55"),
        Check("ratio 0", True, "bit for bit the plain model"),
        Check("merging", True, "image tokens in 8 steps: attn 48 -> 24; ff 48 -> 24"),
    ]


def test_a_recipe_without_a_dense_step() -> None:
    every = {"first_steps": 0, "last_steps": 0, "every_steps": None}
    changed = recipe({"keep_dense": every, "reuse": None})
    assert try_recipe(changed, SUBJECT)[-1].says == "image tokens in 8 steps: attn 48 -> 24; ff 48 -> 24"


def test_a_model_that_has_no_small_copy() -> None:
    wide = Subject(CogView3PlusTransformer2DModel, {**CONFIG, "text_embed_dim": 10_000_000}, "a test")
    assert (
        "no copy of CogView3PlusTransformer2DModel with at most 2 layers of each kind has less than 40 million"
        in (try_recipe(recipe(), wide)[-1].says)
    )


def test_skipped_sites_and_merged_keys_are_told_as_such() -> None:
    keys = {"sites.attn.merge": "keys", "sites.attn.output": 0}
    assert "attn all, with fewer keys; ff 48 -> 24" in tried(keys).says
    skipping = {
        "stages.all.method": {"name": "skip"}, "reuse": {"order": 0, "weight": 0.0},
        "keep_dense.steps": [9],
    }  # fmt: skip
    assert tried(skipping) == Check(
        "merging", True, "image tokens in 12 steps: attn 48 -> none in 9; ff 48 -> none in 9"
    )


def test_blocks_that_are_forecast_as_one_run_none_of_their_modules() -> None:
    changed = recipe(
        {
            "spans": [{"id": "blocks", "first": 0, "last": -1, "output": 0}],
            "stages.all": {"sites": ["blocks"], "method": {"name": "skip"}},
            "reuse": {"order": 1, "weight": 0.0},
            "keep_dense": {"first_steps": 2, "last_steps": 1, "every_steps": 3, "layers": []},
        }
    )
    *_, nothing, forecast = try_recipe(changed, SUBJECT)
    assert nothing.passed
    assert forecast == Check(
        "merging", True, "image tokens in 8 steps: attn 48 -> none in 3; ff 48 -> none in 3"
    )


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        (
            {"model": ["DiTTransformer2DModel"]},
            "sites",
            "recipe 'mine' is for DiTTransformer2DModel, this model is a CogView3PlusTransformer2DModel",
        ),
        ({"sites.ff.match": "transformer_blocks.*.mlp"}, "sites", "matches no module of CogView3Plus"),
        ({"sites.ff.expect": 30}, "sites", "matches 2 modules of CogView3Plus.* the recipe expects 30"),
        ({"inputs.timestep": ["batches"]}, "call", "inputs.timestep: 'batches' is no size"),
        (
            {"inputs.encoder_hidden_states": ["batch", "text", "in_channels"]},
            "call",
            "inputs: the call that they describe does not run on a copy of CogView3Plus.* RuntimeError: .* compare",
        ),
        ({"inputs": {"sizes": ["batch"]}}, "call", "unexpected keyword argument 'sizes'"),
        (
            {"sites.ff.prefix": None},
            "tokens",
            r"site 'ff': transformer_blocks.0.ff is given 55 tokens, 48 of them of the image: name the argument of "
            r"transformer_blocks.0 with the other 7 \(encoder_hidden_states\) as `prefix`",
        ),
        (
            {"tokens.grid.patch": 1},
            "tokens",
            "site 'attn': transformer_blocks.0.attn1 is given 12 tokens, fewer than the 48 of the image: look at "
            "tokens.grid",
        ),
        (
            {"tokens.grid.patch": 4},
            "tokens",
            "given 192 tokens, 48 of them of the image, and transformer_blocks.0 nothing as long as the other 144: "
            "look at tokens.grid",
        ),
        (
            {"sites.attn.input": "states"},
            "tokens",
            "attn1 is given no sequence as 'states'; its arguments are hidden_states, encoder_hidden_states.*look at "
            "`input`",
        ),
        (
            {"sites.ff.match": "transformer_blocks.*.ff.net"},
            "tokens",
            "transformer_blocks.0.ff.net is not called; take it out of the sites",
        ),
        ({"sites.ff.prefix": "temb"}, "ratio 0", "no argument 'temb' for `prefix`"),
        ({"ratio.start": 0.0}, "merging", "attn1 runs on all of its image tokens in each of 8 steps"),
    ],
)
def test_what_fails_names_the_key(changes: dict[str, Any], name: str, message: str) -> None:
    check = tried(changes)
    assert (check.name, check.passed) == (name, False)
    assert re.search(message, check.says), check.says


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "says"),
    [
        (  # so many that a quarter of them holds one behind four dense ones
            "flux.1-dev-attention", 20,
            "; ".join(f"{site} 48 -> 15, none in 9" for site in ("attn", "ff", "single_attn", "single_ff")),
        ),
        ("sd3-medium", 8, "attn 48 -> none in 2; ff 48 -> none in 2"),
        ("wan2.1-t2v-14b-keys", 8, "attn all, with fewer keys; ff 144 -> 72"),
        ("z-image", 8, "ff 48 -> 15"),
    ],
)  # fmt: skip
def test_shipped_recipes_hold_on_the_models_that_they_are_for(name: str, steps: int, says: str) -> None:
    *others, check = try_recipe(sdtm_fx.load_recipe(name), open_subject(shape_of(name)))
    assert all(other.passed for other in others)
    assert others[-1].says == (
        "the plain model, but for the rounding of forecasts"
        if name == "sd3-medium"  # the stream where the span begins, and what its blocks add to it
        else "bit for bit the plain model"
    )
    assert (check.name, check.says) == ("merging", f"image tokens in {steps} steps: {says}")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            CogView3PlusTransformer2DModel,
            {"sites.ff.prefix": None},
            r"transformer_blocks\.0 in stage 'all': merge: found a tensor of shape \(2, 55, 16\); this plan accepts "
            r"\[2, 48, any width\] \(a site whose sequence holds more than the image names the rest with `prefix`",
        ),
        (
            CogView4Transformer2DModel,
            {"stages.all.sites": ["attn"]},
            "stage 'all': transformer_blocks.0 does not run on fewer image tokens: .* name their "
            "argument with `rotary`",
        ),
    ],
)
def test_rewrite_says_so_too(kind: type[nn.Module], changes: dict[str, Any], message: str) -> None:
    build: Any = kind
    model, mine = build(**CONFIG), recipe({"model": [kind.__name__], "keep_dense.layers": [], **changes})
    before = dict(vars(model))
    with pytest.raises(sdtm_fx.SiteError, match=message):
        sdtm_fx.rewrite(model, mine)
    assert vars(model) == before


def test_tables_that_no_key_names_are_found_on_the_plain_model() -> None:
    subject = Subject(CogView4Transformer2DModel, CONFIG, "a test")
    changes = {"model": ["CogView4Transformer2DModel"], "stages.all.sites": ["attn"], "sites.ff.prefix": None}
    assert try_recipe(recipe(changes), subject)[-1] == Check(
        "tokens", False, "site 'attn': transformer_blocks.0.attn1 is also given image_rotary_emb, two tables with a "
        "row for each token: name it as `rotary`, so that they follow the tokens (a grid of 8x6 tokens)",
    )  # fmt: skip
    prefixed = try_recipe(recipe({**changes, "sites.ff.prefix": "encoder_hidden_states"}), subject)[-1]
    assert "attn1 is also given" in prefixed.says
    rotary = {"sites.attn.rotary": "image_rotary_emb", "plan.share": ["batch"]}
    assert (
        try_recipe(recipe({**changes, **rotary}), subject)[-1].says
        == "image tokens in 8 steps: attn 48 -> 24"
    )
    named = {**changes, **rotary, "sites.ff.prefix": "encoder_hidden_states"}
    assert "is given the 48 tokens of the image alone: take out 'encoder_hidden_states'" in (
        try_recipe(recipe(named), subject)[-1].says
    )


def test_of_a_module_that_is_called_twice_one_call_merges() -> None:
    subject = Subject(CogView4Transformer2DModel, CONFIG, "a test")
    changes = {
        "model": ["CogView4Transformer2DModel"], "stages.all.sites": ["ff"], "sites.ff.prefix": None,
        "keep_dense": {"first_steps": 0, "last_steps": 0, "layers": []},
    }  # fmt: skip
    assert (
        "the block calls it 2 times, a site is called once" in try_recipe(recipe(changes), subject)[-1].says
    )
    mine = recipe({**changes, "sites.ff.call": 0})
    assert try_recipe(mine, subject)[-1].says == "image tokens in 8 steps: ff 48 -> 24"
    text = try_recipe(recipe({**changes, "sites.ff.call": 1}), subject)[-1]
    assert "transformer_blocks.0.ff is given 7 tokens, fewer than the 48 of the image" in text.says
    model = CogView4Transformer2DModel(**CONFIG).eval()
    size = ExampleSize(2, 7, (8, 6))
    with noted_calls(model, ["transformer_blocks.1.ff"]) as seen:
        run_steps(mine.override({"plan.round_to": 1}), model, example_call(model, mine, size), 2)
    lengths = [length_of(call, 0) for call in seen["transformer_blocks.1.ff"]]
    assert lengths == [24, 7, 24, 7]


def test_the_call_for_the_image_is_drafted(tmp_path: Path) -> None:
    found = survey(Subject(CogView4Transformer2DModel, CONFIG, "a test"))
    draft = author(found, tmp_path / "mine.yaml")
    assert draft.passed, draft.checks
    attn, ff = sdtm_fx.load_recipe(tmp_path / "mine.yaml").sites
    assert (attn.call, attn.rotary) == (None, "image_rotary_emb")
    assert (ff.call, ff.prefix, ff.match) == (0, None, "transformer_blocks.*.ff")
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render(found))
    assert "feed-forward, call 0" in console.export_text()


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_the_command_tries_files_on_a_model(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(recipe().to_yaml())
    bad.write_text(recipe({"sites.ff.prefix": None}).to_yaml())
    config = write_config(tmp_path, {"_class_name": "CogView3PlusTransformer2DModel", **CONFIG})
    named = write_config(tmp_path, CONFIG, "named.json")
    out, _ = run("recipes", "validate", str(good), "--config", str(config))
    assert "mine is valid" in out
    assert "merging: image tokens in 8 steps: attn 48 -> 24; ff 48 -> 24" in out
    out, err = run(
        "recipes", "validate", str(bad), "--model", "CogView3PlusTransformer2DModel", "--config", str(named),
        code=1,
    )  # fmt: skip
    assert "sites: attn 2, ff 2" in out
    assert err.startswith("tokens: site 'ff'")
