"""A saved compile cache: a second process starts warm."""

from __future__ import annotations

from pathlib import Path

import torch

from sdtm_fx.errors import PackageError


def save_compile_cache(path: str | Path) -> Path:
    """Write what this process has compiled to a file, for `load_compile_cache` in another.

    Args:
        path: The file.

    Raises:
        PackageError: Nothing was compiled in this process that a cache could hold.
    """
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is None:
        raise PackageError(
            "nothing to save: no phase was compiled in this process with a backend that caches"
        )
    file = Path(path)
    file.write_bytes(artifacts[0])
    return file


def load_compile_cache(path: str | Path) -> None:
    """Take over what another process has compiled; call it before the first call of a compiled model.

    Args:
        path: What `save_compile_cache` has written. Only load files that you trust: they hold code.

    Raises:
        PackageError: There is no such file, or it is no whole cache.
    """
    file = Path(path)
    if not file.is_file():
        raise PackageError(
            f"no compile cache at {file}; accepted: a file that save_compile_cache has written"
        )
    if torch.compiler.load_cache_artifacts(file.read_bytes()) is None:
        raise PackageError(
            f"{file} is not a whole compile cache ({file.stat().st_size} bytes): it was cut short, damaged, or made "
            "by another version of torch; write it anew with save_compile_cache"
        )
