"""Models in which nothing can be merged: why, and what to look at instead."""

from __future__ import annotations

from collections.abc import Sequence

from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.observing import AttentionCall, Observation
from sdtm_fx.inspecting.opening import Subject
from sdtm_fx.inspecting.survey import LeftOut

_WHERE = (
    "recipes are for blocks that run on sequences of tokens, [batch, tokens, width]: those of diffusion transformers, "
    "and of U-Nets with transformers in them, such as UNet2DConditionModel; leave this model as it is"
)


def refuse_autoencoder(subject: Subject) -> None:
    """Refuse a model that encodes and decodes: it runs once for an image, and no step of a generation calls it.

    Raises:
        InspectionError: It has both methods.
    """
    if all(callable(getattr(subject.kind, name, None)) for name in ("encode", "decode")):
        raise InspectionError(
            f"{subject.name} encodes and decodes: an autoencoder runs once for an image and not in every step, so no "
            "recipe is for it; give the model that denoises: the folder of the pipeline, its transformer/ or unet/, or "
            "that class"
        )


def no_site(
    subject: Subject,
    observation: Observation,
    attention: Sequence[AttentionCall],
    left_out: Sequence[LeftOut],
) -> InspectionError:
    """Return the error for a model without a site.

    Args:
        subject: The model.
        observation: What happens in its calls.
        attention: Where attention is computed.
        left_out: Modules that are like sites but cannot be.
    """
    if not attention:
        return InspectionError(
            f"{subject.name} computes no attention on tokens, so there is nothing to merge; {_WHERE}"
        )
    said = f"{subject.name} has no site: attention is computed {len(attention)} times, but never in a "
    picture = next((call.path for call in attention if _takes_picture(call.path, observation)), None)
    if picture is not None and all(_takes_picture(call.path, observation) for call in attention):
        return InspectionError(
            f"{said}module that takes tokens: all take pictures, [batch, channels, height, width] (first: {picture}), "
            f"between convolutions, for which merged tokens lie on no grid; {_WHERE}"
        )
    first = left_out[0] if left_out else None
    why = f" (first: {first.path}: {first.why})" if first is not None else ""
    return InspectionError(
        f"{said}module of a block that takes [batch, tokens, width] and ends in a residual addition{why}; what a "
        "recipe names has to be such a module: wrap what computes attention into one, or leave this model as it is"
    )


def _takes_picture(path: str, observation: Observation) -> bool:
    """Whether a module is given a picture or a video, and no sequence of tokens."""
    ranks = {len(dims) for seen in observation.calls.get(path, ()) for dims in seen.inputs.values()}
    return bool(ranks & {4, 5}) and 3 not in ranks
