"""Every code block of README.md runs, and every list in it is complete."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from typer.testing import CliRunner

import sdtm_fx
from sdtm_fx.cli.main import app
from sdtm_fx.passes import PASSES
from tests.pages import read_blocks
from tests.pipelines import sd3_prompt_kwargs, tiny_sd3_pipeline

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [block.text for block in read_blocks(TEXT) if block.language == language]


def pretend_sd3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SD3 medium load as a model of its depth and of tiny width, whose prompts are random embeddings."""

    def load(name: str, torch_dtype: torch.dtype) -> StableDiffusion3Pipeline:
        assert name == "stabilityai/stable-diffusion-3-medium-diffusers"
        pipe = tiny_sd3_pipeline(layers=24, latent_size=32)
        return pipe.to(torch_dtype)

    def encode(self: Any, prompt: str, **_: Any) -> tuple[torch.Tensor, ...]:
        prepared = sd3_prompt_kwargs(seed=len(prompt))
        names = (
            "prompt_embeds",
            "negative_prompt_embeds",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        )
        return tuple(prepared[name].to(self.transformer.dtype) for name in names)

    moved = DiffusionPipeline.to
    monkeypatch.setattr(StableDiffusion3Pipeline, "from_pretrained", load)
    monkeypatch.setattr(StableDiffusion3Pipeline, "encode_prompt", encode)
    monkeypatch.setattr(DiffusionPipeline, "to", lambda self, to: self if to == "cuda" else moved(self, to))


@pytest.mark.slow
def test_the_python_blocks_run_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_sd3(monkeypatch)
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) == 9
    names: dict[str, Any] = {}
    for number, block in enumerate(found, start=1):
        exec(compile(block, f"README.md, python block {number}", "exec"), names)
    assert "recipe sd3-medium" in capsys.readouterr().out
    assert names["image"].size == (32, 32)
    assert names["velocity"].shape == (2, 3, 32, 32)
    assert names["recipe"].stages[1].method.name == "skip"
    assert names["merged"].shape == (1, 640, 64)
    assert names["full"].shape == (1, 1024, 64)


def test_the_recipes_load_and_match_what_they_are_for() -> None:
    whole, short = map(sdtm_fx.Recipe.from_yaml_text, blocks("yaml"))
    model = tiny_sd3_pipeline(layers=24).transformer
    for recipe in (whole, short):
        with sdtm_fx.rewritten(model, recipe):
            assert sdtm_fx.explain(model, steps=28, grid=(64, 64), quiet=True).theoretical_speedup > 1
    assert short.keep_dense.layers == (0, -1)
    assert short.ratio.start == 0.5


@pytest.mark.slow
def test_the_shell_commands_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    assert {line[0] for line in lines} == {"make", "sdtm-fx"}
    for command, *arguments in lines:
        if command == "make":
            assert f"\n{arguments[0]}:" in makefile
        else:
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output


def test_it_names_every_recipe_pass_and_public_name() -> None:
    assert all(f"`{name}`" in TEXT for name in sdtm_fx.list_recipes() if "/" not in name)
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (yes|no) \|$", TEXT, flags=re.MULTILINE))
    assert rows == {p.name: "yes" if p.exact else "no" for p in PASSES}
    public = [
        name for name in vars(sdtm_fx) if not name.startswith("_") and hasattr(vars(sdtm_fx)[name], "__doc__")
    ]
    modules = {name for name in public if type(vars(sdtm_fx)[name]).__name__ == "module"}
    assert [name for name in public if name not in modules and f"`{name}" not in TEXT] == []
