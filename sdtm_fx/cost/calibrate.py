"""`sdtm_fx.calibrate`: measures what this device can do per second, for the cost gate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch.nn import functional as F

from sdtm_fx.cost.effort import Effort, EffortCounter
from sdtm_fx.cost.profile import DeviceKey, DeviceProfile
from sdtm_fx.cost.profile_cache import save_profile
from sdtm_fx.errors import CalibrationError
from sdtm_fx.methods import SSM
from sdtm_fx.methods.base import TokenView

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SLICES = 15  # of the time of a probe; their median is robust to a neighbour who comes and goes
_LEAST = 3  # slices, on a device so slow that there is no time for more
_WIDTH = 1536


@dataclass(frozen=True)
class _Probe:
    """One measurement.

    Attributes:
        rate: The field of `DeviceProfile` that it gives.
        run: What is timed.
        share: Of the time.
    """

    rate: str
    run: Callable[[], object]
    share: float


def calibrate(
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    compiled: bool = False,
    seconds: float = 40.0,
    save: bool = True,
) -> DeviceProfile:
    """Measure this device, and keep the result for the cost gate of recipes (``gate: auto``).

    Models that are rewritten afterwards, and run on this device in this dtype, with this version of torch and
    this number of threads, leave out sites where merging is predicted to cost more than it saves.

    Args:
        device: ``cpu`` or ``cuda``.
        dtype: What models compute in: ``float32``, ``bfloat16`` or ``float16``.
        compiled: Measure compiled code, for models that are compiled.
        seconds: About how long to measure; compilation comes on top.
        save: Write the profile to the cache folder (``$SDTM_FX_CACHE``).

    Raises:
        CalibrationError: There is no such device or dtype here, or the time is not positive.
    """
    place, kind = _device(device), _dtype(dtype)
    if seconds <= 0:
        raise CalibrationError(f"calibrate: found {seconds} seconds; accepted: more than 0")
    rates: dict[str, float] = {}
    with torch.no_grad(), Progress(transient=True) as progress:
        probes = list(_probes(place, kind))
        task = progress.add_task("calibrating", total=sum(p.share for p in probes))
        for probe in probes:
            progress.update(task, description=f"calibrating {probe.rate}")
            effort = _count(probe)
            run = _compiled(probe.run) if compiled else probe.run
            taken = _time(run, probe.share * seconds, place)
            rates[probe.rate] = _rate(probe.rate, effort, taken, rates)
            progress.advance(task, probe.share)
    profile = DeviceProfile(DeviceKey.of(place, kind, compiled), **rates)
    if save:
        save_profile(profile)
    return profile


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise CalibrationError(f"calibrate: found device {device!r}; accepted: cpu, cuda") from error
    if place.type not in ("cpu", "cuda"):
        raise CalibrationError(f"calibrate: found device {place.type!r}; accepted: cpu, cuda")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise CalibrationError("calibrate: found device 'cuda'; this machine has no CUDA device")
    return place


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise CalibrationError(f"calibrate: found dtype {name!r}; accepted: {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _probes(device: torch.device, dtype: torch.dtype) -> Iterator[_Probe]:
    """The measurements, on shapes as blocks have them; launches first, since the others are net of them."""
    tokens = 512 if device.type == "cpu" else 8192
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    method, tiny = SSM(), noise(1, 16, 8)

    def launches() -> torch.Tensor:
        # What merging starts, on so few tokens that nothing else takes time: an addition alone starts faster.
        plan = method.plan(TokenView(tiny, (4, 4)), 6)
        return plan.unmerge(plan.merge(tiny))

    x, up, down = noise(2, tokens, _WIDTH), noise(4 * _WIDTH, _WIDTH), noise(_WIDTH, 4 * _WIDTH)
    square, wide = noise(_WIDTH, _WIDTH), noise(2, tokens, 4 * _WIDTH)
    query = noise(1, _WIDTH // 64, 2 * tokens, 64)
    order = torch.randperm(tokens, generator=generator).to(device)
    keys = torch.randn(2, tokens, generator=generator).to(device)
    scale = noise(1, 1, _WIDTH)
    yield _Probe("launch", launches, 0.05)
    yield _Probe("linear", lambda: (F.linear(x, square), F.linear(wide, down), F.linear(x, up)), 0.3)
    yield _Probe("attention", lambda: F.scaled_dot_product_attention(query, query, query), 0.2)
    yield _Probe("streamed", lambda: torch.lerp(x + x * scale, F.layer_norm(x, (_WIDTH,)), 0.5), 0.15)
    yield _Probe("gathered", lambda: x.index_select(1, order), 0.1)
    yield _Probe("activated", lambda: F.gelu(wide, approximate="tanh"), 0.1)
    yield _Probe("sorted", lambda: torch.sort(keys, dim=1, stable=True), 0.1)


def _count(probe: _Probe) -> Effort:
    counter = EffortCounter()
    with counter.counting():
        probe.run()
    return counter.effort


def _compiled(run: Callable[[], object]) -> Callable[[], object]:
    compiled: Callable[[], object] = torch.compile(run, dynamic=False)
    return compiled


def _rate(name: str, effort: Effort, taken: float, known: dict[str, float]) -> float:
    """What a probe says, net of what the probes before it have found."""
    if name == "launch":
        return taken / effort.launches
    rest = taken - effort.launches * known["launch"]
    # A device that waits for launches all the time shows no rate of its own: launches are what counts there.
    return float(getattr(effort, name)) / max(rest, 0.05 * taken)


def _time(run: Callable[[], object], seconds: float, device: torch.device) -> float:
    """The median of slices, each long enough to be timed well."""
    run()
    begin = time.perf_counter()
    repeats, once = 1, _slice(run, 1, device)
    while once < seconds / _SLICES / 2 and repeats < 10**6:
        repeats *= 2
        once = _slice(run, repeats, device)
    times: list[float] = []
    while len(times) < _LEAST or time.perf_counter() - begin < seconds:
        times.append(_slice(run, repeats, device))
    return statistics.median(times) / repeats


def _slice(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
