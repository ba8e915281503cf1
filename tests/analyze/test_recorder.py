"""What is recorded is what the blocks return, and the model never notices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdtm_fx
from sdtm_fx.analyze import Analysis, Sampling, Settings, analyze, recording
from sdtm_fx.analyze.layout import find_layout
from sdtm_fx.analyze.maths import band_norms, nearest_tokens
from sdtm_fx.errors import NothingMatched, SdtmFxError
from tests.analyze.prompted import Prompted, flux, sd3
from tests.pipelines import (
    flux_prompt_kwargs,
    randomize,
    sd3_prompt_kwargs,
    tiny_flux_pipeline,
    tiny_sd3_pipeline,
    tiny_sd3_transformer,
)
from tests.zoo import sd3_inputs

TWO = ("one", "two")


def traces(pipeline: Any) -> list[Any]:
    """Everything on a pipeline that a recorder could leave something in."""
    model = pipeline.transformer
    hooks = [
        h
        for m in model.modules()
        for h in (m._forward_hooks, m._forward_pre_hooks, m._forward_hooks_with_kwargs)
    ]
    return [
        [dict(h) for h in hooks],
        [sorted(vars(m)) for m in model.modules()],
        sorted(vars(pipeline.scheduler)),
    ]


def run(pipeline: Prompted, **options: Any) -> Analysis:
    sampling = Sampling(steps=4, height=8, width=12, **options)
    return analyze(pipeline, TWO, sampling, settings=Settings(windows=(2,)))


@pytest.mark.parametrize("make", [sd3, flux])
def test_images_and_model_are_those_without_it(make: Any) -> None:
    pipeline = make()
    call: dict[str, Any] = {"num_inference_steps": 3, "height": 8, "width": 12, "output_type": "latent"}
    kwargs = {**pipeline.kwargs(1), **call}

    def draw() -> Tensor:
        return pipeline.pipeline(**{**kwargs, "generator": torch.Generator().manual_seed(7)}).images

    expected, before = draw(), traces(pipeline)
    with recording(pipeline.pipeline, settings=Settings(windows=(2,))):
        inside = draw()
        assert traces(pipeline) != before
    assert torch.equal(inside, expected)
    assert traces(pipeline) == before
    assert torch.equal(draw(), expected)


@pytest.mark.parametrize("make", [sd3, flux])
def test_an_error_leaves_nothing_behind(make: Any) -> None:
    pipeline = make()
    pipeline.pipeline(**{**pipeline.kwargs(1), "num_inference_steps": 1})  # the scheduler grows attributes
    before = traces(pipeline)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze(pipeline, TWO, Sampling(steps=3), settings=Settings(windows=(2,)), on_step=stop)
    assert traces(pipeline) == before


def captured(pipeline: Prompted, blocks: list[nn.Module]) -> list[list[tuple[Tensor, Tensor]]]:
    """By block and step: image tokens before and after, by plain hooks."""
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in blocks]
    handles = []
    for place, block in enumerate(blocks):

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any, place: int = place) -> None:
            seen[place].append((kwargs["hidden_states"] if "hidden_states" in kwargs else args[0], output[1]))

        handles.append(block.register_forward_hook(keep, with_kwargs=True))
    pipeline(["one"], num_inference_steps=4, height=8, width=12, output_type="latent",
             generator=[torch.Generator().manual_seed(0)])  # fmt: skip
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("make", [sd3, flux])
def test_it_measures_the_conditional_image_tokens_of_every_block(make: Any) -> None:
    pipeline = make()
    model = pipeline.transformer
    blocks = [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", [])]
    found, seen = run(pipeline), captured(pipeline, blocks)
    assert (found.grid, found.steps, found.images, len(found.blocks)) == ((4, 6), 4, 2, len(blocks))
    for place in range(len(blocks)):
        for step in range(4):
            before, after = (t[-1:].float() for t in seen[place][step])  # the negative half comes first
            for features, tokens in ((found.output, after), (found.update, after - before)):
                expected = band_norms(tokens, (4, 6))[0]
                np.testing.assert_allclose(features.norms[0, step, place], expected, rtol=1e-3, atol=1e-4)
                near = nearest_tokens(tokens, (4, 6))
                assert features.similarity[0, step, place] == pytest.approx(
                    float(near.similarity.mean()), abs=1e-4
                )


def test_batches_make_no_difference() -> None:
    alone, together = run(sd3()), run(sd3(), batch=2)
    np.testing.assert_allclose(alone.output.norms, together.output.norms, rtol=1e-3)
    assert not np.allclose(alone.output.norms[0], alone.output.norms[1], rtol=1e-3)  # the seeds differ


def test_a_second_call_in_a_step_is_not_counted() -> None:
    pipeline = tiny_flux_pipeline(layers=1)
    calls: list[int] = []
    with recording(pipeline, settings=Settings(windows=(2,)), on_step=lambda: calls.append(0)) as recorder:
        pipeline(num_inference_steps=3, **flux_prompt_kwargs(true_cfg=True))
    assert len(calls) == 3
    assert recorder.result().images == 1


def test_maps_are_of_the_first_image_and_agree_with_the_means() -> None:
    found = analyze(sd3(), TWO, Sampling(steps=4), settings=Settings(windows=(2,), maps=True))
    for features in (found.output, found.update):
        assert features.maps is not None
        assert features.maps.shape == (2, 4, 2, 4, 4)
        np.testing.assert_allclose(features.maps[0].mean(axis=(2, 3)), features.similarity[0], rtol=1e-5)
        np.testing.assert_allclose(features.maps[1].mean(axis=(2, 3)), features.distance[0], rtol=1e-5)


@torch.no_grad()
def test_a_bare_model_is_told_the_step() -> None:
    model = tiny_sd3_transformer(layers=2)
    with recording(model, "sd3-medium") as recorder, recorder.clock.manual(2) as clock:
        for _ in range(2):
            model(**sd3_inputs(1, (6, 5), 7))
            clock.advance()
    found = recorder.result()
    assert (found.steps, found.grid, found.recipe) == (2, (6, 5), "sd3-medium")
    assert found.scalars("output")["similarity_in_4x4"].shape == (1, 2, 2)


@torch.no_grad()
def test_half_precision_is_measured_in_float32() -> None:
    model = randomize(tiny_sd3_transformer(layers=1), scale=0.2).to(torch.bfloat16)
    call = {
        k: v.to(torch.bfloat16) if isinstance(v, Tensor) else v for k, v in sd3_inputs(1, (4, 4), 7).items()
    }
    with recording(model) as recorder, recorder.clock.manual(1):
        model(**call)
    assert np.isfinite(recorder.result().update.similarity).all()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (sd3, {"sd3-medium", "sd3-medium-windows", "toy-sd3"}),
        (flux, {"flux.1-dev", "flux.1-schnell", "toy-flux"}),
        (lambda: sd3(dual_attention_layers=(0,), qk_norm="rms_norm"), {"sd3.5-medium"}),
    ],
)
def test_the_recipe_that_fits_is_found(make: Any, names: set[str]) -> None:
    assert find_layout(make().pipeline).recipe.name in names


class TestErrors:
    def test_no_recipe_is_for_the_model(self) -> None:
        with pytest.raises(
            SdtmFxError, match=r"no shipped recipe matches Linear .*there are recipes for .*Flux"
        ):
            find_layout(nn.Linear(1, 1))

    def test_the_recipe_is_for_another_model(self) -> None:
        with pytest.raises(
            SdtmFxError, match=r"'flux\.1-dev' is for FluxTransformer2DModel, and .*transformer: SD3"
        ):
            analyze(sd3().pipeline, TWO, recipe="flux.1-dev")

    def test_a_site_of_the_recipe_is_not_there(self) -> None:
        with pytest.raises(NothingMatched, match="attn2"):
            find_layout(sd3().pipeline, "sd3.5-medium")

    def test_it_is_no_model(self) -> None:
        with pytest.raises(SdtmFxError, match="found a int; accepted: a diffusers pipeline"):
            find_layout(3)

    def test_a_rewritten_model_is_refused(self) -> None:
        pipeline = tiny_sd3_pipeline(layers=1)
        recipe = sdtm_fx.load_recipe("sd3-medium-windows").override(
            {"sites.*.expect": None, "plan.round_to": 1}
        )
        with (
            sdtm_fx.rewritten(pipeline, recipe),
            pytest.raises(SdtmFxError, match=r"is rewritten.*sdtm_fx\.restore first"),
        ):
            find_layout(pipeline)

    def test_there_are_no_prompts(self) -> None:
        with pytest.raises(SdtmFxError, match="there are no prompts"):
            analyze(sd3(), ())

    @pytest.mark.parametrize(("height", "width", "name"), [(9, 8, "height 9"), (8, 11, "width 11")])
    def test_the_patch_does_not_divide_the_size(self, height: int, width: int, name: str) -> None:
        with pytest.raises(
            SdtmFxError, match=rf"{name} px is no whole number of tokens; accepted: multiples of 2"
        ):
            analyze(sd3(), TWO, Sampling(height=height, width=width))

    def test_the_pipeline_rounds_the_size(self, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(SdtmFxError, match=r"9 x 8 px .* the pipeline made it 4 x 4 tokens"):
            analyze(flux(), TWO, Sampling(steps=4, height=9, width=8), settings=Settings(windows=(2,)))

    def test_windows_do_not_fit(self) -> None:
        with pytest.raises(SdtmFxError, match="no window of 8 x 8 fits a grid of 4 x 4"):
            analyze(sd3(), TWO, Sampling(steps=4), settings=Settings(windows=(2, 8)))
        with pytest.raises(SdtmFxError, match="window of 1; accepted: an edge of at least 2"):
            Settings(windows=(1,))

    @pytest.mark.parametrize("name", ["steps", "batch", "height"])
    def test_counts_below_one(self, name: str) -> None:
        with pytest.raises(SdtmFxError, match=f"{name} is 0; accepted: at least 1"):
            Sampling(**{name: 0})

    def test_text_as_long_as_the_image(self) -> None:
        model = tiny_sd3_transformer(layers=2)
        with (
            torch.no_grad(),
            recording(model) as recorder,
            recorder.clock.manual(1),
            pytest.raises(SdtmFxError, match="text and image have equally many tokens: choose another size"),
        ):
            model(**sd3_inputs(1, (4, 4), 16))

    def test_nothing_was_run(self) -> None:
        with recording(sd3().pipeline) as recorder:
            pass
        with pytest.raises(SdtmFxError, match="nothing was recorded"):
            recorder.result()

    def test_a_generation_was_cut_short(self) -> None:
        pipeline = sd3().pipeline

        def stop(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
            pipe._interrupt = True
            return tensors

        with recording(pipeline, settings=Settings(windows=(2,))) as recorder:
            pipeline(num_inference_steps=3, callback_on_step_end=stop, **sd3_prompt_kwargs())
        with pytest.raises(
            SdtmFxError, match=r"generation 1, step 1 of 3: transformer_blocks\.0.* did not run"
        ):
            recorder.result()

    def test_grids_and_step_counts_do_not_mix(self) -> None:
        pipeline = sd3().pipeline
        with recording(pipeline, settings=Settings(windows=(2,))) as recorder:
            pipeline(num_inference_steps=1, **sd3_prompt_kwargs())
            with pytest.raises(SdtmFxError, match=r"grids of \(4, 4\) and \(4, 6\) tokens do not mix"):
                pipeline(num_inference_steps=1, height=8, width=12, **sd3_prompt_kwargs())
            pipeline(num_inference_steps=2, **sd3_prompt_kwargs())
        with pytest.raises(SdtmFxError, match=r"generations of \[1, 2\] steps do not mix"):
            recorder.result()

    def test_values_that_are_not_finite(self) -> None:
        pipeline = sd3().pipeline
        with torch.no_grad():
            pipeline.transformer.transformer_blocks[0].ff.net[2].bias[0] = float("inf")
        with (
            recording(pipeline, settings=Settings(windows=(2,))),
            pytest.raises(
                SdtmFxError, match=r"block transformer_blocks\.0, step 0: its tokens are not finite"
            ),
        ):
            pipeline(num_inference_steps=1, **sd3_prompt_kwargs())
