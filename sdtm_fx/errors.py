"""The exceptions of sdtm_fx: each says where, what was found, and what is accepted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SdtmFxError(Exception):
    """Base of every error that sdtm_fx raises on purpose."""


class RecipeError(SdtmFxError):
    """A recipe is not readable or not valid. The text starts with file, line and key path."""


class CaptureError(SdtmFxError):
    """A block or model could not be turned into a graph."""


class HostReadError(CaptureError):
    """A forward reads a value of a tensor on the host, which a trace does not know."""


class SiteError(SdtmFxError):
    """A site was found but is not what the recipe says it is."""


class NothingMatched(SiteError):
    """A site of the recipe matches no module, or fewer than it expects."""


class PassError(SdtmFxError):
    """A pass broke a graph or could not be applied. The text names the pass and those before it."""


class PlanError(SdtmFxError):
    """A merge plan cannot be made: a ratio out of reach, a grid that does not fit the tokens."""


class SequenceError(PlanError):
    """A merge plan is given a sequence that is not the one it was made for."""


class ScheduleError(SdtmFxError):
    """Stages, ratios and steps do not make a schedule."""


class ClockError(SdtmFxError):
    """The current denoising step is not known, or is out of range."""


class RewriteError(SdtmFxError):
    """A model cannot be rewritten, or was not rewritten when it should be."""


class PackageError(SdtmFxError):
    """Exported phases cannot be made, or are not for this version, device or size."""


class InspectionError(SdtmFxError):
    """A model cannot be opened or called for inspection, or has nothing that a recipe could name."""


class CalibrationError(SdtmFxError):
    """A device cannot be measured, or a kept measurement is not readable."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest of `known`, or an empty string.

    Args:
        word: What was found.
        known: What is accepted.
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
