"""The recipes that follow publications, what they are run at, and what their sources say that they cost."""

from __future__ import annotations

from dataclasses import dataclass

PIXELS = 1024
"""Of each side of the image; every row is published at this size."""


@dataclass(frozen=True)
class Figure:
    """What a source says that a step costs.

    Attributes:
        share: Of the dense model.
        linear: Whether linear layers alone were counted.
        text: The figure as printed, and whose it is.
        last: Whether it is about the last step, and not the mean of all.
    """

    share: float
    linear: bool
    text: str
    last: bool = False


@dataclass(frozen=True)
class Row:
    """A recipe of the page.

    Attributes:
        recipe: Its name.
        steps: Denoising steps of the setting that it follows.
        figure: What a source says; None where none does.
    """

    recipe: str
    steps: int
    figure: Figure | None = None


_TOME_A = Figure(4.27 / 6.01, True, "4.27 of 6.01 T, ToMeSD-a in SDTM")
_AT_EDM_A = Figure(4.23 / 6.01, True, "4.23 of 6.01 T, AT-EDM-a in SDTM")
_SDTM_FLUX = Figure(386.5 / 595.2, True, "386.5 of 595.2 T a generation, SDTM's own")
_AT_SDTM_FLUX = Figure(386.5 / 595.2, True, "386.5 of 595.2 T, SDTM's row: matched to it")
_AT_TOME_A = Figure(4.27 / 6.01, True, "4.27 of 6.01 T, ToMeSD's row: matched to it")
_AT_EDM = Figure(
    4.1 / 6.7, False, "4.1 of 6.7 TFLOPs, its own, of a step behind the prune-less ones", last=True
)
_TOME_XL = Figure(4.1 / 6.7, False, "4.1 of 6.7 TFLOPs, ToMe in AT-EDM")
_TAYLOR = Figure(1 / 4.99, False, "a 4.99th of the FLOPs, its own")

ROWS: tuple[Row, ...] = (
    Row("baselines/tome-sd3-medium", 50, _TOME_A),
    Row("baselines/at-edm-sd3-medium", 50, _AT_EDM_A),
    Row("baselines/toma-sd3-medium", 50),
    Row("baselines/toma-tile-sd3-medium", 50),
    Row("baselines/toma-once-sd3-medium", 50),
    Row("baselines/todo-sd3-medium", 50),
    Row("baselines/tofu-sd3-medium", 50, _AT_TOME_A),
    Row("baselines/ca-tome-sd3-medium", 50),
    Row("baselines/sito-sd3-medium", 50, _AT_TOME_A),
    Row("baselines/importance-sd3-medium", 20),
    Row("baselines/random-sd3-medium", 50, _AT_TOME_A),
    Row("baselines/uniform-sd3-medium", 50, _AT_TOME_A),
    Row("baselines/token-cache-sd3-medium", 50),
    Row("baselines/fora-sd3-medium", 50),
    Row("baselines/taylorseer-sd3-medium", 50),
    Row("paper/sd3-medium", 50),
    Row("paper/sd3-medium-released", 50),
    Row("baselines/tome-flux.1-dev", 20, _AT_SDTM_FLUX),
    Row("baselines/at-edm-flux.1-dev", 20, _AT_SDTM_FLUX),
    Row("baselines/toma-flux.1-dev", 35),
    Row("baselines/todo-flux.1-dev", 50),
    Row("baselines/tofu-flux.1-dev", 20, _AT_SDTM_FLUX),
    Row("baselines/ca-tome-flux.1-dev", 20),
    Row("baselines/sito-flux.1-dev", 20, _AT_SDTM_FLUX),
    Row("baselines/random-flux.1-dev", 20, _AT_SDTM_FLUX),
    Row("baselines/uniform-flux.1-dev", 20, _AT_SDTM_FLUX),
    Row("baselines/token-cache-flux.1-dev", 50),
    Row("baselines/fora-flux.1-dev", 50),
    Row("baselines/taylorseer-flux.1-dev", 50, _TAYLOR),
    Row("paper/flux.1-dev", 20, _SDTM_FLUX),
    Row("baselines/tome-sdxl", 50, _TOME_XL),
    Row("baselines/at-edm-sdxl", 50, _AT_EDM),
    Row("baselines/toma-sdxl", 50),
    Row("baselines/toma-tile-sdxl", 50),
    Row("baselines/toma-once-sdxl", 50),
    Row("baselines/todo-sdxl", 50),
    Row("baselines/tofu-sdxl", 50, _TOME_XL),
    Row("baselines/ca-tome-sdxl", 50),
    Row("baselines/sito-sdxl", 50, _TOME_XL),
    Row("baselines/importance-sdxl", 50),
    Row("baselines/random-sdxl", 50, _TOME_XL),
    Row("baselines/uniform-sdxl", 50, _TOME_XL),
)
"""Every shipped recipe that follows a publication, but those for the toys, which follow these."""

ABSENT: tuple[tuple[str, str], ...] = (
    (
        "`importance` on FLUX.1",
        "it reads what guidance changes, and guidance is distilled into the model: there are no two halves",
    ),
    (
        "`tome`, `tofu`, `ca_tome`, `sito`, `random`, `uniform` in the attention of FLUX.1",
        "SDTM leaves it dense there, and ToMA's authors report noise from direct ports; merged with rotary tables that "
        "follow the tokens it is `flux.1-dev-attention`, a recipe of ours",
    ),
    (
        "`at_edm` with its groups of blocks on FLUX.1",
        "no source maps them to that model; shipped is its choice of tokens in the feed-forwards",
    ),
    ("`toma` by tiles or once per block on FLUX.1", "its release for that model does neither"),
    (
        "`ca_tome` below the finest level of SDXL",
        "a threshold is counted on one grid; it is published for the finest level",
    ),
    (
        "`ca_tome` with pairs kept over several steps",
        "under a threshold every step counts what is similar, and makes a plan of its own",
    ),
    (
        "ToCa, FORA and TaylorSeer on SDXL",
        "they are published for transformers; most of what a U-Net would keep lies in convolutions, which recipes do "
        "not reach",
    ),
    (
        "ToCa with self-attention left out between full steps, as its released code has it",
        "a stage has one method for all of its sites; shipped is its choice of tokens in the feed-forwards",
    ),
    ("TaylorSeer of order 2", "it takes three stored steps at every site, and `reuse` keeps two at most"),
    ("SDTM on SDXL", "not published"),
    ("SDTM* anywhere", "its thresholds are not published; `ratio: {threshold: ...}` takes any"),
    ("TokenCache, DyDiT", "they are trained"),
)
"""What there is no recipe for, and why."""
