"""The FLUX toy: packing, positions, and a pipeline that calls the real class."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from sdtm_fx.toy.captions import CaptionEncoder
from sdtm_fx.toy.flux import build_flux, flux_velocity, image_ids, pack, unpack
from sdtm_fx.toy.pipeline import ToyFluxPipeline


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_unpack_is_the_inverse_of_pack(batch: int, rows: int, columns: int) -> None:
    image = torch.randn(batch, 3, 2 * rows, 2 * columns)
    tokens = pack(image)
    assert tokens.shape == (batch, rows * columns, 12)
    assert torch.equal(unpack(tokens, 2 * rows, 2 * columns), image)


def test_tokens_and_positions_run_along_rows_first() -> None:
    image = torch.zeros(1, 3, 4, 6)
    image[:, :, 2:, 4:] = 1  # the token in row 1, column 2
    token = int(pack(image).sum(dim=-1).argmax())
    assert image_ids(4, 6, like=image)[token].tolist() == [0, 1, 2]
    assert image_ids(4, 6, like=image).shape == (6, 3)


def test_the_initial_weights_depend_on_the_seed_alone_and_predict_nothing() -> None:
    small = {"num_layers": 1, "num_single_layers": 1}
    first, again, other = (build_flux(seed, **small) for seed in (0, 0, 1))
    assert torch.equal(first.x_embedder.weight, again.x_embedder.weight)
    assert not torch.equal(first.x_embedder.weight, other.x_embedder.weight)
    words, pooled = CaptionEncoder().encode(["a red star"], 8, 12)
    with torch.no_grad():
        velocity = flux_velocity(first, torch.randn(1, 3, 8, 12), torch.tensor([500.0]), words, pooled)
    assert velocity.shape == (1, 3, 8, 12)
    assert not velocity.any()


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_the_pipeline_runs_without_guidance_unless_asked(guidance: float | None) -> None:
    transformer = build_flux(num_layers=1, num_single_layers=1).eval()
    pipe = ToyFluxPipeline(transformer, CaptionEncoder().eval(), FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    sizes: list[int] = []
    hook = transformer.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    images = pipe("a red star", 8, 12, 2, guidance, output_type="pt").images
    hook.remove()
    assert images.shape == (1, 3, 8, 12)
    assert sizes == ([1, 1] if guidance is None else [2, 2])
