"""What an argument of a model's forward may be, by its name and annotation and the config's values.

One rule a function, tried in the order of `RULES`; the first that answers says all there is to try, best first. A
choice may be several arguments, where one is a mapping, or none: the argument is left out.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence

from sdtm_fx.inspecting.arguments import Argument, Dimension
from sdtm_fx.inspecting.facts import Facts, fields_of, is_extra, text_lengths, widths_of

Choice = Mapping[str, Argument]
ABSENT: Choice = {}


Rule = Callable[[inspect.Parameter, Facts], "list[Choice] | None"]


def choices_for(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """All choices for an argument, best first; None where no rule knows it and it has no default."""
    for rule in RULES:
        found = rule(parameter, facts)
        if found is not None:
            return found
    return [ABSENT] if parameter.default is not parameter.empty else None


def _latent(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """The first argument: a latent image, a latent video, or tokens packed by the pipeline."""
    if parameter.name != facts.names[0]:
        return None
    name = parameter.name
    if "list" in str(parameter.annotation).lower():
        return [
            {name: Argument(("batch", c, 1, "height", "width"), form="list")}
            for c in fields_of(facts, "in_channels")
        ]
    found: list[Choice] = []
    for channels in [*fields_of(facts, "in_channels"), *fields_of(facts, "channels", "in_dim")]:
        image: Choice = {name: Argument(("batch", channels, "height", "width"))}
        packed: Choice = {name: Argument(("batch", "tokens", channels))}
        is_packed = {"img_ids", "img_shapes", "txt_ids", "position_ids"} & set(facts.names)
        found += [packed, image] if is_packed else [image, packed]
        found.append({name: Argument(("batch", channels, "frames", "height", "width"))})
        found.append({name: Argument(("batch", "frames", channels, "height", "width"))})
    return _unique(found)


def _flag(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """Switches keep their defaults."""
    return [ABSENT] if isinstance(parameter.default, bool) else None


def _guidance(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """The strength of guidance that was distilled into the model."""
    if parameter.name != "guidance":
        return None
    given: Choice = {parameter.name: Argument(("batch",), "ones")}
    wanted = any("guidance" in name and bool(value) for name, value in facts.config.items())
    return [given, ABSENT] if wanted else [ABSENT, given]


def _time(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """A timestep, one for each sample."""
    if not re.fullmatch(r"t|timesteps?|sigma|r_timestep|timestep_r|noise_level", parameter.name):
        return None
    name = parameter.name
    given: list[Choice] = [{name: Argument(("batch",))}, {name: Argument(("batch",), kind="int")}]
    return [ABSENT, *given] if is_extra(parameter, facts) else given


def _mask(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """A mask over text, or over all tokens: all ones, as for prompts of full length."""
    if "mask" not in parameter.name:
        return None
    name = parameter.name
    lengths: list[Dimension] = [*text_lengths(name, facts), "sequence", "tokens"]
    given: list[Choice] = [
        {name: Argument(("batch", length), "ones", kind)}
        for length in lengths
        for kind in ("float", "bool", "int")
    ]
    return given if parameter.default is parameter.empty else [ABSENT, *given]


def _pooled(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """The prompt as one vector."""
    if not re.search(r"pooled|global_|clip_embed", parameter.name):
        return None
    widths = widths_of(parameter.name, facts, "pooled", "global")
    given: list[Choice] = [{parameter.name: Argument(("batch", w))} for w in widths]
    if parameter.default is parameter.empty:
        return given
    named = any("pooled" in field or "global" in field for field in facts.config)
    return [*given, ABSENT] if named else [ABSENT, *given]


def _ids(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """Positions of tokens: of the image on its grid, of the text at zero."""
    found = re.fullmatch(r"(img|image|txt|text)_ids", parameter.name)
    if found is None:
        return None
    of_image = found[1] in ("img", "image")
    axes = next(
        (v for n, v in facts.config.items() if n.startswith("axes_dim") and isinstance(v, list | tuple)), ()
    )
    length = "tokens" if of_image else "text"
    fill = "grid_ids" if of_image else "zeros"
    found_choices: list[Choice] = []
    for columns in dict.fromkeys([len(axes) or 3, 3, 4]):
        found_choices.append({parameter.name: Argument((length, columns), fill)})  # type: ignore[arg-type]
        found_choices.append({parameter.name: Argument(("batch", length, columns), fill)})  # type: ignore[arg-type]
    return found_choices


def _shapes(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """The grid of each image as numbers."""
    if parameter.name not in ("img_shapes", "img_sizes"):
        return None
    return [{parameter.name: Argument(("batch", 3), form="shapes")}]


def _side(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """The sides of the grid, where tokens are packed."""
    if parameter.name not in ("height", "width", "num_frames"):
        return None
    side = "frames" if parameter.name == "num_frames" else parameter.name
    given: Choice = {parameter.name: Argument((side,), form="number")}
    one: Choice = {parameter.name: Argument((1,), form="number")}
    return [given, one, ABSENT] if side != "frames" else [one, given, ABSENT]


def _sizes(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """Sizes and crops that the model is conditioned on."""
    if not re.search(r"_size$|crop|_coords$", parameter.name):
        return None
    if "meta" in parameter.name:  # original and target size, and crop
        return [{parameter.name: Argument(("batch", 6))}, ABSENT]
    given: Choice = {parameter.name: Argument(("batch", 2), "zeros")}
    return [given] if parameter.default is parameter.empty else [ABSENT, given]


def _class(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """A class instead of a prompt, or a style beside it."""
    if parameter.name not in ("class_labels", "style"):
        return None
    given: Choice = {parameter.name: Argument(("batch",), "zeros", "int")}
    widths = fields_of(facts, "projection_class_embeddings_input_dim")
    vectors: list[Choice] = [{parameter.name: Argument(("batch", w))} for w in widths]
    return [ABSENT, given, *vectors]


def _added(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """The further conditions of U-Nets, in a mapping; what is in it follows from the kind of embedding."""
    if parameter.name != "added_cond_kwargs":
        return None
    name, config = parameter.name, facts.config
    kind = config.get("addition_embed_type")
    if kind in ("text_time", "text_image"):
        times = 6 * (config.get("addition_time_embed_dim") or 0)
        pooled = (config.get("projection_class_embeddings_input_dim") or 0) - times
        return [
            {f"{name}.text_embeds": Argument(("batch", pooled)), f"{name}.time_ids": Argument(("batch", 6))},
            ABSENT,
        ]
    sizes: Choice = {
        f"{name}.resolution": Argument(("batch", 2), "ones"),
        f"{name}.aspect_ratio": Argument(("batch", 1), "ones"),
    }
    embeds: list[Choice] = [
        {f"{name}.image_embeds": Argument(("batch", w))} for w in widths_of(name, facts, "hid")
    ]
    return [ABSENT, sizes, *embeds]


def _rotary(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """Rotary tables made by the pipeline: cosines and sines for image tokens.

    A model that has a module for them, or whose config says that it uses none, is given none.
    """
    if not re.search(r"rotary|rope|freqs", parameter.name):
        return None
    name = parameter.name
    dims: list[Dimension] = [*fields_of(facts, "attention_head_dim", "head_dim")]
    heads, hidden = facts.config.get("num_attention_heads"), facts.config.get("hidden_size")
    if isinstance(heads, int) and isinstance(hidden, int):
        dims.append(hidden // heads)
    lengths = ("patches", "tokens")
    given: list[Choice] = [{name: Argument((n, d), form="pair")} for n in lengths for d in dims]
    if parameter.default is parameter.empty:
        return given
    makes_own = any(re.search(r"rope|rotary", part) for part in facts.parts)
    unused = any("rotary" in n and v is False for n, v in facts.config.items())
    return [ABSENT, *given] if makes_own or unused else [*given, ABSENT]


def _text(parameter: inspect.Parameter, facts: Facts) -> list[Choice] | None:
    """A prompt: one row for each token, as wide as some field of the config says."""
    if not re.search(
        r"encoder_hidden_states|cap_feats|text_embed|caption|prompt_embeds|text_bth", parameter.name
    ):
        return None
    name = parameter.name
    widths = widths_of(
        name, facts, "joint", "cross_attention_dim", "caption", "text", "cap_", "encoder_hid", "context"
    )
    if "list" in str(parameter.annotation).lower():
        return [{name: Argument(("batch", "text", w), form="list")} for w in widths]
    lengths = text_lengths(name, facts)
    given: list[Choice] = [{name: Argument(("batch", length, w))} for length in lengths for w in widths]
    extra = is_extra(parameter, facts) or name.endswith(("image", "_1", "_2"))
    return [ABSENT, *given] if extra and parameter.default is not parameter.empty else given


RULES: Sequence[Rule] = (
    _latent, _flag, _guidance, _time, _mask, _pooled, _ids, _shapes, _side, _class, _added, _rotary, _text, _sizes,
)  # fmt: skip
"""In this order: a name that several could mean goes to the first."""


def _unique(choices: list[Choice]) -> list[Choice]:
    return list({str(sorted(c.items())): c for c in choices}.values())
