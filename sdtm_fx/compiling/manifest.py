"""What a folder of exported phases says about itself."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sdtm_fx.compiling.carried import FeatureKey
from sdtm_fx.errors import PackageError
from sdtm_fx.grids import TokenGrid, show_grid
from sdtm_fx.phase import Phase, Schedule

FORMAT = 1
Described = tuple[tuple[int, ...], str]
"""Shape and dtype of a tensor."""

MANIFEST, WEIGHTS = "manifest.json", "weights.pt"


@dataclass(frozen=True)
class PackagedPhase:
    """One exported phase.

    Attributes:
        file: The AOTInductor package.
        features: The features that it stores or reads.
    """

    file: str
    features: tuple[FeatureKey, ...]


@dataclass(frozen=True)
class PackagedSize:
    """One size that was exported.

    Attributes:
        grid: (height, width) in tokens, behind the frames if there are some.
        batch: Samples per call.
        text: Text tokens.
        halves: CFG halves in the batch.
        schedule: Which phase every step runs.
        phases: The exported phases, by label.
        shapes: Shape and dtype of every feature.
        arguments: Shape and dtype of every tensor that the model is called with.
        references: Tokens of reference images.
    """

    grid: TokenGrid
    batch: int
    text: int
    halves: int
    schedule: Schedule
    phases: dict[str, PackagedPhase]
    shapes: dict[FeatureKey, Described]
    arguments: dict[str, Described]
    references: int = 0

    def says(self) -> str:
        """The size in words."""
        references = f", {self.references} of references" if self.references else ""
        return (
            f"{show_grid(self.grid)} tokens{references}, batch {self.batch}, {self.text} text tokens, "
            f"{self.schedule.steps} steps"
        )


@dataclass(frozen=True)
class Manifest:
    """What is needed to run exported phases without the model that they come from.

    Attributes:
        model: Name of the model's class.
        recipe: The recipe, as YAML.
        device: Type of the device that the phases were compiled for.
        dtype: What the model computes in.
        names: Parameters of the model's forward.
        defaults: Their defaults.
        constants: Arguments that are part of the graphs.
        config: The model's configuration, as far as JSON holds it.
        groups: The plan groups of the rewritten blocks.
        sizes: What was exported.
        processor: What the code was compiled for: the GPU's architecture, or the vector instructions of the CPU.
        files: Bytes of every file beside the manifest, by name.
        scales: Part of a phase's count that blocks remove, by number, where the recipe says so.
        levels: Side of the tokens of blocks over that of the grid's, by number, where it is not 1.
    """

    model: str
    recipe: str
    device: str
    dtype: str
    names: tuple[str, ...]
    defaults: dict[str, Any]
    constants: dict[str, Any]
    config: dict[str, Any]
    groups: tuple[int, ...]
    sizes: tuple[PackagedSize, ...]
    processor: str
    files: dict[str, int]
    scales: dict[int, float] = field(default_factory=dict)
    levels: dict[int, int] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the manifest into the folder."""
        sizes = [
            {
                **{name: getattr(size, name) for name in ("grid", "batch", "text", "halves", "references")},
                "schedule": asdict(size.schedule),
                "phases": {label: asdict(phase) for label, phase in size.phases.items()},
                "shapes": [[*key, *shape] for key, shape in size.shapes.items()],
                "arguments": size.arguments,
            }
            for size in self.sizes
        ]
        values = {k: v for k, v in vars(self).items() if k != "sizes"}
        data = {"format": FORMAT, **_versions(), **values, "sizes": sizes}
        (folder / MANIFEST).write_text(json.dumps(data, indent=1) + "\n")

    @staticmethod
    def load(folder: Path) -> Manifest:
        """Read and check the manifest of a folder.

        Raises:
            PackageError: There is none, it was made by another version or for a device that is not here, or a file
                of the folder is missing or not whole.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise PackageError(f"{folder}: no {MANIFEST}; accepted: a folder that sdtm_fx.export has written")
        data = json.loads(path.read_text())
        if data.pop("format", None) != FORMAT:
            raise PackageError(f"{path}: another format; accepted: format {FORMAT}. Export the model again")
        for name, here in _versions().items():
            made = data.pop(name)
            if made != here:
                raise PackageError(
                    f"{path}: made by {name} {made}, this is {name} {here}; compiled code does not carry over. "
                    "Export the model again"
                )
        if data["device"] == "cuda" and not torch.cuda.is_available():
            raise PackageError(f"{path}: compiled for cuda, and this machine has no CUDA device")
        here = processor(data["device"])
        if data["processor"] != here:
            raise PackageError(
                f"{path}: compiled for {data['processor']}, this machine has {here}. Export the model here"
            )
        _check_files(folder, data["files"])
        data["sizes"] = tuple(_size(size) for size in data["sizes"])
        for key in ("scales", "levels"):
            data[key] = {int(block): value for block, value in data.get(key, {}).items()}
        return Manifest(**{**data, "names": tuple(data["names"]), "groups": tuple(data["groups"])})


def processor(device: str) -> str:
    """What compiled code on a device depends on: ``sm_90`` of a GPU, ``AVX512`` of a CPU.

    Args:
        device: "cuda" or "cpu".
    """
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        return f"sm_{major}{minor}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def described(tensor: torch.Tensor) -> Described:
    """Shape and dtype of a tensor."""
    return tuple(tensor.shape), str(tensor.dtype)


def _check_files(folder: Path, files: dict[str, int]) -> None:
    for name, size in files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = (
                "is missing"
                if found is None
                else f"has {found} bytes instead of {size}: it was cut short or changed"
            )
            raise PackageError(f"{file} {what}. Copy the whole folder, or export the model again")


def _versions() -> dict[str, str]:
    return {"sdtm_fx": importlib.metadata.version("sdtm_fx"), "torch": torch.__version__}


def _size(data: dict[str, Any]) -> PackagedSize:
    plain = data["schedule"]
    schedule = Schedule(
        **{
            **plain,
            "phases": tuple(Phase(**phase) for phase in plain["phases"]),
            "phase_of_step": tuple(plain["phase_of_step"]),
            "ratios": tuple(plain["ratios"]),
            "choices": tuple(tuple(c) for c in plain["choices"]),
        }
    )
    phases = {
        label: PackagedPhase(phase["file"], tuple((int(i), name) for i, name in phase["features"]))
        for label, phase in data["phases"].items()
    }
    shapes = {(int(i), name): (tuple(shape), dtype) for i, name, shape, dtype in data["shapes"]}
    return PackagedSize(
        tuple(data["grid"]),
        data["batch"],
        data["text"],
        data["halves"],
        schedule,
        phases,
        shapes,
        {name: (tuple(shape), dtype) for name, (shape, dtype) in data["arguments"].items()},
        data.get("references", 0),  # packages of older versions have none
    )
