"""`restore` gives the original back, a failed `rewrite` leaves what was there, a second one replaces the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import sdtm_fx
from sdtm_fx import passes
from sdtm_fx.rewriting.rewriting import rewriting_of
from sdtm_fx.rewriting.work import BlockWork, Pass
from tests.pipelines import sd3_prompt_kwargs, tiny_flux_pipeline, tiny_sd3_pipeline
from tests.user.cases import (
    DENSE,
    FLUX_ATTENTION,
    SD3,
    Case,
    all_equal,
    module_state,
    run_plain,
    run_steps,
    the_rewriting,
)


def test_restore_is_bit_identical_and_leaves_nothing(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    expected, before, looks = run_plain(model, inputs), module_state(model), looks_of(model)
    assert sdtm_fx.rewrite(model, case.recipe()) is model
    run_steps(model, inputs)
    assert looks_of(model) == looks
    assert sdtm_fx.restore(model) is model
    assert all_equal(run_plain(model, inputs), expected)
    assert module_state(model) == before
    assert rewriting_of(model) is None


def looks_of(model: nn.Module) -> tuple[Any, ...]:
    """What others see of a model."""
    return (
        type(model),
        dict(model.config),
        model.dtype,
        model.device,
        model.training,
        [(name, p.data_ptr()) for name, p in model.state_dict().items()],
        [name for name, _ in model.named_modules()],
        [type(m).forward for m in model.modules()],
    )


@pytest.mark.parametrize("make", [tiny_sd3_pipeline, tiny_flux_pipeline])
def test_a_pipeline_is_left_as_it_was(make: Callable[[], Any]) -> None:
    pipe = make()
    recipe = "sd3-medium-windows" if "SD3" in type(pipe.transformer).__name__ else "flux.1-dev-windows"
    before, scheduler = module_state(pipe.transformer), dict(vars(pipe.scheduler))
    pipeline = dict(vars(pipe))
    sdtm_fx.rewrite(pipe, sdtm_fx.load_recipe(recipe).override({"sites.*.expect": None, "plan.round_to": 1}))
    assert vars(pipe.scheduler).keys() != scheduler.keys()
    sdtm_fx.restore(pipe)
    assert module_state(pipe.transformer) == before
    assert dict(vars(pipe.scheduler)) == scheduler
    assert dict(vars(pipe)) == pipeline


def test_restore_takes_the_model_of_a_pipeline_too() -> None:
    pipe = tiny_sd3_pipeline()
    sdtm_fx.rewrite(pipe, SD3.recipe())
    sdtm_fx.restore(pipe.transformer)
    assert "step" not in vars(pipe.scheduler)
    with pytest.raises(sdtm_fx.RewriteError, match="StableDiffusion3Pipeline is not rewritten"):
        sdtm_fx.restore(pipe)


@pytest.mark.parametrize("case", [SD3, FLUX_ATTENTION], ids=lambda case: case.name)
def test_a_second_rewrite_replaces_the_first(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    before = module_state(model)
    plain = run_plain(model, inputs)
    sdtm_fx.rewrite(model, case.recipe())
    first = run_steps(model, inputs)
    sdtm_fx.rewrite(model, case.recipe(DENSE))
    assert all_equal(run_steps(model, inputs), plain)
    sdtm_fx.rewrite(model, case.recipe())
    assert all_equal(run_steps(model, inputs), first)
    sdtm_fx.restore(model)
    assert module_state(model) == before


def test_rewritten_restores_after_an_exception() -> None:
    model = SD3.model()
    before = module_state(model)
    with pytest.raises(KeyError, match="mine"), sdtm_fx.rewritten(model, SD3.recipe()) as same:
        _fail(same is model)
    assert module_state(model) == before


def _fail(as_expected: bool) -> None:
    assert as_expected
    raise KeyError("mine")


def bad_recipe(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, type[Exception], str]:
    return {"version": 1, "name": "bad"}, sdtm_fx.RecipeError, "tokens: found nothing"


def unmatched_site(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, type[Exception], str]:
    return SD3.recipe({"sites.ff.match": "blocks.*.ff"}), sdtm_fx.NothingMatched, "matches no module"


def broken_pass(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, type[Exception], str]:
    def run(work: BlockWork) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES[:3], Pass("breaks", True, run), *passes.PASSES[3:]))
    return SD3.recipe(), sdtm_fx.PassError, "pass 'breaks' broke .*ZeroDivisionError: oops .*insert_merges"


def late_failure(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, type[Exception], str]:
    register, failures = nn.Module.register_forward_hook, iter([OSError("no hooks today")])

    def refuse(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for failure in failures:
            raise failure
        return register(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "register_forward_hook", refuse)
    return SD3.recipe(), OSError, "no hooks today"


FAULTS = [bad_recipe, unmatched_site, broken_pass, late_failure]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_rewrite_leaves_the_model_as_it_was(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SD3.model()
    before = module_state(model)
    recipe, error, text = fault(monkeypatch)
    with pytest.raises(error, match=text):
        sdtm_fx.rewrite(model, recipe)
    assert module_state(model) == before


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_rewrite_leaves_the_previous_one_in_place(
    fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = SD3.model(), SD3.inputs()
    untouched = module_state(model)
    sdtm_fx.rewrite(model, SD3.recipe())
    first, rewriting = run_steps(model, inputs), the_rewriting(model)
    with monkeypatch.context() as patch:
        recipe, error, text = fault(patch)
        with pytest.raises(error, match=text):
            sdtm_fx.rewrite(model, recipe)
    assert the_rewriting(model) is rewriting
    assert all_equal(run_steps(model, inputs), first)
    sdtm_fx.restore(model)
    assert module_state(model) == untouched


def test_a_pipeline_that_cannot_be_followed_keeps_its_previous_rewriting() -> None:
    pipe = tiny_sd3_pipeline()
    sdtm_fx.rewrite(pipe, SD3.recipe())
    rewriting = the_rewriting(pipe.transformer)
    scheduler, pipe.scheduler = pipe.scheduler, None
    with pytest.raises(sdtm_fx.ClockError, match=r"cannot follow .*: it has no scheduler"):
        sdtm_fx.rewrite(pipe, SD3.recipe(DENSE))
    pipe.scheduler = scheduler
    assert the_rewriting(pipe.transformer) is rewriting
    pipe(num_inference_steps=2, **sd3_prompt_kwargs())  # its clock still knows the step: no warning, no error
    assert rewriting.runtime.last is not None
    assert rewriting.runtime.last.steps == 2
