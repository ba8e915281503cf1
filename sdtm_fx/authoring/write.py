"""A draft as YAML with comments: every value says why, and every guess says that it is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdtm_fx.authoring.layout import Line, grid_line, input_line
from sdtm_fx.authoring.sites import DraftSite
from sdtm_fx.inspecting.groups import group_left_out
from sdtm_fx.inspecting.survey import Survey

_METHODS = (
    """    method:
      name: ssm  # whole windows beat matching in the early steps
      window: [2, 2]
      age_weight: 0.05  # the released weight of token ages
      age_sign: -1  # fair: what was merged for long is less likely to be merged again
""",
    """    method:  # {name: skip} forecasts these steps whole: at 28 steps nearer to dense on the toys, at less work
      name: local_match  # as good as global matching late, without a table of all pairs
      window: [2, 2]
      radius: 1  # the 3 x 3 windows around each token
""",
)


def write_draft(survey: Survey, sites: Sequence[DraftSite], name: str) -> str:
    """The text of a draft.

    Args:
        survey: What was found.
        sites: The sites.
        name: Of the recipe.
    """
    merged = [site.id for site in sites if site.keep_dense is None]
    return "".join(
        (
            "".join(_head(survey, name)),
            "".join(_inputs(survey)),
            "".join(_sites(sites)),
            "".join(_left_out(survey)),
            "".join(_stages(sites, merged)),
            "".join(_settings(survey, sites)),
        )
    )


def _head(survey: Survey, name: str) -> Iterator[str]:
    model = survey.subject.name
    yield f"# Drafted from {model} ({survey.subject.source}) by its structure; nothing has been measured on it.\n"
    yield "version: 1\n"
    yield f"name: {name}\n"
    yield f"description: {model}, a draft. Merging with the settings of the recipes for SD3 and FLUX.\n"
    yield f"model: [{model}]\n"
    yield "tokens:\n"
    yield from _line("  grid", grid_line(survey))


def _inputs(survey: Survey) -> Iterator[str]:
    yield "inputs:\n"
    for name, argument in survey.call.arguments.items():
        yield from _line(f"  {name}", input_line(survey, name, argument))


def _sites(sites: Sequence[DraftSite]) -> Iterator[str]:
    yield "sites:\n"
    for site in sites:
        group = site.group
        kind = "attention" if group.first.is_attention else "feed_forward"
        yield f"  - id: {site.id}\n"
        yield f"    kind: {kind}  # {_what(site)}\n"
        yield f"    match: {_quoted(group.pattern)}\n"
        for key, value, why in site.keys:
            yield f"    {key}: {value}{f'  # {why}' if why else ''}\n"
        yield f"    expect: {len(group.sites)}\n"
        for guess in site.unsure:
            yield f"    # unsure: {guess}\n"


def _what(site: DraftSite) -> str:
    first = site.group.first
    joined = (
        f", joined with {first.parallel[0].rpartition('.')[2]} in one projection" if first.parallel else ""
    )
    return f"{first.kind}{joined}"


def _left_out(survey: Survey) -> Iterator[str]:
    for (name, kind, why), paths in group_left_out(survey.left_out).items():
        yield f"  # no site: {name} ({len(paths)}, {kind}): {' '.join(why.split())[:160]}\n"


def _stages(sites: Sequence[DraftSite], merged: Sequence[str]) -> Iterator[str]:
    yield "stages:\n"
    for name, until, why, method in (
        ("structure", "0.4", "where SDTM switches (step 20 of 50)", _METHODS[0]),
        ("detail", "1.0", "", _METHODS[1]),
    ):
        yield f"  - name: {name}\n"
        yield f"    until: {until}{f'  # {why}' if why else ''}\n"
        yield f"    sites: [{', '.join(merged)}]\n"
        if name == "structure":
            for site in sites:
                if site.keep_dense is not None:
                    yield f"    # not {site.id}: {site.keep_dense}\n"
        yield method


def _settings(survey: Survey, sites: Sequence[DraftSite]) -> Iterator[str]:
    distilled = "guidance" in survey.call.arguments
    share = [] if distilled else ["cfg"]
    why = "one plan for both guidance halves halves the planning"
    if distilled:
        why = "guidance is distilled into the model: there is no second half"
    if any(s.keep_dense is None and s.group.first.rotary is not None for s in sites):
        share, why = ["batch"], "rotary tables have no batch axis: one plan serves every sample"
    yield "ratio:\n"
    yield "  curve: constant  # with forecasts, a falling ratio measured no better on SD3, and costs graphs\n"
    yield "  start: 0.7  # below 0.75, which is all that 2 x 2 windows can remove\n"
    yield "  # unsure: every number of this section and of those below comes from SD3 and FLUX\n"
    yield "keep_dense:\n"
    yield "  first_steps: 2  # a forecast of order 1 starts from two dense steps\n"
    yield "  last_steps: 1  # nothing repairs errors of the last step\n"
    yield "  every_steps: 3  # refreshes what reuse extrapolates\n"
    yield "reuse:\n"
    yield "  order: 1  # first-order forecasts measured better than copies whenever the steps are many\n"
    yield "  weight: 0.1  # the released weight of new values\n"
    yield "plan:\n"
    yield f"  share: [{', '.join(share)}]  # {why}\n"
    if share == ["cfg"]:
        yield "  # unsure: whether its pipeline stacks both halves in one batch; if not, share nothing\n"
    yield "  every_layers: 1  # a plan of its own for each block\n"
    yield "  every_steps: 1  # and for each step\n"
    yield "  round_to: 64  # kernels like whole tiles\n"
    yield "seed: 0\n"


def _line(key: str, line: Line) -> Iterator[str]:
    yield f"{key}: {line.text}{f'  # {line.why}' if line.why else ''}\n"
    if line.unsure:
        yield f"{' ' * (len(key) - len(key.lstrip()))}# unsure: {line.unsure}\n"


def _quoted(pattern: str) -> str:
    """A pattern in quotes where YAML would read its signs."""
    plain = pattern.replace("*", "").replace(".", "").replace("_", "").isalnum() and not pattern.startswith(
        "*"
    )
    return pattern if plain else '"' + pattern.replace("\\", "\\\\") + '"'
