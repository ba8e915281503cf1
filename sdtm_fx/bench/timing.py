"""Wall time of calls, on the host and on devices that run behind it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def wait(device: torch.device) -> None:
    """Wait until a device has done all that it was given; a CPU has already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of a call, from an idle device to an idle device.

    Args:
        run: Makes the call.
        device: Where it runs.
        calls: Calls in a row, whose mean is returned: short ones hide what starting them on a device takes.
    """
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait(device)
    return (time.perf_counter() - start) / calls


def median_seconds(run: Callable[[], object], device: torch.device, runs: int, calls: int = 1) -> float:
    """The median of several measurements, after as many that do not count; see `seconds`.

    One is not enough: an allocator hands out fresh memory for a few calls before it comes back to what was freed.
    """
    for _ in range(runs):
        run()
    return statistics.median(seconds(run, device, calls) for _ in range(runs))
