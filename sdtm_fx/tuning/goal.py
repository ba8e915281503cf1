"""What a search is for, and how much effort it may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.tuning.measuring import Quality


@dataclass(frozen=True)
class Goal:
    """Budget, size and effort of a search.

    Attributes:
        name: Of the recipe that is written.
        speedup: Dense over total MACs of a generation that is wanted, at least.
        steps: Denoising steps; the recipe is for this number.
        height: Pixels.
        width: Pixels.
        guidance: Guidance scale; None takes the pipeline's default.
        quality: What is searched for.
        images: Images of each trial.
        chosen: Fresh images that the best trials are chosen by.
        held_out: Images that take part in nothing but the last comparison.
        batch: Images per call.
        trials: Trials at most.
        minutes: Time after which no trial begins; None: no limit.
        layer_groups: How many groups of consecutive blocks may be left whole.
        processes: Processes that draw; results do not depend on it, unless time runs out.
        threads: CPU threads of each.
        seed: Of the order in which changes are tried.
        first_seed: Of the noise and the prompts of the first image.
        prompts: File of prompts, one a line; toys do without.
    """

    name: str
    speedup: float
    steps: int
    height: int
    width: int
    guidance: float | None = None
    quality: Quality = "psnr"
    images: int = 4
    chosen: int = 16
    held_out: int = 32
    batch: int = 4
    trials: int = 200
    minutes: float | None = None
    layer_groups: int = 6
    processes: int = 1
    threads: int = 1
    seed: int = 0
    first_seed: int = 10_000
    prompts: Path | None = None

    def __post_init__(self) -> None:
        """Raise SdtmFxError unless all of it can be had."""
        if not self.speedup > 1:
            raise SdtmFxError(f"tune: found a speedup of {self.speedup:g}x; accepted one above 1")
        for name in ("steps", "height", "width", "images", "chosen", "held_out", "batch", "trials",
                     "layer_groups", "processes", "threads"):  # fmt: skip
            if getattr(self, name) < 1:
                raise SdtmFxError(f"tune: {name} must be at least 1, found {getattr(self, name)}")
        if self.minutes is not None and not self.minutes > 0:
            raise SdtmFxError(f"tune: minutes must be above 0, found {self.minutes:g}")

    @property
    def parts(self) -> tuple[range, range, range]:
        """Images of the search, images that choose, and held-out ones; each part begins with a batch."""
        parts, first = [], 0
        for count in (self.images, self.chosen, self.held_out):
            parts.append(range(first, first + count))
            first += -(-count // self.batch) * self.batch
        return parts[0], parts[1], parts[2]
