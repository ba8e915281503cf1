"""`sdtm_fx.load`: exported phases as a model that denoises, without the Python of the model that they come from."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.capture.example import text_length
from sdtm_fx.clock import Clock
from sdtm_fx.clock_sources import ManualSteps
from sdtm_fx.compiling.carried import state_tensors
from sdtm_fx.compiling.manifest import WEIGHTS, Described, Manifest, PackagedSize, described
from sdtm_fx.compiling.phases import PhaseKey
from sdtm_fx.errors import PackageError
from sdtm_fx.grids import show_grid
from sdtm_fx.layer_rates import LayerRates
from sdtm_fx.phase import Schedule
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime.call import Call
from sdtm_fx.runtime.feature import Feature
from sdtm_fx.runtime.grid import ImageLayout
from sdtm_fx.runtime.runtime import Runtime
from sdtm_fx.runtime.schedules import CallSize


def load(path: str | Path) -> PackagedModel:
    """Load what `sdtm_fx.export` has written.

    Args:
        path: The folder.

    Raises:
        PackageError: There is no package, or it was made by another version or for another device.
    """
    folder = Path(path)
    return PackagedModel(folder, Manifest.load(folder))


class _PackagedSchedules:
    """The schedules that phases were exported for."""

    def __init__(self, sizes: Sequence[PackagedSize]) -> None:
        self._known = {
            CallSize(size.schedule.steps, size.grid, size.batch, size.text, size.references): size.schedule
            for size in sizes
        }

    def asked(self, size: CallSize) -> Schedule:
        """The schedule of a generation.

        Raises:
            PackageError: No size with these steps was exported.
        """
        if size not in self._known:
            known = sorted(k.steps for k in self._known if replace(k, steps=size.steps) == size)
            raise PackageError(
                f"this package has no schedule of {size.steps} steps for {show_grid(size.grid)} tokens, "
                f"batch {size.batch}, {size.text} text tokens; "
                f"it has {', '.join(map(str, known)) or 'none at this size'}"
            )
        return self._known[size]

    def gate(self, size: CallSize, device: torch.device | None, compiled: bool) -> None:
        """Nothing: the cost gate has spoken when the phases were exported."""


class PackagedModel(torch.nn.Module):
    """Exported phases behind the call of the model that they come from.

    The step is told as for a rewritten model: by a pipeline that is followed, or in a loop of your own::

        model = sdtm_fx.load("exported")
        with model.steps() as clock: ...      # a loop that calls clock.advance()
        pipe.transformer = model.follow(pipe)  # or a pipeline

    Attributes:
        manifest: What the package says about itself.
        config: The configuration of the model, by attribute.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Use `sdtm_fx.load`."""
        super().__init__()
        self.manifest = manifest
        self.config = types.SimpleNamespace(**manifest.config)
        recipe = Recipe.from_yaml_text(manifest.recipe, "recipe of the package")
        signature = Signature(manifest.names, manifest.defaults, open_ended=False)
        schedules = _PackagedSchedules(manifest.sizes)
        layers = LayerRates(manifest.scales, round_to=recipe.plan.round_to, levels=manifest.levels)
        self._runtime = Runtime(recipe, Clock(), signature, schedules, manifest.groups, layers, static=True)
        self._folder = folder
        self._weights = torch.load(folder / WEIGHTS, map_location=manifest.device, weights_only=True)
        self._loaded: dict[str, Any] = {}

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return getattr(torch, self.manifest.dtype.removeprefix("torch."))

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.manifest.device)

    def follow(self, pipeline: Any) -> PackagedModel:
        """Take the step from the scheduler of a pipeline; returns the model."""
        self._runtime.clock.follow(pipeline)
        return self

    @contextlib.contextmanager
    def steps(self, count: int | None = None) -> Iterator[ManualSteps]:
        """Tell the step in a loop of your own; see `sdtm_fx.steps`.

        Args:
            count: Denoising steps; by default those that were exported first.
        """
        with self._runtime.clock.manual(count or self.manifest.sizes[0].schedule.steps) as clock:
            yield clock

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the phase of the current step.

        Raises:
            PackageError: This size, this number of steps or this phase was not exported, or an argument is not what it
                was then.
            ClockError: The step is not known.
        """
        runtime = self._runtime
        arguments = runtime.signature.bind(args, kwargs)
        size = self._size(arguments)
        runtime.manual_halves = size.halves
        runtime.begin(args, kwargs)
        output = None
        try:
            assert runtime.call is not None
            output = self._run(size, runtime.call, arguments)
        finally:
            runtime.end(output)
        return types.SimpleNamespace(sample=output[0]) if arguments.get("return_dict") else output

    def _run(self, size: PackagedSize, call: Call, arguments: dict[str, Any]) -> Any:
        label = PhaseKey.of(call).label(self._runtime.recipe)
        phase = size.phases.get(label)
        if phase is None:
            raise PackageError(f"this package has no phase {label}; it has {', '.join(size.phases)}")
        if call.variant is not None and call.variant.refresh is not None:
            self._lay_out(size, call, phase.features)
        # Compiled ahead of time, a phase reads memory as it was laid out then, and does not look.
        tensors = {k: v.contiguous() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
        return self._phase(phase.file)(tensors, state_tensors(call, phase.features))

    def _phase(self, file: str) -> Any:
        if file not in self._loaded:
            phase = torch._inductor.aoti_load_package(str(self._folder / file))
            constants = {name: self._weights[name] for name in phase.get_constant_fqns()}
            phase.load_constants(constants, check_full_update=True, user_managed=True)
            self._loaded[file] = phase
        return self._loaded[file]

    def _lay_out(self, size: PackagedSize, call: Call, features: Any) -> None:
        for key in features:
            if key in call.state.features:
                continue
            shape, dtype = size.shapes[key]
            spare = call.state.spare.pop(key, None)
            feature = spare or Feature.empty(
                torch.Size(shape),
                getattr(torch, dtype.removeprefix("torch.")),
                self.device,
                call.forecast_order,
                call.dates_tokens,
            )
            call.state.features[key] = feature
            call.state.unsettled.append(feature)

    def _size(self, arguments: dict[str, Any]) -> PackagedSize:
        layout = self._runtime.grid.read(arguments)
        batch = next(v for v in arguments.values() if isinstance(v, torch.Tensor)).shape[0]
        text = text_length(self._runtime.recipe, arguments)
        for size in self.manifest.sizes:
            if (ImageLayout(size.grid, size.references), size.batch, size.text) == (layout, batch, text):
                _check_arguments(size, arguments, self.manifest)
                return size
        references = f", {layout.references} of references" if layout.references else ""
        raise PackageError(
            f"this package was not made for {show_grid(layout.grid)} tokens{references}, batch {batch}, "
            f"{text} text tokens; "
            f"it has {'; '.join(size.says() for size in self.manifest.sizes)}"
        )


def _check_arguments(size: PackagedSize, arguments: dict[str, Any], manifest: Manifest) -> None:
    """Raise unless every argument is what the phases were compiled for."""
    found = {k: described(v) for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    for name in sorted({*found, *size.arguments}):
        if found.get(name) != size.arguments.get(name):
            raise PackageError(
                f"this package was made for {name}: {_says(size.arguments.get(name))}; "
                f"found {_says(found.get(name))}"
            )
    for name, value in arguments.items():
        fixed = manifest.constants.get(name, value)
        if name != "return_dict" and not isinstance(value, torch.Tensor) and value != fixed:
            raise PackageError(f"this package was made for {name}={fixed!r}, found {value!r}")


def _says(tensor: Described | None) -> str:
    return "no tensor" if tensor is None else f"{list(tensor[0])} {tensor[1]}"
