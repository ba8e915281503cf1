"""Cold and warm starts: whether the compiler finds what an earlier process has compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch._inductor.utils import fresh_cache

from sdtm_fx.compiling.cache import load_compile_cache, save_compile_cache


@contextlib.contextmanager
def compiler_start(cache: Path | None) -> Iterator[str]:
    """Start the compiler with what a file holds, and with nothing else.

    Args:
        cache: The file. Where there is none yet, the compiler starts with nothing, and what it has compiled is
            written there in the end. None leaves the compiler its own folder on disk, whatever that holds.

    Yields:
        ``cold``, ``warm``, or ``as found``.
    """
    if cache is None:
        yield "as found"
        return
    with fresh_cache():
        warm = cache.is_file()
        if warm:
            load_compile_cache(cache)
        yield "warm" if warm else "cold"
        if not warm:
            save_compile_cache(cache)
