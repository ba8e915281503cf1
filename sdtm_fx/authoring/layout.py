"""Where a draft says that the image tokens are, and the arguments of its example call."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sdtm_fx.inspecting.arguments import Argument
from sdtm_fx.inspecting.survey import Survey


@dataclass(frozen=True)
class Line:
    """One value of a draft.

    Attributes:
        text: In YAML.
        why: A comment, or nothing.
        unsure: A guess that it rests on, or nothing.
    """

    text: str
    why: str = ""
    unsure: str = ""


def grid_line(survey: Survey) -> Line:
    """Say what `tokens.grid` is: of the latent, of ids, of shapes, or of numbers that the call holds."""
    arguments = survey.call.arguments
    latent = next((n for n, a in arguments.items() if "height" in a.shape and "width" in a.shape), None)
    if latent is not None:
        return _of_latent(survey, latent, arguments[latent])
    ids = next((n for n, a in arguments.items() if a.fill == "grid_ids"), None)
    if ids is not None:
        return Line(f"{{ids: {ids}}}", "the model is given tokens; the ids know the grid")
    shapes = next((n for n, a in arguments.items() if a.form == "shapes"), None)
    if shapes is not None:
        return Line(f"{{shapes: {shapes}}}", "the model is given tokens, and their grid as numbers")
    sides = [n for n in ("num_frames", "height", "width") if n in arguments and arguments[n].form == "number"]
    if {"height", "width"} <= set(sides):
        return Line(
            f"{{arguments: [{', '.join(sides)}]}}", "the model is given tokens, and the sides of their grid"
        )
    return Line(
        "{height: 64, width: 64}", "", "nothing in the call says the grid, so it is one fixed grid of 64 x 64"
    )


def _of_latent(survey: Survey, name: str, argument: Argument) -> Line:
    patch, unsure = survey.patch, ""
    said = survey.subject.config.get("patch_size")
    if patch is None:
        patch, unsure = 1, "the patch: the number of tokens is no square fraction of the latent's"
    elif isinstance(said, int) and said != patch and survey.frames == 1:
        unsure = f"the patch: the config says {said}, but sequences have one token for {patch} x {patch} of the latent"
    keys = [f"latent: {name}", f"patch: {patch}"]
    why = (
        f"the latent is cut into {patch} x {patch} patches"
        if patch > 1
        else "a token for each place of the latent"
    )
    if "frames" in argument.shape:
        deep, frames_unsure = _frames_patch(survey)
        keys[1] = f"patch: [{deep}, {patch}, {patch}]"
        why, unsure = "frames, height and width", unsure or frames_unsure
        if argument.shape.index("frames") + 2 != argument.shape.index("width"):
            keys.append(
                f"axes: [{', '.join(str(argument.shape.index(a)) for a in ('frames', 'height', 'width'))}]"
            )
    if rounds_up(survey, patch):
        keys.append("round: up")
        why += ", rounded up as strided convolutions do"
    if only_squares(survey):
        keys.append("square: true")
        why += "; only square latents run"
    return Line(f"{{{', '.join(keys)}}}", why, unsure)


def _frames_patch(survey: Survey) -> tuple[int, str]:
    """Frames of the latent in a token, of what the config says."""
    said = survey.subject.config.get("patch_size")
    if isinstance(said, list | tuple) and len(said) == 3:
        return int(said[0]), ""
    deep = survey.subject.config.get("patch_size_t")
    return (deep, "") if isinstance(deep, int) else (1, "that a token spans one frame of the latent")


def rounds_up(survey: Survey, patch: int) -> bool:
    """Whether a latent that patches do not divide is covered rather than cut: it is tried, on the coarsest grid."""
    alone = [s for s in survey.sites if s.order == "image"]
    coarsest = min(alone, key=lambda s: s.tokens.image)
    edge = patch * survey.level(coarsest)
    sizes = replace(survey.call.sizes, height=survey.call.sizes.height + 1)
    seen: list[int] = []

    def note(_: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        tokens = args[coarsest.input] if isinstance(coarsest.input, int) else kwargs[coarsest.input]
        assert isinstance(tokens, torch.Tensor)
        seen.append(tokens.shape[1])

    handle = survey.model.get_submodule(coarsest.path).register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            survey.model(**survey.call.values(sizes))
    except Exception:  # such a latent does not run at all: it makes no difference
        return False
    finally:
        handle.remove()
    covered = -(-sizes.height // edge) * -(-sizes.width // edge) * survey.frames
    return edge > 1 and bool(seen) and seen[0] == covered


def only_squares(survey: Survey) -> bool:
    """Whether the example call had to be a square one."""
    return survey.call.sizes.height == survey.call.sizes.width


def input_line(survey: Survey, name: str, argument: Argument) -> Line:
    """An argument of the example call as `inputs` have it."""
    renamed = {"patches": "tokens"}
    shape = [str(renamed.get(str(d), d)) for d in argument.shape]
    unsure = _input_unsure(argument)
    if argument.form == "number":
        side = "" if shape[0].isdigit() else "the side of the grid of tokens"
        return Line(shape[0], side, unsure)
    if argument.form == "shapes":
        return Line("{fill: grid_shapes}", "", unsure)
    keys: list[str] = []
    if argument.form == "pair":
        keys.append("copies: 2")
    if argument.form == "list":
        keys.append("copies: batch")
        shape = shape[1:]
    reads = survey.call.reads and (argument.kind, argument.fill) == ("int", "ones")
    fill = "labels" if argument.kind == "int" and not reads else argument.fill
    if fill is not None:
        keys.append(f"fill: {fill}")
    if reads:
        keys.append("read: true")
    if name == "guidance" and survey.subject.config.get("guidance_embeds"):
        keys, fill = [k for k in keys if not k.startswith("fill")] + ["when: guidance_embeds"], None
    shown = f"[{', '.join(shape)}]"
    return Line(f"{{{', '.join([f'shape: {shown}', *keys])}}}" if keys else shown, "", unsure)


def _input_unsure(argument: Argument) -> str:
    if argument.kind == "bool":
        return "the example call has numbers where the model takes truth values"
    return "the sequence of text and image has no name in a recipe" if "sequence" in argument.shape else ""
