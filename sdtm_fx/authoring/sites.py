"""The sites of a draft: what each is called, and how the recipe names it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sdtm_fx.inspecting.groups import SiteGroup

_BASES = {
    "self-attention": "attn", "joint attention": "attn", "linear attention": "attn", "cross-attention": "cross",
    "feed-forward": "ff",
}  # fmt: skip


@dataclass(frozen=True)
class DraftSite:
    """One site of a draft.

    Attributes:
        id: Its name.
        group: What it means.
        keys: Further keys of the recipe's site, with a comment each or none.
        unsure: Guesses, for comments.
        keep_dense: Why no stage merges it; None: one does.
    """

    id: str
    group: SiteGroup
    keys: tuple[tuple[str, str, str], ...]
    unsure: tuple[str, ...]
    keep_dense: str | None


def draft_sites(groups: Sequence[SiteGroup]) -> tuple[DraftSite, ...]:
    """Name the sites of a draft, and decide which its stages merge.

    Attention with rotary positions stays dense, as the recipes for FLUX leave it, and so does cross-attention; where
    nothing else is left, stages merge what can be merged.

    Args:
        groups: The sites that were found.
    """
    rotary = any(g.first.rotary is not None or g.first.positions for g in groups if g.first.is_attention)
    names = _names(groups)
    sites = [_site(name, group, _why_dense(group, rotary)) for name, group in zip(names, groups, strict=True)]
    if all(site.keep_dense for site in sites):
        possible = [s for s in sites if not s.group.first.positions]
        return tuple(_site(s.id, s.group, None if s in possible else s.keep_dense) for s in sites)
    return tuple(sites)


def _why_dense(group: SiteGroup, rotary: bool) -> str | None:
    site = group.first
    if site.positions and site.is_attention:
        return f"it is also given {', '.join(site.positions)}, which follow the tokens and cannot be gathered"
    if site.kind == "cross-attention":
        return "cross-attention places what the prompt names, and costs little"
    if site.is_attention and rotary:
        return "attention with rotary positions is sensitive: the paper leaves it dense on FLUX"
    return None


def _site(name: str, group: SiteGroup, keep_dense: str | None) -> DraftSite:
    site = group.first
    keys: list[tuple[str, str, str]] = [("input", str(site.input), "")]
    unsure: list[str] = []
    if site.output is not None:
        keys.append(("output", str(site.output), "the image tokens among what it returns"))
    if site.order != "image":
        side = "suffix" if site.order == "image first" else "prefix"
        where = "behind" if side == "suffix" else "in front of"
        keys.append(
            (
                side,
                site.beside or '"*"',
                f"{site.tokens.says(site.tokens.image * group.level**2)} tokens: what stands {where} the image is text",
            )
        )
        if site.order == "unknown":
            unsure.append("whether the other tokens are in front of the image (prefix) or behind it (suffix)")
    if site.rotary is not None:
        keys.append(("rotary", site.rotary.argument, "positions follow the tokens that stay"))
        if site.rotary.axis:
            keys.append(("rotary_axis", str(site.rotary.axis), ""))
    if site.call is not None:
        keys.append(("call", str(site.call), "its block calls it again, for something else than the image"))
    if group.level > 1:
        keys.append(("downsample", str(group.level), "runs on a coarser grid"))
    if site.positions and not site.is_attention:
        unsure.append(f"whether {', '.join(site.positions)} must follow the tokens")
    return DraftSite(name, group, tuple(keys), tuple(unsure), keep_dense)


def _names(groups: Sequence[SiteGroup]) -> list[str]:
    """Short names; what several groups would share gets the module's name, the list or the level in front."""
    cross = {g.level for g in groups if g.first.kind == "cross-attention"}
    base = [_base(g, bool(cross)) for g in groups]
    locals_ = [g.first.path.removeprefix(f"{g.first.block}.").replace(".", "_") for g in groups]
    lists = [g.first.block.partition(".")[0].partition("_")[0] for g in groups]
    names = list(base)
    coarse = [
        f"coarse{g.level if g.level > 2 else ''}_{n}" if g.level > 1 else n
        for g, n in zip(groups, names, strict=True)
    ]
    names = coarse
    first_list = lists[0] if lists else ""
    names = [
        f"{where}_{n}" if names.count(n) > 1 and where != first_list else n
        for n, where in zip(names, lists, strict=True)
    ]
    names = [
        f"{n.removesuffix(b)}{own}" if names.count(n) > 1 and own not in names else n
        for n, b, own in zip(names, base, locals_, strict=True)
    ]
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return unique


def _base(group: SiteGroup, has_cross: bool) -> str:
    kind = group.first.kind
    return "self" if kind in ("self-attention", "linear attention") and has_cross else _BASES[kind]
