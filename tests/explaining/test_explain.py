"""`explain` against what a rewritten model really computes."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import SD3Transformer2DModel

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter
from sdtm_fx.explaining.render import as_text
from tests.pipelines import tiny_flux_transformer, tiny_sd3_pipeline, tiny_sd3_transformer

FREE = {"sites.*.expect": None, "plan.round_to": 1}
EARLY = {**FREE, "stages.detail.sites": ["ff"]}
GRID = (8, 6)
STEPS = 6


def _sd3_call(batch: int = 2) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(batch, 4, 2 * GRID[0], 2 * GRID[1], generator=generator),
        "encoder_hidden_states": torch.randn(batch, 5, 32, generator=generator),
        "pooled_projections": torch.randn(batch, 32, generator=generator),
        "timestep": torch.full((batch,), 500.0),
    }


def _flux_call(batch: int = 2) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.cartesian_prod(torch.zeros(1), *(torch.arange(side, dtype=torch.float32) for side in GRID))
    return {
        "hidden_states": torch.randn(batch, GRID[0] * GRID[1], 16, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 5, 32, generator=generator),
        "pooled_projections": torch.randn(batch, 32, generator=generator),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": ids,
        "txt_ids": torch.zeros(5, 3),
        "guidance": torch.full((batch,), 3.5),
    }


CASES = {
    "sd3": (lambda: tiny_sd3_transformer(layers=3), "sd3-medium-windows", _sd3_call, {}),
    "dual attention": (
        lambda: tiny_sd3_transformer(layers=3, dual_attention_layers=(0, 1), qk_norm="rms_norm"),
        "sd3.5-medium-windows", _sd3_call, {},
    ),
    "flux": (lambda: tiny_flux_transformer(layers=1, single_layers=2), "flux.1-dev-windows", _flux_call, {}),
    "flux attention": (
        lambda: tiny_flux_transformer(layers=1, single_layers=2), "flux.1-dev-attention", _flux_call, {},
    ),
    "idm": (
        lambda: tiny_sd3_transformer(layers=2), "sd3-medium-windows", _sd3_call,
        {"stages.detail.sites": ["ff"], "stages.detail.method": {"name": "idm", "probe_queries": 16}},
    ),
    "keys": (
        lambda: tiny_sd3_transformer(layers=3), "sd3-medium-merge", _sd3_call,
        {"sites.attn.merge": "keys", "stages.detail.method": {"name": "todo"}, "plan.proportional": True},
    ),
    "keys, dual attention": (
        lambda: tiny_sd3_transformer(layers=3, dual_attention_layers=(0, 1), qk_norm="rms_norm"),
        "sd3.5-medium-windows", _sd3_call,
        {
            "sites.attn.merge": "keys", "sites.attn2.merge": "keys",
            "stages.detail.method": {"name": "local_match"},
        },
    ),
    "keys, flux": (
        lambda: tiny_flux_transformer(layers=1, single_layers=2), "flux.1-dev-merge", _flux_call,
        {
            "sites.attn.merge": "keys", "sites.single_attn.merge": "keys", "ratio": {"curve": "full"},
            "stages.structure.sites": ["attn", "single_attn"], "stages.structure.method": {"name": "todo", "factor": 3},
        },
    ),
    "layers share": (lambda: tiny_sd3_transformer(layers=4), "sd3-medium-windows", _sd3_call, {"plan.every_layers": 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_macs_of_every_step_are_those_that_run(case: str) -> None:
    build, name, arguments, changes = CASES[case]
    model, call = build(), arguments()
    sdtm_fx.rewrite(model, sdtm_fx.load_recipe(name).override({**FREE, **changes}))
    report = sdtm_fx.explain(model, steps=STEPS, grid=GRID, batch=2, text=5, quiet=True)
    expected = {step: phase.macs for phase in report.phases for step in phase.steps}
    with torch.no_grad(), sdtm_fx.steps(model, STEPS) as clock:
        for step in range(STEPS):
            with MacCounter() as counter:
                model(**call)
            assert counter.macs.linear == pytest.approx(expected[step].linear, rel=1e-6), step
            assert counter.macs.total == pytest.approx(expected[step].total, rel=1e-6), step
            clock.advance()
    assert len({macs.total for macs in expected.values()}) > 1


def test_sd3_medium_costs_what_the_paper_says() -> None:
    """Table S1 of SDTM: 6.01 TMACs a step, linear layers only, both CFG halves, 333 text tokens."""
    with torch.device("meta"):
        model = SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
            num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536,
            pooled_projection_dim=2048, pos_embed_max_size=192,
        )  # fmt: skip
    sdtm_fx.rewrite(model, "sd3-medium-windows")
    report = sdtm_fx.explain(model, steps=50, grid=(64, 64), batch=2, text=333, quiet=True)
    assert report.dense.linear / 1e12 == pytest.approx(6.01, abs=0.01)
    assert report.dense.total / 1e12 == pytest.approx(8.90, abs=0.01)
    assert report.structures == 2
    assert report.blocks == 24
    # Attention: 4 D^2 for 4096 + 333 tokens and 2 L^2 D for SDPA; feed-forward: 8 D^2 for the image tokens.
    width, image, text = 1536, 4096, 333
    attention = 2 * (4 * width**2 * (image + text) + 2 * width * (image + text) ** 2)
    before = {s.path: s.macs_before.total for s in report.sites if s.phase == 0}
    assert before["transformer_blocks.3.attn"] == attention
    assert before["transformer_blocks.3.ff"] == 2 * 8 * width**2 * image


def test_sites_say_what_is_merged_and_why_not() -> None:
    model = tiny_sd3_transformer(layers=3)
    sdtm_fx.rewrite(
        model, sdtm_fx.load_recipe("sd3-medium-merge").override({**EARLY, "keep_dense.layers": [-1]})
    )
    report = sdtm_fx.explain(model, steps=10, grid=GRID, batch=2, text=5, quiet=True)
    assert report.kept_dense == ("transformer_blocks.2",)
    assert {s.path for s in report.sites} == {
        f"transformer_blocks.{i}.{m}" for i in (0, 1) for m in ("attn", "ff")
    }
    for site in report.sites:
        phase = report.phases[site.phase]
        merged = phase.label != "dense" and (site.site == "ff" or phase.label == "structure")
        assert (site.skipped is None) == merged
        assert site.tokens_before - site.tokens_after == (phase.removed if merged else 0)
        assert site.macs_after is not None
        assert 0 < site.macs_after.total <= site.macs_before.total
        assert (site.macs_after.total < site.macs_before.total) == merged
    reasons = {s.skipped for s in report.sites}
    assert reasons == {None, "the step is dense", "not a site of stage detail"}


def test_fewer_keys_are_told_apart_from_fewer_tokens() -> None:
    model = tiny_sd3_transformer(layers=2)
    keyed = {
        "sites.attn.merge": "keys",
        "stages.structure.method": {"name": "todo"},
        "ratio": {"curve": "full"},
    }
    sdtm_fx.rewrite(model, sdtm_fx.load_recipe("sd3-medium-merge").override({**EARLY, **keyed}))
    report = sdtm_fx.explain(model, steps=10, grid=GRID, batch=2, text=5, quiet=True)
    phase = next(i for i, p in enumerate(report.phases) if p.label == "structure")
    attn, ff = (next(s for s in report.sites if s.phase == phase and s.site == id) for id in ("attn", "ff"))
    assert (attn.merges, ff.merges) == ("keys", "tokens")
    assert (attn.tokens_before, attn.tokens_after) == (48, 12)
    assert attn.macs_after is not None
    assert attn.macs_after.linear == attn.macs_before.linear
    # Two products of 53 x 36 x 16 per sample are saved.
    assert attn.macs_before.total - attn.macs_after.total == 2 * 2 * 53 * 36 * 16
    lines = [line for line in as_text(report).splitlines() if "->" in line]
    assert any("transformer_blocks.*.attn (2)" in line and "48 -> 12 keys" in line for line in lines)
    assert any("transformer_blocks.*.ff (2)" in line and "48 -> 12 " in line for line in lines)
    assert json.loads(json.dumps(report.as_dict()))["sites"][0]["merges"] == "keys"


def test_report_is_plain_data_and_text() -> None:
    model = tiny_sd3_transformer(layers=2)
    sdtm_fx.rewrite(model, sdtm_fx.load_recipe("sd3-medium-merge").override(EARLY))
    report = sdtm_fx.explain(model, steps=10, grid=GRID, batch=2, text=5, quiet=True)
    data = json.loads(json.dumps(report.as_dict()))
    assert data["theoretical_speedup"] == report.theoretical_speedup > 1
    assert sum(len(p["steps"]) for p in data["phases"]) == 10
    text = as_text(report)
    assert "transformer_blocks.*.ff (2)" in text
    assert "pos_embed -> time_text_embed -> context_embedder -> transformer_blocks.* (2) -> norm_out" in text
    assert "attn: transformer_blocks.*.attn (2) not merged: not a site of stage detail" in text


def test_explain_prints_unless_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_sd3_transformer(layers=2)
    sdtm_fx.rewrite(model, sdtm_fx.load_recipe("sd3-medium-merge").override(EARLY))
    sdtm_fx.explain(model, grid=GRID, quiet=True)
    assert capsys.readouterr().out == ""
    sdtm_fx.explain(model, grid=GRID)
    assert "Merged sites" in capsys.readouterr().out


def test_a_stage_that_no_step_runs_is_a_note() -> None:
    model = tiny_sd3_transformer(layers=2)
    sdtm_fx.rewrite(model, sdtm_fx.load_recipe("sd3-medium-windows").override({"sites.*.expect": None}))
    (note,) = sdtm_fx.explain(model, steps=8, grid=GRID, quiet=True).notes
    assert note.startswith(
        "sd3-medium-windows: stage 'structure' runs in none of the 8 steps: keep_dense keeps"
    )
    assert sdtm_fx.explain(model, steps=28, grid=GRID, quiet=True).notes == ()


def test_size_defaults_to_the_last_generation_and_memory_is_counted() -> None:
    pipe = tiny_sd3_pipeline(layers=2)
    sdtm_fx.rewrite(pipe, sdtm_fx.load_recipe("sd3-medium-merge").override(EARLY))
    assert sdtm_fx.explain(pipe, quiet=True).grid == (4, 4)  # sample_size 8, patch 2
    told = sdtm_fx.explain(pipe, steps=7, grid=GRID, batch=2, text=5, quiet=True)
    call = _sd3_call()
    with torch.no_grad(), sdtm_fx.steps(pipe, 7) as clock:
        for _ in range(7):
            pipe.transformer(**call)
            clock.advance()
    report = sdtm_fx.explain(pipe, quiet=True)
    assert (report.steps, report.grid, report.batch, report.text) == (7, GRID, 2, 5)
    width = 16
    features = (
        2 * 2 * 2 * GRID[0] * GRID[1] * width * 4 * 2
    )  # blocks, sites, samples, tokens, channels, bytes, order 1
    assert report.state_bytes["features"] == told.feature_bytes == report.feature_bytes == features
    assert f"stores features for later steps: {features / 2**20:.1f} MiB in all" in as_text(report)
    assert "held across steps" in as_text(report)


def test_an_unrewritten_model_has_nothing_to_explain() -> None:
    with pytest.raises(
        sdtm_fx.RewriteError, match=r"SD3Transformer2DModel is not rewritten; call sdtm_fx.rewrite"
    ):
        sdtm_fx.explain(tiny_sd3_transformer())
