"""Importance-based merging: what guidance changed in the step before decides what is merged in this one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.errors import PlanError, RewriteError
from sdtm_fx.methods import Importance
from sdtm_fx.runtime.guidance import guidance_change
from tests.pipelines import tiny_flux_pipeline, tiny_sd3_pipeline
from tests.user.cases import FLUX_DEV, SD3, all_equal, module_state, run_steps, the_rewriting
from tests.user.runs import sd3_images

IMPORTANCE = {
    "stages": [{"name": "all", "until": 1.0, "sites": ["attn", "ff"], "method": {"name": "importance"}}],
    "ratio": {"curve": "constant", "start": 0.5},
    "keep_dense": {"first_steps": 1, "last_steps": 0, "every_steps": None},
    "reuse": None,
    "plan.share": [],
}


def recipe(**changes: Any) -> sdtm_fx.Recipe:
    return SD3.recipe({**IMPORTANCE, **changes})


def views(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The importance that every plan is made from."""
    seen: list[torch.Tensor] = []
    plan = Importance.plan

    def spy(self: Importance, view: Any, remove: int) -> Any:
        if type(view.metric) is torch.Tensor and not view.metric.is_meta:  # not the cost model
            seen.append(view.importance.clone())
        return plan(self, view, remove)

    monkeypatch.setattr(Importance, "plan", spy)
    return seen


# -- the map -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: {"sample": x}])
def test_the_map_is_what_guidance_changes_per_token(wrap: Any) -> None:
    output = torch.randn(4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    found = guidance_change(wrap(output), (3, 4))
    assert found.shape == (4, 12)
    assert torch.equal(found[:2], found[2:]), "one map for both halves"
    for sample in range(2):
        for row in range(3):
            for column in range(4):
                place = (slice(None), slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
                change = (output[2 + sample][place] - output[sample][place]).abs().mean()
                assert float(found[sample, 4 * row + column]) == pytest.approx(float(change), rel=1e-5)


def test_half_precision_is_compared_in_full() -> None:
    output = torch.full((2, 1, 2, 2), 60_000.0, dtype=torch.float16)
    output[0] *= -1
    assert guidance_change(output, (1, 1)).tolist() == [[pytest.approx(119_936, rel=1e-3)]] * 2


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (torch.zeros(2, 16, 4), r"\(2, 16, 4\)"),
        (torch.zeros(3, 4, 2, 2), r"\(3, 4, 2, 2\)"),
        ((), "NoneType"),
    ],
)
def test_other_outputs_are_an_error(output: Any, found: str) -> None:
    with pytest.raises(
        PlanError, match=rf"importance: the model returned {found}; accepted \[2 \* batch, channels"
    ):
        guidance_change(output, (2, 2))


# -- through a generation ----------------------------------------------------------------------------


def test_each_step_reads_the_output_of_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, outputs = sdtm_fx.rewrite(tiny_sd3_pipeline(layers=2), recipe()), []
    handle = pipe.transformer.register_forward_hook(lambda m, a, output: outputs.append(output[0].clone()))
    seen = views(monkeypatch)
    first = sd3_images(pipe, 4, batch=2)
    handle.remove()
    grid = the_rewriting(pipe.transformer).runtime.last.grid  # type: ignore[union-attr]
    assert len(seen) == 3 * 2, "three merged steps, two blocks"
    for step in range(3):
        for block in range(2):
            assert torch.equal(seen[2 * step + block], guidance_change(outputs[step], grid))
    assert torch.equal(sd3_images(pipe, 4, batch=2), first), "nothing is left of the generation before"


def test_halves_that_share_a_plan_share_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = sdtm_fx.rewrite(tiny_sd3_pipeline(layers=2), recipe(**{"plan.share": ["cfg"]}))
    seen = views(monkeypatch)
    sd3_images(pipe, 3, batch=3)
    assert {view.shape[0] for view in seen} == {3}
    monkeypatch.undo()
    pipe = sdtm_fx.rewrite(tiny_sd3_pipeline(layers=2), recipe(**{"plan.share": ["cfg", "batch"]}))
    seen = views(monkeypatch)
    sd3_images(pipe, 3, batch=3)
    assert {view.shape[0] for view in seen} == {1}


def test_what_it_keeps_is_what_guidance_changed_most() -> None:
    model = sdtm_fx.rewrite(SD3.model(), recipe())
    inputs = SD3.inputs()
    with sdtm_fx.steps(model, 2, cfg_halves=2) as clock, sdtm_fx.record_plans(model) as record:
        important = guidance_change(model(**inputs)[0], (8, 8))
        clock.advance()
        model(**inputs)
    (site, *_) = record.at(action="merged")
    assert site.positions is not None
    kept = [set(row.tolist()) for row in site.positions]
    for row in range(2):
        assert kept[row] == set(important[row].topk(32).indices.tolist()), "with pool 1, the important half"


def test_a_model_of_ones_own_says_that_halves_are_stacked() -> None:
    model, inputs = sdtm_fx.rewrite(SD3.model(), recipe()), SD3.inputs()
    with pytest.raises(PlanError, match=r"no two guidance halves in one batch: .*cfg_halves=2"):
        run_steps(model, inputs, 3)
    with sdtm_fx.steps(model, 3, cfg_halves=2) as clock:
        for _ in range(3):
            assert model(**inputs)[0].isfinite().all()
            clock.advance()


def test_without_guidance_it_is_an_error_that_names_what_is_missing() -> None:
    pipe = sdtm_fx.rewrite(tiny_sd3_pipeline(layers=2), recipe())
    with pytest.raises(
        PlanError, match=r"found no scores of the step before; this call holds no two guidance halves"
    ):
        sd3_images(pipe, 3, cfg=False)


def flux_recipe() -> sdtm_fx.Recipe:
    return FLUX_DEV.recipe({**IMPORTANCE, "stages.all.sites": ["ff"], "plan.share": []})


def test_a_pipeline_that_never_stacks_halves_is_refused_at_once() -> None:
    pipe = tiny_flux_pipeline()
    before = module_state(pipe.transformer)
    with pytest.raises(
        RewriteError,
        match=r"reads what guidance changes .*FluxPipeline does not stack guidance halves in one batch, or does not "
        r"say so: it has no do_classifier_free_guidance .*accepted: a pipeline that has, .*cfg_halves=2",
    ):
        sdtm_fx.rewrite(pipe, flux_recipe())
    assert module_state(pipe.transformer) == before


def test_a_model_that_returns_no_latent_image_is_refused_at_once() -> None:
    model = FLUX_DEV.model()
    with pytest.raises(
        RewriteError,
        match=r"FluxTransformer2DModel returns \[\d+, \d+, 16\]; accepted: a model that returns \[batch, ch",
    ):
        sdtm_fx.rewrite(model, flux_recipe())


def test_a_generation_that_starts_in_the_middle_has_no_step_before() -> None:
    model, inputs = sdtm_fx.rewrite(SD3.model(), recipe()), SD3.inputs()
    with sdtm_fx.steps(model, 4, cfg_halves=2) as clock:
        clock.step = 2
        with pytest.raises(
            PlanError, match=r"no call came before this one, .*\(keep_dense\.first_steps: 1\)"
        ):
            model(**inputs)


def test_explain_counts_what_is_held() -> None:
    model, inputs = sdtm_fx.rewrite(SD3.model(), recipe()), SD3.inputs()
    with sdtm_fx.steps(model, 2, cfg_halves=2) as clock:
        for _ in range(2):
            model(**inputs)
            clock.advance()
    told = sdtm_fx.explain(model, quiet=True)
    assert told.state_bytes["importance"] == 2 * 64 * 4


def test_other_recipes_hold_no_scores() -> None:
    pipe = sdtm_fx.rewrite(tiny_sd3_pipeline(layers=2), SD3.recipe())
    sd3_images(pipe, 3)
    assert all(b.importance is None for b in the_rewriting(pipe.transformer).runtime.state.branches.values())


@pytest.mark.compile
@pytest.mark.parametrize("regional", [False, True], ids=["whole", "regional"])
def test_compiled_phases_read_it_from_where_it_is(regional: bool) -> None:
    torch._dynamo.reset()
    pipe = sdtm_fx.rewrite(tiny_sd3_pipeline(layers=2), recipe(**{"plan.every_steps": 2}))
    eager = sd3_images(pipe, 5)
    sdtm_fx.compile(pipe, regional=regional, backend="eager")
    assert torch.equal(sd3_images(pipe, 5), eager)
    (branch,) = the_rewriting(pipe.transformer).runtime.state.branches.values()
    place = branch.importance.data_ptr()  # type: ignore[union-attr]
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(sd3_images(pipe, 5), eager)
    (branch,) = the_rewriting(pipe.transformer).runtime.state.branches.values()
    assert branch.importance.data_ptr() == place  # type: ignore[union-attr]
    torch._dynamo.reset()


def test_the_same_twice_and_another_seed_otherwise() -> None:
    outputs = []
    for seed in (0, 0, 1):
        model = sdtm_fx.rewrite(SD3.model(), recipe(seed=seed))
        with sdtm_fx.steps(model, 3, cfg_halves=2) as clock:
            steps = []
            for _ in range(3):
                steps.append(model(**SD3.inputs())[0])
                clock.advance()
        outputs.append(steps)
    assert all_equal(outputs[0], outputs[1])
    assert not all_equal(outputs[0], outputs[2])
