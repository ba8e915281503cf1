"""The base of every part of a recipe: frozen, strict, no unknown keys."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


class Part(BaseModel):
    """A section of a recipe. The docstring under each field is its description in the JSON Schema."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def text_of(words: str, pattern: str) -> FieldInfo:
    """Return the constraint that text matches a pattern, and what to call such text in errors."""
    return Field(pattern=pattern, json_schema_extra={"$comment": words})


Count: TypeAlias = Annotated[int, Field(ge=0)]
Positive: TypeAlias = Annotated[int, Field(ge=1)]
Removed: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Text: TypeAlias = Annotated[str, text_of("text that is not empty", r".")]
Label: TypeAlias = Annotated[
    str, text_of("a name of letters, digits, _ and -, that starts with a letter", r"^[A-Za-z][A-Za-z0-9_-]*$")
]
Identifier: TypeAlias = Annotated[
    str,
    text_of("a name of letters, digits and _, that starts with a letter or _", r"^[A-Za-z_][A-Za-z0-9_]*$"),
]
Version: TypeAlias = Annotated[
    str, text_of("a version in quotes, such as '0.37'", r"^[0-9]+(\.[0-9]+){1,2}$")
]
RecipeName: TypeAlias = Annotated[
    str,
    text_of(
        "a name of letters, digits, _, - and ., in parts separated by /",
        r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*$",
    ),
]
