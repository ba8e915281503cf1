"""A part of a phase's count, on the lattice of what can be removed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.layer_rates import LayerRates, scaled_count
from sdtm_fx.methods import SSM, Skip, ToMe


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.sampled_from([64, 256, 1024, 1551, 4096]),
    part=st.floats(0.05, 0.75),
    scale=st.floats(0.05, 1),
    quantum=st.sampled_from([1, 3]),
    round_to=st.sampled_from([1, 16, 64]),
)
def test_a_scaled_count_can_be_removed_and_is_near(
    tokens: int, part: float, scale: float, quantum: int, round_to: int
) -> None:
    remove = int(part * tokens) // quantum * quantum
    count = scaled_count(remove, scale, tokens, quantum, round_to)
    assert 0 <= count <= remove
    assert count % quantum == 0
    assert abs(count - scale * remove) <= max(scale * remove / 8, quantum / 2)


def test_the_coarsest_lattice_that_comes_near_is_taken() -> None:
    assert scaled_count(2048, 0.5, 4096, 1, 64) == 1024
    assert scaled_count(2112, 0.5, 4096, 3, 64) == 960, "1056 is half way between 960 and 1152"
    assert scaled_count(128, 0.25, 256, 1, 64) == 32, "64 and 0 are too far from 32, so 32 it is"
    assert scaled_count(48, 0.5, 64, 3, 64) == 24, "kept counts of 40 are multiples of 8"
    assert scaled_count(3, 0.3, 64, 3, 1) == 0, "less than half a window"
    assert scaled_count(2048, 1.0, 4096, 1, 64) == 2048


def test_blocks_without_a_rule_do_what_the_phase_does() -> None:
    rates = LayerRates(scales={1: 0.5, 4: 0.25}, round_to=64)
    assert rates.removes(2048, ToMe(), (64, 64)) == {1: 1024, 4: 512}
    assert [rates.remove(block, 1536, SSM(), (64, 64)) for block in (0, 1, 4)] == [1536, 768, 384]
    assert rates.remove(1, 4096, Skip(), (64, 64)) == 4096
    assert LayerRates().removes(2048, ToMe(), (64, 64)) == {}


@pytest.mark.parametrize("scale", [0.0, 0.001])
def test_next_to_nothing_is_nothing(scale: float) -> None:
    assert scaled_count(100, scale, 4096, 1, 1) == 0
