"""The settings that all rows of an evaluation share."""

from __future__ import annotations

from dataclasses import dataclass

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.row import Row


@dataclass(frozen=True)
class Sampling:
    """What is drawn, equal for every row.

    Images are drawn in batches of fixed membership, and each starts from the noise of its own generator. So an
    image does not depend on the order of the batches, nor on who draws them. Two batch sizes may still differ
    by rounding, and a recipe that shares plans over the batch sees the batch.

    Attributes:
        prompts: One per image.
        seeds: Of the noise, one per image.
        steps: Denoising steps.
        height: Pixels.
        width: Pixels.
        guidance_scale: Of the pipeline; None leaves the pipeline's default.
        batch: Images per call of the pipeline.
        paired: How many images, from the first, are compared with the dense image of their seed.
        judged: How many images, from the first, the judge sees of the rows that it judges.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    height: int
    width: int
    guidance_scale: float | None
    batch: int
    paired: int
    judged: int

    def __post_init__(self) -> None:
        count = len(self.seeds)
        if not count:
            raise SdtmFxError("evaluate: no images; give at least one seed and one prompt")
        if len(self.prompts) != count:
            raise SdtmFxError(
                f"evaluate: {len(self.prompts)} prompts and {count} seeds; every image needs one of each"
            )
        if len(set(zip(self.prompts, self.seeds, strict=True))) < count:
            raise SdtmFxError(
                "evaluate: a prompt comes twice with the same seed; that image would count twice"
            )
        for name in ("steps", "height", "width", "batch"):
            if getattr(self, name) < 1:
                raise SdtmFxError(f"evaluate: {name} must be at least 1, found {getattr(self, name)}")
        if not 1 <= self.paired <= count:
            raise SdtmFxError(f"evaluate: paired must be from 1 to the {count} images, found {self.paired}")
        if not 0 <= self.judged <= count:
            raise SdtmFxError(f"evaluate: judged must be from 0 to the {count} images, found {self.judged}")

    @property
    def batches(self) -> tuple[range, ...]:
        """Indices of the images of each batch."""
        count = len(self.seeds)
        return tuple(range(start, min(start + self.batch, count)) for start in range(0, count, self.batch))

    def batches_of(self, row: Row) -> tuple[range, ...]:
        """The batches that a row needs: all of them, or only what is compared with dense images."""
        return tuple(batch for batch in self.batches if row.judged or batch.start < self.paired)

    def follows(self, batch: range) -> bool:
        """Whether the error growth of a batch is recorded, step by step."""
        return batch.start < self.paired
