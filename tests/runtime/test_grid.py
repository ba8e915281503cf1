"""Height and width in tokens, from the latent, from position ids, or fixed."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.errors import PlanError
from sdtm_fx.recipe.tokens import (
    ArgumentsGrid,
    FixedGrid,
    Grid,
    IdsGrid,
    LatentGrid,
    Protect,
    ShapesGrid,
    Tokens,
)
from sdtm_fx.runtime.grid import GridReader, ImageLayout

IDS = IdsGrid(ids="img_ids")


class Reader(GridReader):
    """Says the grid alone."""

    def grid(self, arguments: dict[str, object]) -> tuple[int, ...]:
        return self.read(arguments).grid


def reader_of(layout: Grid, first_frames: int = 0) -> Reader:
    return Reader(Tokens(grid=layout, protect=Protect(first_frames=first_frames)))


def ids_of(height: int, width: int, *, first: tuple[int, int] = (0, 0), columns: int = 3) -> torch.Tensor:
    ids = torch.zeros(height, width, columns)
    ids[..., -2] += torch.arange(height)[:, None] + first[0]
    ids[..., -1] += torch.arange(width) + first[1]
    return ids.reshape(-1, columns)


@pytest.mark.parametrize(("patch", "expected"), [(2, (8, 6)), (1, (16, 12)), ((4, 2), (4, 6))])
def test_a_latent_is_cut_into_patches(patch: int | tuple[int, int], expected: tuple[int, int]) -> None:
    reader = reader_of(LatentGrid(latent="hidden_states", patch=patch))
    assert reader.grid({"hidden_states": torch.zeros(2, 4, 16, 12)}) == expected
    assert (
        reader.grid({"hidden_states": torch.zeros(2, 4, 3, 16, 12)}) == expected
    )  # video: the last two axes


def test_odd_latents_are_cut_short() -> None:
    reader = reader_of(LatentGrid(latent="x", patch=2))
    assert reader.grid({"x": torch.zeros(1, 4, 7, 9)}) == (3, 4)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.tuples(st.integers(0, 50), st.integers(-5, 5)),
    st.sampled_from([2, 3, 4]),
)
def test_ids_of_any_grid_anywhere(height: int, width: int, first: tuple[int, int], columns: int) -> None:
    ids = ids_of(height, width, first=first, columns=columns)
    assert reader_of(IDS).grid({"img_ids": ids}) == (height, width)
    assert reader_of(IDS).grid({"img_ids": ids[torch.randperm(len(ids))][None]}) == (height, width)


def test_ids_in_half_precision() -> None:
    assert reader_of(IDS).grid({"img_ids": ids_of(64, 128).bfloat16()}) == (64, 128)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every read of a device tensor leave a mark."""
    reads: list[int] = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (reads.append(1), tolist(self))[1])
    return reads


def test_the_same_ids_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, ids, reads = reader_of(IDS), ids_of(4, 6), count_reads(monkeypatch)
    assert [reader.grid({"img_ids": ids}) for _ in range(3)] == [(4, 6)] * 3
    assert len(reads) == 1
    reader.grid({"img_ids": ids.clone()})
    assert len(reads) == 2


def test_ids_that_change_in_place_are_read_again() -> None:
    reader, ids = reader_of(IDS), ids_of(4, 6)
    assert reader.grid({"img_ids": ids}) == (4, 6)
    ids.copy_(ids_of(6, 4))
    assert reader.grid({"img_ids": ids}) == (6, 4)


def test_ids_are_not_kept_alive() -> None:
    reader, ids = reader_of(IDS), ids_of(4, 6)
    reader.grid({"img_ids": ids})
    assert reader._last is not None
    del ids
    assert reader._last[0]() is None


def test_ids_in_inference_mode() -> None:
    with torch.inference_mode():
        ids = ids_of(4, 6)
        reader = reader_of(IDS)
        assert [reader.grid({"img_ids": ids}) for _ in range(2)] == [(4, 6)] * 2


def test_ids_that_are_not_one_grid() -> None:
    ids = torch.cat([ids_of(4, 6), ids_of(2, 2, first=(10, 10))])
    message = "ids 'img_ids' span 12 rows and 12 columns but hold 28 tokens; they are not one grid"
    with pytest.raises(PlanError, match=re.escape(message)):
        reader_of(IDS).grid({"img_ids": ids})


def test_a_fixed_grid_needs_no_argument() -> None:
    assert reader_of(FixedGrid(height=3, width=5)).grid({}) == (3, 5)


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (3, "int")])
def test_a_missing_argument_is_named(value: object, kind: str) -> None:
    arguments = {"hidden_states": value, "temb": torch.zeros(1), "text": torch.zeros(1)}
    message = f"tokens.grid names argument 'hidden_states', this call has {kind}; it has temb, text"
    with pytest.raises(PlanError, match=re.escape(message)):
        reader_of(LatentGrid(latent="hidden_states", patch=2)).grid(arguments)


def test_a_copy_reads_for_itself() -> None:
    reader, ids = reader_of(IDS), ids_of(4, 6)
    reader.grid({"img_ids": ids})
    twin = copy.deepcopy(reader)
    assert twin._last is None
    assert twin.read({"img_ids": ids}).grid == (4, 6)


@pytest.mark.parametrize(
    ("layout", "latent", "expected"),
    [
        (LatentGrid(latent="x", patch=(1, 2, 2)), (2, 16, 5, 8, 6), (5, 4, 3)),
        (LatentGrid(latent="x", patch=(2, 2, 2)), (2, 16, 5, 8, 6), (2, 4, 3)),
        (LatentGrid(latent="x", patch=(1, 2, 2), axes=(1, 3, 4)), (2, 5, 16, 8, 6), (5, 4, 3)),
        (LatentGrid(latent="x", patch=2, axes=(1, 2)), (2, 8, 6, 16), (4, 3)),
    ],
)
def test_a_latent_with_frames(layout: LatentGrid, latent: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert reader_of(layout).grid({"x": torch.zeros(latent)}) == expected


def test_a_list_of_latents_has_one_grid() -> None:
    reader = reader_of(LatentGrid(latent="x", patch=(1, 2, 2)))
    assert reader.grid({"x": [torch.zeros(16, 1, 8, 6)] * 2}) == (1, 4, 3)
    message = "'x' holds latents that differ ((16, 1, 8, 6), (16, 1, 6, 8)); accepted: a list of tensors of one shape"
    with pytest.raises(PlanError, match=re.escape(message)):
        reader.grid({"x": [torch.zeros(16, 1, 8, 6), torch.zeros(16, 1, 6, 8)]})
    with pytest.raises(PlanError, match="argument 'x', this call has list"):
        reader.grid({"x": []})


def test_a_latent_of_too_few_axes() -> None:
    message = "latent 'x' has shape (16, 8); patch 1x2x2 cuts its last 3 axes"
    with pytest.raises(PlanError, match=re.escape(message)):
        reader_of(LatentGrid(latent="x", patch=(1, 2, 2))).grid({"x": torch.zeros(16, 8)})
    message = "latent 'x' has shape (16, 8, 4); patch 2x2 cuts axes [2, 3]"
    with pytest.raises(PlanError, match=re.escape(message)):
        reader_of(LatentGrid(latent="x", patch=2, axes=(2, 3))).grid({"x": torch.zeros(16, 8, 4)})


def test_sides_may_be_arguments() -> None:
    reader = reader_of(ArgumentsGrid(arguments=("num_frames", "height", "width")))
    assert reader.grid({"num_frames": 3, "height": 4, "width": 5}) == (3, 4, 5)
    message = "names argument 'height', this call has None; accepted: a positive integer, a side of the grid in tokens"
    with pytest.raises(PlanError, match=re.escape(message)):
        reader.grid({"num_frames": 3, "height": None, "width": 5})


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(1, 4, 6)], ImageLayout((1, 4, 6))),
        ([[(1, 4, 6)]] * 2, ImageLayout((1, 4, 6))),
        ([[(1, 4, 6), (1, 2, 3), (1, 1, 5)]], ImageLayout((1, 4, 6), 11)),
    ],
)
def test_shapes_of_an_image_and_of_references(shapes: object, expected: ImageLayout) -> None:
    assert reader_of(ShapesGrid(shapes="img_shapes")).read({"img_shapes": shapes}) == expected


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            None,
            "argument 'img_shapes', this call has None; accepted: for every sample a list of (frames, height, width)",
        ),
        ([[(4, 6)]], "this call has [[(4, 6)]]; accepted"),
        ([[(1, 4, 6)], [(1, 6, 4)]], "'img_shapes' gives samples of one call shapes that differ"),
    ],
)
def test_shapes_that_are_none(shapes: object, message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        reader_of(ShapesGrid(shapes="img_shapes")).read({"img_shapes": shapes})


def test_ids_with_other_columns_and_references() -> None:
    """FLUX.2 has (t, h, w, l), and other t for references."""
    image = torch.zeros(24, 4)
    image[:, 1:3] = ids_of(4, 6, columns=2)
    reference = torch.zeros(10, 4)
    reference[:, 1:3], reference[:, 0] = ids_of(2, 5, columns=2), 10
    reader = reader_of(IdsGrid(ids="img_ids", columns=(1, 2), reference_column=0))
    assert reader.read({"img_ids": image}) == ImageLayout((4, 6))
    assert reader.read({"img_ids": torch.cat([image, reference])[None]}) == ImageLayout((4, 6), 10)
    with pytest.raises(PlanError, match="go back to the image behind those of references"):
        reader.read({"img_ids": torch.cat([image[:12], reference, image[12:]])})
    with pytest.raises(
        PlanError, match=re.escape("have shape (24, 4); accepted: [tokens, columns] with 6 columns")
    ):
        reader_of(IdsGrid(ids="img_ids", columns=(1, 5))).read({"img_ids": image})


def test_ids_with_frames() -> None:
    frames = torch.cat([torch.cat([torch.full((6, 1), f), ids_of(2, 3, columns=2)], dim=1) for f in range(3)])
    reader = reader_of(IdsGrid(ids="ids", columns=(0, 1, 2)))
    assert reader.grid({"ids": frames}) == (3, 2, 3)
    with pytest.raises(PlanError, match="span 3 frames, 2 rows and 3 columns but hold 17 tokens"):
        reader.grid({"ids": frames[:-1]})


def test_protected_frames_are_left_out_of_the_grid() -> None:
    reader = reader_of(LatentGrid(latent="x", patch=(1, 2, 2)), first_frames=1)
    assert reader.grid({"x": torch.zeros(2, 16, 5, 8, 6)}) == (4, 4, 3)
    message = "found 1 frames of tokens, of which first_frames protects 1; accepted: 2 or more"
    with pytest.raises(PlanError, match=re.escape(message)):
        reader.grid({"x": torch.zeros(2, 16, 1, 8, 6)})


def test_a_grid_of_another_kind_is_refused() -> None:
    tokens = Tokens(grid=LatentGrid(latent="x", patch=(1, 2, 2)))
    with pytest.raises(
        PlanError, match=r"found a grid of 4x3 tokens; this recipe accepts \(frames, height, width\)"
    ):
        tokens.mergeable((4, 3))
    with pytest.raises(
        PlanError, match=r"found a grid of 2x4x3 tokens; this recipe accepts \(height, width\)"
    ):
        Tokens(grid=IDS).mergeable((2, 4, 3))


def test_a_fixed_grid_may_have_frames() -> None:
    assert reader_of(FixedGrid(frames=2, height=3, width=5)).grid({}) == (2, 3, 5)
