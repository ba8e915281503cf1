"""Where recipes come from: shipped names, files, plain data, and the recipes that these extend."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from sdtm_fx.errors import RecipeError, nearest
from sdtm_fx.recipe.merge import merge
from sdtm_fx.recipe.problems import misfit, recipe_error, show_choices, show_value
from sdtm_fx.recipe.yaml_source import Source, read_yaml

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

SUFFIXES = (".yaml", ".yml")
VERSION = 1

_PACKAGE = "sdtm_fx.recipes"


def list_recipes() -> tuple[str, ...]:
    """Return the names of the shipped recipes, sorted.

    Raises:
        RecipeError: The recipes are not installed.
    """
    return tuple(sorted(_shipped()))


def read_named(name: str) -> Source:
    """Read a shipped recipe and what it extends.

    Raises:
        RecipeError: There is no such recipe, or it is not valid YAML.
    """
    return resolve(_read_shipped(name), chain=(name,))


def read_file(path: Path) -> Source:
    """Read a recipe file and what it extends.

    Raises:
        RecipeError: The file cannot be read, or is not valid YAML.
    """
    return resolve(_read_path(path), folder=path.parent, chain=(str(path.resolve()),))


def path_beside(file: Path, folder: Path) -> str:
    """Return how a recipe in a folder names another file in `extends`: seen from there, so that both can be moved."""
    return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()


def plain_source(data: Mapping[str, Any], label: str) -> Source:
    """Return data built in Python as mappings, lists and scalars.

    Args:
        data: May hold tuples, methods and parts of recipes too.
        label: What to call it in errors.

    Raises:
        RecipeError: The data holds something that YAML could not.
    """
    try:
        plain: dict[str, object] = to_jsonable_python(dict(data))
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise RecipeError(f"{label}: found {error}; accepted mappings, lists and scalars") from error
    return Source(label, plain)


def resolve(source: Source, *, folder: Path | None = None, chain: tuple[str, ...] = ()) -> Source:
    """Return the recipe with what it extends laid below it, and without the key `extends`.

    Args:
        source: One recipe as written.
        folder: Where its relative paths start; None when it is in no folder.
        chain: What led here, for finding circles.

    Raises:
        RecipeError: What it extends cannot be read, or extends it in turn.
    """
    _check_version(source)
    data = dict(source.data)
    if "extends" not in data:
        return source
    target = data.pop("extends")
    if not isinstance(target, str):
        raise _extends_error(source, show_value(target), "the name of a recipe, or a path that ends in .yaml")
    if not isinstance(data.get("name"), str):
        problem = misfit(
            ("name",), show_value(data["name"]) if "name" in data else "nothing", "a name of its own"
        )
        raise recipe_error([(source.where(("name",)), problem)])
    own = Source(source.label, data, source.marks)
    return merge(_read_base(target, source, folder, chain), own)


def _read_base(target: str, source: Source, folder: Path | None, chain: tuple[str, ...]) -> Source:
    is_path = target.endswith(SUFFIXES)
    if not is_path and target not in (names := _shipped()):
        hint = nearest(target, names)
        raise _extends_error(source, repr(target), f"{_offer(names)}, or a path that ends in .yaml", hint)
    if is_path and folder is None and not Path(target).is_absolute():
        raise _extends_error(
            source, f"the relative path {target!r}", "a name or an absolute path outside of a file"
        )
    path = (folder or Path()) / target
    key = str(path.resolve()) if is_path else target
    if key in chain:
        raise _extends_error(
            source, f"a circle ({' -> '.join((*chain, key))})", "recipes that do not extend each other"
        )
    base = _read_path(path) if is_path else _read_shipped(target)
    return resolve(base, folder=path.parent if is_path else None, chain=(*chain, key))


def _check_version(source: Source) -> None:
    version = source.data.get("version")
    if type(version) is not int or version != VERSION:
        found = show_value(version) if "version" in source.data else "nothing"
        raise recipe_error([(source.where(("version",)), misfit(("version",), found, str(VERSION)))])


def _extends_error(source: Source, found: str, accepted: str, hint: str = "") -> RecipeError:
    return recipe_error([(source.where(("extends",)), misfit(("extends",), found, accepted, hint))])


def _read_path(path: Path) -> Source:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        siblings = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        reason = getattr(error, "strerror", None) or error
        hint = nearest(path.name, siblings)
        raise RecipeError(
            f"{path}: found no readable file ({reason}); accepted a recipe in YAML, UTF-8{hint}"
        ) from error
    return read_yaml(text, str(path))


def _read_shipped(name: str) -> Source:
    shipped = _shipped()
    if name not in shipped:
        accepted = f"{_offer(shipped)}, or a path that ends in .yaml"
        raise RecipeError(f"found the recipe name {name!r}; accepted {accepted}{nearest(name, shipped)}")
    return read_yaml(shipped[name].read_text(encoding="utf-8"), f"recipes/{name}.yaml")


def _offer(names: Iterable[str]) -> str:
    """Name the shipped recipes that lie in no folder, and the folders of the others, which are many."""
    folders = sorted({f"{name.partition('/')[0]}/" for name in names if "/" in name})
    own = show_choices(sorted(name for name in names if "/" not in name))
    return f"{own}, one under {' or '.join(folders)} (`sdtm-fx recipes list`)" if folders else own


def _shipped() -> dict[str, Traversable]:
    try:
        root = importlib.resources.files(_PACKAGE)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"found no package {_PACKAGE}; accepted an installed sdtm_fx: run `pip install -e .` at its root"
        ) from error
    return dict(_walk(root, ""))


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml"), entry
