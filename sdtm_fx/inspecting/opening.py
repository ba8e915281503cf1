"""What a MODEL on the command line means: a class of diffusers and its config. Nothing is built or loaded."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from sdtm_fx.errors import InspectionError, nearest
from sdtm_fx.explaining.shapes import PUBLISHED

_COMPONENTS = ("transformer", "unet", "prior")


@dataclass(frozen=True)
class Subject:
    """A model to inspect.

    Attributes:
        kind: Its class.
        config: The arguments of its constructor.
        source: Where they come from, for reports.
    """

    kind: type[torch.nn.Module]
    config: Mapping[str, Any]
    source: str

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.kind.__name__


def open_subject(model: str, config: Path | None = None) -> Subject:
    """Find out what is meant.

    Args:
        model: Name of a diffusers class, a published shape (`explaining.shapes`), a ``config.json``, or a checkpoint
            folder: a model's own, or a pipeline's with ``transformer/`` or ``unet/``.
        config: Config file for a class; absent: the defaults of the class.

    Raises:
        InspectionError: There is no such class, shape, file or folder, or the config does not fit the class.
    """
    if config is None and model in PUBLISHED:
        shape = PUBLISHED[model]
        name = str(getattr(shape.build, "name", getattr(shape.build, "__name__", "")))
        return Subject(model_class(name), shape.config, f"published shape {model}")
    path = Path(model)
    if path.is_dir():
        if config is not None:
            raise InspectionError(f"{model}: a checkpoint folder has its own config.json; leave --config out")
        return _from_file(_config_in(path), None)
    if path.is_file() and config is None:
        return _from_file(path, None)
    if (path.suffix == ".json" or len(path.parts) > 1) and not path.exists():
        raise InspectionError(
            f"{model}: found no such file or folder; accepted: a config.json or a checkpoint folder"
        )
    kind = model_class(model)
    if config is not None:
        return _from_file(config, kind)
    defaults = _defaults(kind)
    _check_fields(kind, defaults, model)
    return Subject(kind, defaults, "defaults of the class")


def model_class(name: str) -> type[torch.nn.Module]:
    """Return a model class of diffusers.

    Raises:
        InspectionError: There is none of that name.
    """
    found = getattr(diffusers, name, None) if name in dir(diffusers) else None
    if isinstance(found, type) and issubclass(found, torch.nn.Module):
        return found
    known = [n for n in dir(diffusers) if n.endswith("Model")]
    raise InspectionError(
        f"{name!r} is no model class of diffusers {diffusers.__version__}{nearest(name, [*known, *PUBLISHED])}; "
        f"accepted: a class, a folder with config.json, a config.json, or one of {', '.join(PUBLISHED)}"
    )


def _config_in(folder: Path) -> Path:
    for place in (folder, *(folder / part for part in _COMPONENTS)):
        if (place / "config.json").is_file():
            return place / "config.json"
    raise InspectionError(
        f"{folder}: no config.json here, nor in {', '.join(f'{part}/' for part in _COMPONENTS)}; give the folder of a "
        "diffusers model or pipeline, or the name of its class with --config"
    )


def _from_file(path: Path, kind: type[torch.nn.Module] | None) -> Subject:
    if not path.is_file():
        raise InspectionError(f"{path}: no such file; give the config.json of a diffusers model")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InspectionError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise InspectionError(f"{path}: found a {type(data).__name__}; a config is a mapping")
    named = data.get("_class_name")
    if kind is None:
        if not isinstance(named, str):
            raise InspectionError(
                f"{path}: no _class_name; say which class it is for: CLASS --config {path.name}"
            )
        kind = model_class(named)
    elif isinstance(named, str) and named != kind.__name__:
        raise InspectionError(f"{path}: is the config of a {named}, and {kind.__name__} was asked for")
    config = {name: value for name, value in data.items() if not name.startswith("_")}
    _check_fields(kind, config, str(path))
    return Subject(kind, config, str(path))


def _check_fields(kind: type[torch.nn.Module], config: Mapping[str, Any], where: str) -> None:
    parameters = _parameters(kind)
    # A constructor with ** takes what it likes.
    unknown = [] if _open_ended(kind) else [name for name in config if name not in parameters]
    if unknown:
        listed = ", ".join(f"{name!r}{nearest(name, parameters)}" for name in unknown)
        raise InspectionError(
            f"{where}: {kind.__name__} has no field {listed}; remove or rename; it has {', '.join(parameters)}"
        )
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in config]
    if missing:
        raise InspectionError(
            f"{where}: {kind.__name__} needs {', '.join(missing)}, which have no defaults; write them into a config "
            "file and give it with --config"
        )


def _defaults(kind: type[torch.nn.Module]) -> dict[str, Any]:
    return {n: p.default for n, p in _parameters(kind).items() if p.default is not p.empty}


def _parameters(kind: type[torch.nn.Module]) -> dict[str, inspect.Parameter]:
    every = inspect.signature(inspect.unwrap(kind.__init__)).parameters
    return {n: p for n, p in list(every.items())[1:] if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _open_ended(kind: type[torch.nn.Module]) -> bool:
    return any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(inspect.unwrap(kind.__init__)).parameters.values()
    )
