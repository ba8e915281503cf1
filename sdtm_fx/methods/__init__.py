"""Merging methods, one per file, and `plan_merge` to call them by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from sdtm_fx.attention_score import AttentionHeads
from sdtm_fx.base_plan import Plan
from sdtm_fx.errors import PlanError, nearest
from sdtm_fx.grids import TokenGrid
from sdtm_fx.methods.at_edm import AtEdm
from sdtm_fx.methods.base import Method, OptionError, TokenView
from sdtm_fx.methods.ca_tome import CAToMe
from sdtm_fx.methods.fidm import FIDM
from sdtm_fx.methods.idm import IDM
from sdtm_fx.methods.importance import Importance
from sdtm_fx.methods.local_match import LocalMatch
from sdtm_fx.methods.random import Random
from sdtm_fx.methods.sito import SiTo
from sdtm_fx.methods.skip import Skip
from sdtm_fx.methods.ssm import SSM
from sdtm_fx.methods.todo import ToDo
from sdtm_fx.methods.tofu import ToFu
from sdtm_fx.methods.token_cache import TokenCache
from sdtm_fx.methods.toma import ToMA
from sdtm_fx.methods.tome import ToMe
from sdtm_fx.methods.uniform import Uniform

__all__ = [
    "FIDM",
    "IDM",
    "METHODS",
    "SSM",
    "AnyMethod",
    "AtEdm",
    "CAToMe",
    "Importance",
    "LocalMatch",
    "Method",
    "OptionError",
    "Random",
    "SiTo",
    "Skip",
    "ToDo",
    "ToFu",
    "ToMA",
    "ToMe",
    "TokenCache",
    "TokenView",
    "Uniform",
    "method_named",
    "plan_merge",
]

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {
        "ssm": SSM,
        "idm": IDM,
        "fidm": FIDM,
        "local_match": LocalMatch,
        "tome": ToMe,
        "tofu": ToFu,
        "ca_tome": CAToMe,
        "sito": SiTo,
        "importance": Importance,
        "toma": ToMA,
        "at_edm": AtEdm,
        "random": Random,
        "uniform": Uniform,
        "todo": ToDo,
        "token_cache": TokenCache,
        "skip": Skip,
    }
)
"""The methods by the name that recipes use."""

AnyMethod = Annotated[
    SSM
    | IDM
    | FIDM
    | LocalMatch
    | ToMe
    | ToFu
    | CAToMe
    | SiTo
    | Importance
    | ToMA
    | AtEdm
    | Random
    | Uniform
    | ToDo
    | TokenCache
    | Skip,
    Field(discriminator="name"),
]
"""The type of a recipe's `method` key; `name` says which one it is."""


def plan_merge(
    method: str | Method,
    metric: Tensor,
    *,
    grid: TokenGrid,
    remove: int,
    ages: Tensor | None = None,
    attention: Tensor | None = None,
    importance: Tensor | None = None,
    heads: AttentionHeads | None = None,
    salt: int | Tensor = 0,
    **options: object,
) -> Plan:
    """Choose which tokens of a grid share a slot.

    Args:
        method: A method, or the name of one whose options follow as keywords.
        metric: [B, N, D] float, the tokens in raster order.
        grid: Height and width of the token grid.
        remove: How many tokens go.
        ages: [B, N] int32, steps since each token was last alone in its slot.
        attention: [B, N] float, attention received by each token (`idm` and `token_cache` need it).
        importance: [B, N] float, what guidance changes at each token (`importance` needs it).
        heads: Queries and keys of the image tokens (`at_edm` needs them).
        salt: Counter from which methods draw what they choose at random.
        **options: Options of the named method.

    Raises:
        PlanError: No such method or option, or the plan is out of reach.
    """
    chosen = _make_method(method, options)
    view = TokenView(
        metric=metric,
        grid=grid,
        ages=ages,
        attention=attention,
        salt=salt,
        importance=importance,
        heads=heads,
    )
    return chosen.plan(view, remove)


def method_named(name: str) -> type[Method]:
    """Return the method that recipes call `name`.

    Raises:
        PlanError: There is none.
    """
    if name not in METHODS:
        raise PlanError(f"found method {name!r}; accepted {', '.join(METHODS)}{nearest(name, METHODS)}")
    return METHODS[name]


def _make_method(method: str | Method, options: dict[str, object]) -> Method:
    if isinstance(method, Method):
        if options:
            raise PlanError(f"plan_merge: found options {sorted(options)} beside a method that has its own")
        return method
    named = method_named(method)
    try:
        return TypeAdapter(named).validate_python(options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise PlanError(f"plan_merge: {method}.{key}: {first['msg']}, found {first['input']!r}") from error
