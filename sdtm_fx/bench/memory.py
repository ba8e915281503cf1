"""Peak memory of a call, where the device counts it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sdtm_fx.bench.timing import wait


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that is allocated on a CUDA device during a call: weights and kept state are part of it.

    Args:
        run: Makes the call; it has been made before, so that compiling it is not measured.
        device: Where it runs.

    Returns:
        Bytes; None on a CPU, whose allocator does not count.
    """
    if device.type != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    wait(device)
    return torch.cuda.max_memory_allocated(device)
