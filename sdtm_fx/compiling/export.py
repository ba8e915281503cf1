"""`sdtm_fx.export`: the phases of a rewritten model as AOTInductor packages, which run without its Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sdtm_fx.compiling.carried import FeatureKey, call_with, state_tensors
from sdtm_fx.compiling.features import FeatureLayout
from sdtm_fx.compiling.manifest import (
    WEIGHTS,
    Described,
    Manifest,
    PackagedPhase,
    PackagedSize,
    described,
    processor,
)
from sdtm_fx.compiling.phases import PhaseKey
from sdtm_fx.compiling.warmup import Size, warm_up
from sdtm_fx.compiling.whole import WholeExecutor
from sdtm_fx.errors import PackageError
from sdtm_fx.phase import Schedule
from sdtm_fx.recipe.ratio import ThresholdRatio
from sdtm_fx.rewrite import rewritten_models
from sdtm_fx.rewriting.rewriting import Rewriting, rewriting_of
from sdtm_fx.runtime.call import Call
from sdtm_fx.runtime.runtime import Runtime


def export(
    target: Any,
    path: str | Path,
    sizes: Size | Sequence[Size],
    *,
    inductor_configs: Mapping[str, Any] | None = None,
) -> Path:
    """Compile every phase of a rewritten model ahead of time, for given sizes, and write it to a folder.

    `sdtm_fx.load` runs the folder without the model's Python. The weights are written once and shared by all
    phases. The model itself stays as it is.

    Args:
        target: The rewritten model, or its pipeline.
        path: The folder; made if it is not there.
        sizes: What to compile for. Everything is static: other sizes need packages of their own.
        inductor_configs: Options of `torch._inductor.aoti_compile_and_package`.

    Returns:
        The folder.

    Raises:
        RewriteError: Nothing is rewritten there, or the recipe has no `inputs` to make a call from.
        ScheduleError: The recipe cannot be scheduled for a size.
        PackageError: The target holds several rewritten models, or the recipe measures its ratio while it runs.
    """
    models = rewritten_models(target)
    if len(models) != 1:
        raise PackageError(
            f"{type(target).__name__} holds {len(models)} rewritten models; name the one to export"
        )
    model, folder = models[0], Path(path)
    rewriting = rewriting_of(model)
    assert rewriting is not None
    _check_ratios(rewriting)
    wanted = [sizes] if isinstance(sizes, Size) else list(sizes)
    for size in wanted:  # all errors of schedules before any compiling
        _schedule(rewriting, size)
    folder.mkdir(parents=True, exist_ok=True)
    exporter = _Exporter(
        {}, FeatureLayout(fixed_addresses=False), False, folder=folder, configs=inductor_configs or {}
    )
    before = rewriting.compiled_by()
    rewriting.compile_by(model, whole=exporter)
    try:
        packaged = tuple(_export_size(model, rewriting, exporter, size, i) for i, size in enumerate(wanted))
    finally:
        rewriting.compile_by(model, **before)
    torch.save(exporter.weights, folder / WEIGHTS)
    runtime, device = rewriting.runtime, next(model.parameters()).device.type
    written = [WEIGHTS, *(phase.file for size in packaged for phase in size.phases.values())]
    Manifest(
        model=type(model).__name__,
        recipe=rewriting.recipe.to_yaml(),
        device=device,
        dtype=str(getattr(model, "dtype", next(model.parameters()).dtype)),
        names=runtime.signature.names,
        defaults=_json_only(runtime.signature.defaults),
        constants=_json_only(exporter.constants),
        config=_json_only(dict(getattr(model, "config", {}))),
        groups=runtime.groups,
        sizes=packaged,
        processor=processor(device),
        files={name: (folder / name).stat().st_size for name in written},
        scales=dict(runtime.layers.scales),
        levels=dict(runtime.layers.levels),
    ).save(folder)
    return folder


def _check_ratios(rewriting: Rewriting) -> None:
    recipe = rewriting.recipe
    if any(isinstance(ratio, ThresholdRatio) for ratio in (recipe.ratio, *(s.ratio for s in recipe.stages))):
        raise PackageError(
            f"recipe {recipe.name!r} measures its ratio while it runs (threshold); accepted: a curve or a list"
        )


def _export_size(
    model: torch.nn.Module, rewriting: Rewriting, exporter: _Exporter, size: Size, number: int
) -> PackagedSize:
    exporter.prefix, exporter.phases, exporter.shapes, exporter.arguments = f"{number}_", {}, {}, {}
    warm_up(model, rewriting, size)
    return PackagedSize(
        grid=rewriting.recipe.tokens.mergeable(size.grid),
        batch=size.batch,
        text=size.text,
        halves=size.halves(rewriting.recipe.reads_halves),
        schedule=_schedule(rewriting, size),
        phases=exporter.phases,
        shapes=exporter.shapes,
        arguments=exporter.arguments,
        references=size.references,
    )


def _schedule(rewriting: Rewriting, size: Size) -> Schedule:
    grid = rewriting.recipe.tokens.mergeable(size.grid)
    return rewriting.runtime.schedule(size.steps, grid, size.text, size.batch, size.references)


@dataclass
class _Exporter(WholeExecutor):
    """Exports a phase when it first runs, and runs it as it is."""

    folder: Path = Path()
    configs: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    phases: dict[str, PackagedPhase] = field(default_factory=dict)
    shapes: dict[FeatureKey, Described] = field(default_factory=dict)
    arguments: dict[str, Described] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)

    def run(
        self,
        rewriting: Rewriting,
        model: torch.nn.Module,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Export the phase of the call, then run it."""
        runtime = rewriting.runtime
        call = runtime.call
        assert call is not None
        if call.variant is not None:
            self.prepare(rewriting, model, args, kwargs)
        self.shapes |= {key: described(f.newer) for key, f in call.state.features.items()}
        label = PhaseKey.of(call).label(rewriting.recipe)
        if label not in self.phases:
            features = _features_of(rewriting, call)
            arguments = runtime.signature.bind(args, kwargs)
            file = f"{self.prefix}{label}.pt2"
            phase = _Phase(model, own, runtime, call, features, arguments)
            self.arguments = {name: described(value) for name, value in phase.tensors.items()}
            self._export(phase, file)
            self.phases[label] = PackagedPhase(file, features)
        return own(*args, **kwargs)

    def _export(self, phase: _Phase, file: str) -> None:
        runtime = phase.runtime
        call = runtime.call
        try:
            program = torch.export.export(
                phase, (phase.tensors, state_tensors(phase.call, phase.features)), strict=False
            )
        finally:
            runtime.call, runtime.planned, runtime.spans = call, {}, {}
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(self.folder / file),
            inductor_configs={"aot_inductor.package_constants_in_so": False, **self.configs},
        )
        constants = {k: v for k, v in program.constants.items() if isinstance(v, torch.Tensor)}
        self.weights |= {**program.state_dict, **constants}
        self.constants = phase.constants


class _Phase(torch.nn.Module):
    """The model in one phase as a function of tensors: the arguments of its forward, and the state."""

    def __init__(
        self,
        model: torch.nn.Module,
        own: Callable[..., Any],
        runtime: Runtime,
        call: Call,
        features: tuple[FeatureKey, ...],
        arguments: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.own, self.runtime, self.call, self.features = own, runtime, call, features
        self.tensors = {k: v.contiguous() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
        self.constants = {k: v for k, v in arguments.items() if not isinstance(v, torch.Tensor)}

    def forward(self, arguments: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> Any:
        """Run the phase; the tensors of the state are written in place."""
        self.runtime.call = call_with(self.call, state, self.features)
        self.runtime.planned, self.runtime.spans = {}, {}
        return self.own(**arguments, **self.constants)


def _features_of(rewriting: Rewriting, call: Call) -> tuple[FeatureKey, ...]:
    """The features that the blocks store or read in a call."""
    if call.variant is None:
        return ()
    return tuple(
        (binding.index, name)
        for binding in rewriting.bindings.values()
        for name in sorted(
            {
                n
                for p in binding.programs.values()
                for n in p.features.get(call.gated.get(binding.path, call.variant), ())
            }
        )
        if (binding.index, name) in call.state.features
    )


def _json_only(values: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold of a mapping."""
    kept = {}
    for name, value in values.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            continue
        kept[name] = value
    return kept
