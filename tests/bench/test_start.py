"""Cold and warm starts of the compiler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from sdtm_fx.bench.start import compiler_start

pytestmark = pytest.mark.compile


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def compile_something() -> tuple[int, int]:
    """How much the compiler found in its cache, and how much it did not."""
    torch.compiler.reset()
    counters.clear()
    torch.compile(lambda x: x.sin() * 3 + 1, fullgraph=True)(torch.ones(8))
    return counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]


def test_the_second_start_is_warm(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with compiler_start(cache) as start:
        assert start == "cold"
        hits, misses = compile_something()
    assert (hits, misses > 0) == (0, True)
    saved = cache.read_bytes()
    with compiler_start(cache) as start:
        assert start == "warm"
        hits, misses = compile_something()
    assert (hits > 0, misses) == (True, 0)
    assert cache.read_bytes() == saved


def test_without_a_file_the_compiler_keeps_its_own_cache() -> None:
    with compiler_start(None) as start:
        assert start == "as found"
