"""Hashing: reproducible, the same for ints and tensors, and evenly spread."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.hashing import combine, hash_index, hash_words, mix

INT64 = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=100, deadline=None)
@given(value=INT64)
def test_ints_and_tensors_agree(value: int) -> None:
    tensor = torch.tensor(value)
    assert mix(tensor).item() == mix(value)
    assert int(combine(tensor, 3, tensor)) == combine(value, 3, value)
    counter = torch.arange(5)
    assert torch.equal(hash_words(counter, tensor), hash_words(counter, value))


def test_the_values_are_fixed() -> None:
    # Plans must repeat across versions, so these numbers may not change.
    assert hash_words(torch.arange(4), 7).tolist() == [4011479345, 2537890177, 2388478518, 4027559557]
    assert hash_index(torch.arange(8), 7, 4).tolist() == [3, 2, 2, 3, 0, 3, 3, 0]


def test_mixing_is_a_bijection_on_a_sample() -> None:
    words = mix(torch.arange(1 << 16) * 65537)
    assert words.unique().numel() == 1 << 16
    assert words.min() >= 0
    assert words.max() < 2**32


def test_choices_are_even_and_in_range() -> None:
    for salt in (0, 1, 2**40 + 3):
        counts = torch.bincount(hash_index(torch.arange(40_000), salt, 4), minlength=4)
        assert len(counts) == 4
        assert (counts - 10_000).abs().max() < 400


def test_salts_give_unrelated_choices() -> None:
    counter = torch.arange(20_000)
    for salt in (1, 2**32, 2**32 + 1, -1):
        same = (hash_index(counter, 0, 4) == hash_index(counter, salt, 4)).float().mean().item()
        assert abs(same - 0.25) < 0.02


def test_the_order_of_combined_counters_matters() -> None:
    assert combine(0, 1, 2) != combine(0, 2, 1)
    assert (
        len({combine(seed, step, layer) for seed in range(8) for step in range(8) for layer in range(8)})
        == 512
    )
