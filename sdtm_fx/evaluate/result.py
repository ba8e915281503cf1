"""What an evaluation found: numbers of every image, and estimates over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdtm_fx.cost.cost import Cost
from sdtm_fx.cost.counter import Macs
from sdtm_fx.errors import SdtmFxError, nearest
from sdtm_fx.evaluate.interval import Estimate, mean_interval, paired_differences, share_interval
from sdtm_fx.evaluate.row import Row
from sdtm_fx.evaluate.sampling import Sampling

PAIRED_METRICS = ("psnr", "ssim", "error")
"""Per paired image: dB to the dense image, structural similarity to it, relative error of the last latent."""

ALL_RIGHT = "all"
"""Name of the accuracy of whole captions: every attribute is right."""


@dataclass(frozen=True)
class RowResult:
    """One row.

    Attributes:
        row: What was evaluated.
        cost: MACs; None where the row is dense, and costs what dense costs.
        seconds: That drawing its images took, where they were drawn.
        images: [K, 3, H, W], the first few, to look at.
        psnr: Per paired image, in dB; infinite where it equals the dense one.
        ssim: Per paired image.
        growth: Relative error of the latents, per paired image and step.
        right: Whether each attribute is as the caption says, per judged image; empty where no judge saw the row.
        frechet_real: Fréchet distance to real images; None where it was not computed.
        frechet_dense: Fréchet distance to the dense images of the same seeds.
    """

    row: Row
    cost: Cost | None
    seconds: float
    images: Tensor
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    growth: tuple[tuple[float, ...], ...]
    right: tuple[tuple[bool, ...], ...] = ()
    frechet_real: Estimate | None = None
    frechet_dense: Estimate | None = None

    @property
    def linear(self) -> float:
        """Share of the dense MACs, linear layers only."""
        return 1.0 if self.cost is None else self.cost.linear

    @property
    def total(self) -> float:
        """Share of the dense MACs, all of them."""
        return 1.0 if self.cost is None else self.cost.total

    def growth_at(self, step: int) -> Estimate:
        """Relative error of the latents after a step."""
        return mean_interval([image[step] for image in self.growth])


@dataclass(frozen=True)
class Evaluation:
    """All rows of an evaluation.

    Attributes:
        sampling: What was drawn.
        identity: What else decided it: digests of weights and code, versions, device, threads.
        rows: In the order that they were given in.
        attributes: Names of what the judge grades; empty without a judge.
        judge_digest: Of the judge's weights; None without a judge, or for one without weights.
        frechet_floor: Fréchet distance between two disjoint sets of real images as large as the judged one: what
            perfect images would score. None where it was not computed.
        frechet_missing: Why Fréchet distances were not computed; None where they were, or there is no judge.
    """

    sampling: Sampling
    identity: Mapping[str, Any]
    rows: tuple[RowResult, ...]
    attributes: tuple[str, ...] = ()
    judge_digest: str | None = None
    frechet_floor: float | None = None
    frechet_missing: str | None = None

    @property
    def dense_macs(self) -> Macs | None:
        """MACs of a dense image, all steps and guidance halves; None where no row was rewritten."""
        return next((result.cost.dense for result in self.rows if result.cost is not None), None)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names that `per_image` accepts."""
        return (*PAIRED_METRICS, *(f"{name}_right" for name in self.graded))

    @property
    def graded(self) -> tuple[str, ...]:
        """Names that `accuracy` accepts: the attributes, and all of them together."""
        return (*self.attributes, ALL_RIGHT) if self.attributes else ()

    def row(self, label: str) -> RowResult:
        """The result of the row of that label.

        Raises:
            SdtmFxError: There is none.
        """
        for result in self.rows:
            if result.row.label == label:
                return result
        labels = [result.row.label for result in self.rows]
        raise SdtmFxError(
            f"evaluation: no row {label!r}{nearest(label, labels)}; there are {', '.join(labels)}"
        )

    def per_image(self, label: str, metric: str) -> tuple[float, ...]:
        """A metric of every image of a row.

        Args:
            label: Of the row.
            metric: One of `metrics`.

        Raises:
            SdtmFxError: There is no such row or metric, or the row was not judged.
        """
        result = self.row(label)
        if metric in ("psnr", "ssim"):
            values: tuple[float, ...] = getattr(result, metric)
            return values
        if metric == "error":
            return tuple(image[-1] for image in result.growth)
        if metric not in self.metrics:
            raise SdtmFxError(
                f"evaluation: no metric {metric!r}{nearest(metric, self.metrics)}; there are "
                f"{', '.join(self.metrics)}"
            )
        return tuple(map(float, self._graded(result, metric.removesuffix("_right"))))

    def estimate(self, label: str, metric: str) -> Estimate:
        """Mean of a metric over the images of a row, with a bootstrap interval over seeds.

        Raises:
            SdtmFxError: As `per_image`.
        """
        return mean_interval(self.per_image(label, metric))

    def difference(self, row_a: str, row_b: str, metric: str = "psnr") -> Estimate:
        """Mean of the differences image by image, the first row minus the second.

        Both rows draw the same prompts from the same noise, so this tells two rows apart that the intervals of
        their means do not. Identical images differ by zero in every metric.

        Args:
            row_a: Label of a row.
            row_b: Label of another.
            metric: One of `metrics`.

        Raises:
            SdtmFxError: As `per_image`; and where each row is identical to dense on other images than the other,
                and never both finite: such differences have no mean.
        """
        return mean_interval(paired_differences(self.per_image(row_a, metric), self.per_image(row_b, metric)))

    def accuracy(self, label: str, attribute: str = ALL_RIGHT) -> Estimate:
        """Share of the judged images that are as their caption says, with its Wilson interval.

        Args:
            label: Of the row.
            attribute: One of `graded`.

        Raises:
            SdtmFxError: There is no such row, it was not judged, or the judge does not grade that.
        """
        if attribute not in self.graded:
            raise SdtmFxError(
                f"evaluation: {attribute!r} was not graded{nearest(attribute, self.graded)}; "
                f"graded: {', '.join(self.graded) or 'nothing, there was no judge'}"
            )
        hits = self._graded(self.row(label), attribute)
        return share_interval(sum(hits), len(hits))

    def _graded(self, result: RowResult, attribute: str) -> tuple[bool, ...]:
        if not result.right:
            judged = ", ".join(other.row.label for other in self.rows if other.right)
            raise SdtmFxError(f"evaluation: row {result.row.label!r} was not judged; judged: {judged}")
        if attribute == ALL_RIGHT:
            return tuple(all(image) for image in result.right)
        column = self.attributes.index(attribute)
        return tuple(image[column] for image in result.right)
