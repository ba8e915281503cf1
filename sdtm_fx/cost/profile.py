"""What a device can do per second, as measured on it: turns effort into predicted seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from sdtm_fx.cost.effort import Effort
from sdtm_fx.errors import CalibrationError
from sdtm_fx.provenance import processor

FORMAT = 1


@dataclass(frozen=True)
class DeviceKey:
    """What a measurement is valid for.

    Attributes:
        device: Name of the device.
        dtype: What is computed in, as ``float32``.
        torch_version: Version of torch.
        threads: CPU threads of torch; 0 where another device computes.
        compiled: Whether code is compiled.
    """

    device: str
    dtype: str
    torch_version: str
    threads: int
    compiled: bool

    @staticmethod
    def of(device: torch.device, dtype: torch.dtype, compiled: bool) -> DeviceKey:
        """The key of this machine right now."""
        threads = torch.get_num_threads() if device.type == "cpu" else 0
        return DeviceKey(
            device_name(device), str(dtype).removeprefix("torch."), str(torch.__version__), threads, compiled
        )

    @property
    def kind(self) -> str:
        """``cpu``, ``cuda`` and so on."""
        return self.device.partition(": ")[0]

    def says(self) -> str:
        """The key in words."""
        threads = "" if self.threads == 0 else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        how = "compiled" if self.compiled else "eager"
        return f"{self.device}, {self.dtype}, {how}, torch {self.torch_version}{threads}"

    def command(self) -> str:
        """The command that measures it."""
        compiled = " --compiled" if self.compiled else ""
        threads = f" --threads {self.threads}" if self.threads else ""
        return f"sdtm-fx calibrate --device {self.kind} --dtype {self.dtype}{threads}{compiled}"


@dataclass(frozen=True)
class DeviceProfile:
    """Rates of a device. A prediction is the sum of what each part of the work takes by itself.

    Attributes:
        key: What they were measured for.
        linear: MACs per second of linear layers.
        attention: MACs per second of attention.
        streamed: Bytes per second of what reads and writes in order.
        gathered: Bytes per second of what moves rows by index.
        activated: Elements per second of activation functions.
        sorted: Elements per second of sorts, each counted times the binary logarithm of the row.
        launch: Seconds that starting an operation takes.
    """

    key: DeviceKey
    linear: float
    attention: float
    streamed: float
    gathered: float
    activated: float
    sorted: float
    launch: float

    def seconds(self, effort: Effort) -> float:
        """Predict how long some work takes; of a difference, what it takes longer."""
        return (
            effort.linear / self.linear
            + effort.attention / self.attention
            + effort.streamed / self.streamed
            + effort.gathered / self.gathered
            + effort.activated / self.activated
            + effort.sorted / self.sorted
            + effort.launches * self.launch
        )

    def to_json(self) -> str:
        """The profile as a file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, where: Path | str) -> DeviceProfile:
        """Read a file.

        Raises:
            CalibrationError: It is no profile, or one of another version of this package.
        """
        again = "delete it, or run `sdtm-fx calibrate` again"
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise CalibrationError(f"{where}: not JSON ({error}); {again}") from error
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise CalibrationError(f"{where}: found format {found!r}; accepted: {FORMAT}; {again}")
        key = _read(DeviceKey, data.get("key"), f"{where}: key", again)
        rates = {name: value for name, value in data.items() if name not in ("format", "key")}
        return _read(DeviceProfile, {**rates, "key": key}, str(where), again)


def _read(kind: Any, data: Any, where: str, again: str) -> Any:
    """Make a frozen class from a mapping that has exactly its fields."""
    wanted = {"str": str, "int": int, "bool": bool, "DeviceKey": DeviceKey, "float": float}
    names = {f.name: f.type for f in fields(kind)}
    if not isinstance(data, Mapping) or set(data) != set(names):
        found = ", ".join(sorted(data)) if isinstance(data, Mapping) else type(data).__name__
        raise CalibrationError(f"{where}: found {found}; accepted: {', '.join(names)}; {again}")
    for name, value in data.items():
        expected = wanted[str(names[name])]
        is_rate = expected is float and type(value) in (int, float) and math.isfinite(value) and value > 0
        if not is_rate and (expected is float or type(value) is not expected):
            accepted = "a positive number" if expected is float else expected.__name__
            raise CalibrationError(f"{where}: {name}: found {value!r}; accepted: {accepted}; {again}")
    return kind(**data)


def device_name(device: torch.device) -> str:
    """Kind and model of a device: ``cpu: AMD EPYC``."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {processor()}" if device.type == "cpu" else device.type
