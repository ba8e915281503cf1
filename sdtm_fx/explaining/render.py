"""An explanation as text: a table of phases and a table of merged sites."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdtm_fx.explaining.report import Explanation, SiteReport, SpanReport
from sdtm_fx.grids import tokens_on
from sdtm_fx.idle_stages import ranges


def as_text(explanation: Explanation, width: int = 110) -> str:
    """The explanation as plain text."""
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(render(explanation))
    return capture.get()


def render(e: Explanation) -> RenderableType:
    """The explanation as something that rich prints."""
    tokens = tokens_on(e.grid)
    head = Text(
        f"{e.model}, recipe {e.recipe}: {e.blocks} blocks in {e.structures} structures rewritten"
        + (f", {len(e.kept_dense)} kept dense" if e.kept_dense else "")
        + f"\n{e.steps} steps, {' x '.join(map(str, e.grid))} = {tokens} image tokens, {e.text} text tokens, "
        f"batch {e.batch}"
    )
    stays = [(e.protected, "of protected frames"), (e.references, "of references")]
    if any(count for count, _ in stays):
        told = " and ".join(f"{count} tokens {what}" for count, what in stays if count)
        head.append(f"\n{told} stay as they are; ratios are parts of the others")
    flow = Text("flow: " + " -> ".join(_runs(e.modules)))
    phases = Table(
        "phase", "steps", "ratio", "tokens", "linear", "total", "speedup", title="Phases (GMACs per call)"
    )
    for index, p in enumerate(e.phases):
        phases.add_row(
            f"{index} {p.label}" + (" *" if p.stores else ""), ranges(p.steps), f"{p.ratio:.3f}",
            f"{tokens - p.removed}", f"{p.macs.linear / 1e9:.4g}", f"{p.macs.total / 1e9:.4g}",
            f"{e.dense.total / p.macs.total:.2f}x",
        )  # fmt: skip
    phases.add_row(
        "mean", f"{e.steps}", "", "", f"{e.mean.linear / 1e9:.4g}", f"{e.mean.total / 1e9:.4g}",
        f"{e.theoretical_speedup:.2f}x",
    )  # fmt: skip
    parts: list[RenderableType] = [head, flow, phases, _site_table(e)]
    if e.spans:
        parts.append(_span_table(e))
    if any(p.stores for p in e.phases):
        size = f"{e.feature_bytes / 2**20:,.1f} MiB"
        parts.append(Text(f"* stores features for later steps: {size} in all, for each call of a step"))
    if any(e.state_bytes.values()):
        held = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in e.state_bytes.items())
        parts.append(Text(f"held across steps: {held}"))
    parts.append(Text(f"cost gate: {e.gate.says}"))
    if e.gate.sites:
        parts.append(_gate_table(e))
    parts += [Text(line) for line in (*_left_alone(e), *(f"note: {note}" for note in e.notes))]
    return Group(*parts)


def _site_table(e: Explanation) -> Table:
    """Merged sites only; sites that a phase leaves alone are named, with the reason, in `_left_alone`."""
    table = Table("phase", "modules", "tokens", "GMACs each", title="Merged sites")
    for (phase, *_), sites in _alike(e).items():
        first = sites[0]
        if e.phases[phase].removed == 0 or first.skipped is not None:
            continue
        what = " keys" if first.merges == "keys" else ""
        after = "" if first.macs_after is None else f" -> {first.macs_after.total / 1e9:.4g}"
        table.add_row(
            str(phase), _paths([s.path for s in sites]), f"{first.tokens_before} -> {first.tokens_after}{what}",
            f"{first.macs_before.total / 1e9:.4g}{after}",
        )  # fmt: skip
    return table


def _span_table(e: Explanation) -> Table:
    table = Table(
        "phase", "span", "from", "to", "residual", "tokens", title="Spans: merged once, or forecast as one"
    )
    groups: dict[tuple[int, str], list[SpanReport]] = {}
    for s in e.spans:
        groups.setdefault((s.phase, s.span), []).append(s)
    for (phase, span), runs in groups.items():
        one = runs[0]
        table.add_row(
            str(phase), span, f"{one.enter} of {_paths([s.first for s in runs])}",
            f"end of {_paths([s.last for s in runs])}", one.residual,
            f"{one.tokens_before} -> {one.tokens_after}",
        )  # fmt: skip
    return table


def _gate_table(e: Explanation) -> Table:
    table = Table(
        "stage", "removed", "modules", "saved", "spent", title="Left out by the cost gate (ms each per call)"
    )
    groups: dict[tuple[str, int, str, float, float], list[str]] = {}
    for s in e.gate.sites:
        groups.setdefault((s.stage, s.removed, s.site, s.saved, s.spent), []).append(s.path)
    for (stage, removed, _, saved, spent), paths in groups.items():
        table.add_row(stage, str(removed), _paths(paths), f"{1e3 * saved:.3g}", f"{1e3 * spent:.3g}")
    return table


def _left_alone(e: Explanation) -> list[str]:
    lines: dict[str, None] = {}
    for (phase, name, *_), sites in _alike(e).items():
        if e.phases[phase].removed and sites[0].skipped is not None:
            lines[f"{name}: {_paths([s.path for s in sites])} not merged: {sites[0].skipped}"] = None
    return list(lines)


def _alike(e: Explanation) -> dict[tuple[int, str, int, str | None], list[SiteReport]]:
    """The sites of a phase by what is merged there: blocks may remove differently, or be left out."""
    groups: dict[tuple[int, str, int, str | None], list[SiteReport]] = {}
    for site in e.sites:
        groups.setdefault((site.phase, site.site, site.tokens_after, site.skipped), []).append(site)
    return groups


def _runs(modules: tuple[str, ...]) -> list[str]:
    """Shorten runs of numbered siblings: ``blocks.* (24)``."""
    runs: list[list[str]] = []
    for path in modules:
        family = ".".join("*" if part.isdigit() else part for part in path.split("."))
        if runs and runs[-1][0] == family and family != path:
            runs[-1].append(path)
        else:
            runs.append([family, path])
    return [run[1] if len(run) == 2 else f"{run[0]} ({len(run) - 1})" for run in runs]


def _paths(paths: list[str]) -> str:
    """``blocks.*.attn (24)`` for the paths of one site."""
    if len(paths) == 1:
        return paths[0]
    first, last = paths[0].split("."), paths[-1].split(".")
    pattern = ".".join(a if a == b else "*" for a, b in zip(first, last, strict=True))
    return f"{pattern} ({len(paths)})"
