"""From the sites of a recipe to the modules of a model: matching by path, before any tracing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sdtm_fx.errors import NothingMatched, SiteError
from sdtm_fx.recipe.match import compile_match, near_misses
from sdtm_fx.recipe.sections import SiteSpec


@dataclass(frozen=True)
class SiteModule:
    """A module that a recipe's site names.

    Attributes:
        spec: What the recipe says of it.
        path: Module path in the model.
        block: Path of the block whose forward calls it.
    """

    spec: SiteSpec
    path: str
    block: str

    @property
    def local(self) -> str:
        """The path of the module inside its block."""
        return self.path.removeprefix(f"{self.block}.")


def match_sites(model: torch.nn.Module, specs: Sequence[SiteSpec]) -> tuple[SiteModule, ...]:
    """Find the modules of every site.

    Args:
        model: The model, unchanged.
        specs: The sites of a recipe.

    Returns:
        The matches, in the order of the recipe and then of the model.

    Raises:
        NothingMatched: A site matches no module, or another number than it expects; lists near misses.
        SiteError: Two sites claim the same module, one lies inside the other, or one lies in no block.
    """
    paths = [path for path, _ in model.named_modules() if path]
    found: list[SiteModule] = []
    owners: dict[str, str] = {}
    for spec in specs:
        accepts = compile_match(spec.match)
        matches = [p for p in paths if accepts(p)]
        if not matches:
            near = near_misses(spec.match, paths)
            raise NothingMatched(
                f"site {spec.id!r}: {spec.match!r} matches no module of {type(model).__name__}; "
                f"nearest: {', '.join(near) if near else 'none'}"
            )
        if spec.expect is not None and len(matches) != spec.expect:
            raise NothingMatched(
                f"site {spec.id!r}: {spec.match!r} matches {len(matches)} modules of {type(model).__name__}, "
                f"the recipe expects {spec.expect} (first: {matches[0]}, last: {matches[-1]})"
            )
        for path in matches:
            if "." not in path:
                raise SiteError(
                    f"site {spec.id!r}: {path} is called by {type(model).__name__} itself; "
                    "a site lies in a block, a submodule whose forward calls it"
                )
            _claim(owners, path, spec.id)
            found.append(SiteModule(spec, path, block_of(model, path)))
    return tuple(found)


def _claim(owners: dict[str, str], path: str, site: str) -> None:
    for taken, owner in owners.items():
        if taken == path or taken.startswith(path + ".") or path.startswith(taken + "."):
            raise SiteError(
                f"sites {owner!r} and {site!r} overlap: {taken} and {path}; a module may belong to one site only"
            )
    owners[path] = site


def block_of(model: torch.nn.Module, path: str) -> str:
    """Return the block of a site: its nearest ancestor that is an entry of a `ModuleList`.

    A model without lists has its sites in the parent module.
    """
    parts = path.split(".")
    for end in range(len(parts) - 1, 1, -1):
        owner = model.get_submodule(".".join(parts[: end - 1]))
        if isinstance(owner, torch.nn.ModuleList | torch.nn.Sequential):
            return ".".join(parts[:end])
    return ".".join(parts[:-1])
