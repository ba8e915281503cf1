"""Errors of plans and methods: what was found, what is accepted; and options as recipes write them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from sdtm_fx.errors import PlanError
from sdtm_fx.methods import (
    FIDM,
    IDM,
    METHODS,
    SSM,
    AnyMethod,
    CAToMe,
    Importance,
    LocalMatch,
    OptionError,
    Random,
    SiTo,
    Skip,
    ToFu,
    TokenCache,
    TokenView,
    ToMA,
    ToMe,
    Uniform,
    plan_merge,
)

X = torch.zeros(2, 35, 4)
VIEW = TokenView(X, (5, 7))
METHOD: TypeAdapter[Any] = TypeAdapter(AnyMethod)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SSM().plan(VIEW, 19), r"ssm on a 5x7 grid: found 19 .*0 to 18 in multiples of 3 .*: 18\)"),
        (lambda: SSM().plan(VIEW, 10), r"found 10 .*multiples of 3 \(nearest below: 9\)"),
        (lambda: FIDM().plan(VIEW, -1), r"fidm on a 5x7 grid: found -1 .*\(nearest below: 0\)"),
        (lambda: ToMe().plan(VIEW, 30), r"tome .*found 30 .*0 to 29"),
        (lambda: ToMe().plan(TokenView(X, (1, 35)), 1), r"found 1 .*0 to 0"),
        (
            lambda: SSM().plan(TokenView(X, (5, 8)), 3),
            r"\(2, 35, 4\) on a 5x8 grid; accepted \[batch, 40, width\]",
        ),
        (lambda: SSM().plan(TokenView(X[0], (5, 7)), 3), r"\(35, 4\) on a 5x7 grid"),
        (
            lambda: SSM().plan(TokenView(X, (5, 7), ages=torch.zeros(35)), 3),
            r"ages of shape \(35,\); accepted \[2, 35\]",
        ),
        (lambda: IDM().plan(VIEW, 3), r"idm: found no attention"),
        (
            lambda: IDM().plan(TokenView(X, (5, 7), attention=torch.zeros(2, 3)), 3),
            r"attention of shape \(2, 3\)",
        ),
        (lambda: Random().plan(VIEW, 35), r"random on a 5x7 grid: found 35 .*0 to 34 in multiples of 1"),
        (lambda: Uniform().plan(VIEW, 7), r"uniform .*found 7 .*0 to 18 in multiples of 3 .*: 6\)"),
        (lambda: SiTo().plan(VIEW, 30), r"sito on a 5x7 grid: found 30 .*0 to 29 in multiples of 1"),
        (lambda: Importance().plan(VIEW, 28), r"importance on a 5x7 grid: found 28 .*0 to 27"),
        (lambda: Importance().plan(VIEW, 3), r"importance: found no importance; accepted \[batch, tokens\]"),
        (
            lambda: Importance().plan(TokenView(X, (5, 7), importance=torch.zeros(1, 35)), 3),
            r"importance of shape \(1, 35\); accepted \[2, 35\]",
        ),
        (lambda: ToMe().count_above(VIEW, 0.5), r"tome: found a threshold; accepted a ratio"),
        (lambda: plan_merge("tofo", X, grid=(5, 7), remove=3), r"did you mean 'tofu'"),
        (lambda: ToMA().plan(VIEW, 16), r"toma on a 5x7 grid: found 16 .*0 to 15 in multiples of 1"),
        (
            lambda: SSM().replan(VIEW, 3, SSM().plan(VIEW, 3)),
            r"ssm: found a request to keep destinations; it chooses none",
        ),
        (
            lambda: ToMA().replan(VIEW, 3, ToMA().plan(VIEW, 4)),
            r"toma: found a former plan that removes 4 of 35 tokens; accepted one that removes 3 of 35",
        ),
        (lambda: Skip().plan(VIEW, 35), r"skip: .*has no plan"),
        (
            lambda: TokenCache().plan(VIEW, 35),
            r"token_cache on a 5x7 grid: found 35 .*0 to 34 in multiples of 1",
        ),
        (
            lambda: TokenCache().plan(VIEW, 3),
            r"token_cache: found no attention; accepted \[batch, tokens\], .*or rank 'random'",
        ),
        (
            lambda: TokenCache(rank="random").plan(VIEW, 3).reduced_by("mean"),
            r"found reduce 'mean' for tokens that are computed alone; accepted 'prune'",
        ),
        (lambda: TokenCache().count_above(VIEW, 0.5), r"token_cache: found a threshold; accepted a ratio"),
        (lambda: plan_merge("token_cach", X, grid=(5, 7), remove=3), r"did you mean 'token_cache'"),
        (lambda: plan_merge("smm", X, grid=(5, 7), remove=3), r"'smm'; accepted ssm, .*did you mean 'ssm'"),
        (lambda: plan_merge("ssm", X, grid=(5, 7), remove=3, windw=(2, 2)), r"ssm\.windw: Unexpected"),
        (lambda: plan_merge(SSM(), X, grid=(5, 7), remove=3, window=(2, 2)), r"options \['window'\] beside"),
        (lambda: plan_merge("ssm", X, grid=(5, 7), remove=3, age_weight="big"), r"ssm\.age_weight: .*'big'"),
    ],
)
def test_plans_that_cannot_be_made(call: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SSM(window=(1, 1)), r"ssm: found window \(1, 1\); accepted .*two tokens"),
        (lambda: Uniform(window=(1, 1)), r"uniform: found window \(1, 1\); accepted .*two tokens"),
        (lambda: FIDM(window=(0, 2)), r"fidm: found window \(0, 2\)"),
        (lambda: SSM(age_sign=0), r"ssm: found age_sign 0; accepted 1 .*or -1"),  # type: ignore[arg-type]
        (lambda: LocalMatch(radius=-1), r"local_match: found radius -1; accepted 0 or more"),
        (lambda: SiTo(window=(1, 1)), r"sito: found window \(1, 1\)"),
        (lambda: ToFu(window=(1, 1)), r"tofu: found window \(1, 1\)"),
        (lambda: Importance(pool=0.5), r"importance: found pool 0.5; accepted 1 or more"),
        (
            lambda: Importance(destinations=1.0),
            r"importance: found destinations 1; accepted above 0, below 1",
        ),
        (lambda: ToMA(tile=(1, 1)), r"toma: found window \(1, 1\); accepted .*two tokens"),
        (lambda: ToMA(stripes=0), r"toma: found 0 stripes; accepted 1 or more"),
        (lambda: ToMA(temperature=0.0), r"toma: found temperature 0.0; accepted 1e-06 or more"),
        (lambda: ToMA(temperature=float("nan")), r"toma: found temperature nan"),
        (
            lambda: ToMA(region="tile", select="stripe"),
            r"toma: found select 'stripe' with region 'tile'; accepted 'tile'",
        ),
        (lambda: ToMA(region="stripe", select="global"), r"found select 'global' .*accepted 'stripe'"),
        (lambda: IDM(radius=1), r"idm: found radius 1 and rank 'inattentive' without a window"),
        (lambda: IDM(rank="both"), r"rank 'both' without a window"),
        (lambda: TokenCache(window=(1, 1)), r"token_cache: found window \(1, 1\); accepted .*two tokens"),
        (lambda: TokenCache(interval=0), r"token_cache: found interval 0; accepted 1 or more steps"),
    ],
)
def test_options_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.parametrize(
    ("written", "method"),
    [
        ({"name": "ssm", "window": [2, 2], "age_weight": 0.05}, SSM()),
        ({"name": "idm", "probe_queries": None, "window": [2, 4]}, IDM(window=(2, 4), probe_queries=None)),
        ({"name": "tome", "random": False}, ToMe(random=False)),
        ({"name": "local_match", "radius": 2, "age_weight": 1}, LocalMatch(radius=2, age_weight=1.0)),
        ({"name": "fidm", "target": "random"}, FIDM(target="random")),
        ({"name": "fidm", "target": "youngest"}, FIDM(target="youngest")),
        ({"name": "ssm", "select": "dissimilar"}, SSM(select="dissimilar")),
        ({"name": "random"}, Random()),
        ({"name": "tofu", "reduce": "prune"}, ToFu(reduce="prune")),
        ({"name": "ca_tome", "random": False}, CAToMe(random=False)),
        ({"name": "sito", "sim_beta": 2, "noise_alpha": 0.0}, SiTo(sim_beta=2.0, noise_alpha=0.0)),
        ({"name": "importance", "metric": "grid", "pool": 1.4}, Importance(metric="grid", pool=1.4)),
        ({"name": "toma"}, ToMA(region="global", select=None, tile=(4, 4), temperature=0.001)),
        (
            {"name": "toma", "region": "stripe", "stripes": 8, "unmerge": "pseudo_inverse"},
            ToMA(region="stripe", stripes=8, unmerge="pseudo_inverse"),
        ),
        ({"name": "uniform", "window": [4, 4]}, Uniform(window=(4, 4))),
        (
            {"name": "token_cache", "rank": "random", "interval": 4, "probe_queries": None},
            TokenCache(rank="random", interval=4, probe_queries=None),
        ),
        ({"name": "skip"}, Skip()),
    ],
)
def test_recipes_write_options_as_mappings(written: dict[str, object], method: object) -> None:
    assert METHOD.validate_python(written) == method
    assert METHOD.validate_python(METHOD.dump_python(method, mode="json")) == method


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ({"name": "ssm", "window": ["2", 2]}, ("ssm", "window", 0)),
        ({"name": "ssm", "window": [2, 2, 2, 2]}, ("ssm", "window")),
        ({"name": "ssm", "window": [1, 1]}, ("ssm",)),
        ({"name": "ssm", "age_weight": "0.1"}, ("ssm", "age_weight")),
        ({"name": "ssm", "age_weight": float("nan")}, ("ssm", "age_weight")),
        ({"name": "ssm", "age_wieght": 0.1}, ("ssm", "age_wieght")),
        ({"name": "ssm", "select": "randon"}, ("ssm", "select")),
        ({"name": "random", "window": [2, 2]}, ("random", "window")),
        ({"name": "tome", "random": 1}, ("tome", "random")),
        ({"name": "tofu", "reduce": "meen"}, ("tofu", "reduce")),
        ({"name": "tofu", "redcue": "mean"}, ("tofu", "redcue")),
        ({"name": "sito", "sim_beta": -1}, ("sito", "sim_beta")),
        ({"name": "importance", "pool": 0.9}, ("importance", "pool")),
        ({"name": "idm", "probe_queries": 0}, ("idm", "probe_queries")),
        ({"name": "idm", "radius": 1}, ("idm",)),
        ({"name": "to_do"}, ()),
        ({"name": "token_cache", "rank": "randon"}, ("token_cache", "rank")),
        ({"name": "token_cache", "bonus": -0.1}, ("token_cache", "bonus")),
        ({"name": "token_cache", "interval": 0}, ("token_cache", "interval")),
        ({"name": "token_cache", "age_weigth": 0.1}, ("token_cache", "age_weigth")),
        ({"name": "toma", "region": "tiles"}, ("toma", "region")),
        ({"name": "toma", "temperature": 0}, ("toma", "temperature")),
        ({"name": "toma", "tile": [4]}, ("toma", "tile")),
        ({"name": "toma", "region": "tile", "select": "global"}, ("toma",)),
        ({"name": "toma", "windw": [4, 4]}, ("toma", "windw")),
    ],
)
def test_a_wrong_option_is_placed(written: dict[str, object], place: tuple[object, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        METHOD.validate_python(written)
    assert caught.value.errors()[0]["loc"][: len(place)] == place


def test_every_method_is_in_the_union() -> None:
    for name, kind in METHODS.items():
        assert type(METHOD.validate_python({"name": name})) is kind
    assert Skip().capacity((5, 7)) == 35
