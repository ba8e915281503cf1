"""Height and width in tokens, from the latent, from position ids, or fixed."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.errors import PlanError
from sdtm_fx.recipe.tokens import FixedGrid, Grid, IdsGrid, LatentGrid, Protect, Tokens
from sdtm_fx.runtime.grid import GridReader

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
