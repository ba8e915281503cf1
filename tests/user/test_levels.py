"""Models whose blocks run on several grids: the U-Net of SDXL, with cross-attention and skip connections."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import sdtm_fx
from sdtm_fx.cost.counter import MacCounter
from sdtm_fx.errors import RecipeError, ScheduleError, SiteError
from sdtm_fx.explaining.explain import _native_grid
from sdtm_fx.layer_rates import LayerRates
from sdtm_fx.methods import SSM, ToMe, Uniform
from sdtm_fx.recipe.tokens import LatentGrid, Tokens
from sdtm_fx.rewriting.rewriting import rewriting_of
from sdtm_fx.runtime.grid import GridReader
from sdtm_fx.runtime.guidance import pooled
from tests.unets import MERGED, SMALL, lengths, run_steps, sdxl_inputs, tiny_sdxl
from tests.user.cases import the_rewriting

FINE = ("down_blocks.1", "up_blocks.1")


def rules(**changes: Any) -> sdtm_fx.Recipe:
    return sdtm_fx.load_recipe("sdxl").override({**SMALL, **changes})


@functools.cache
def the_unet() -> nn.Module:
    return tiny_sdxl()


@pytest.fixture
def unet() -> Iterator[nn.Module]:
    """One model for all tests of the file, dense again after each."""
    yield the_unet()
    if rewriting_of(the_unet()) is not None:
        sdtm_fx.restore(the_unet())


@pytest.fixture(scope="module")
def merging() -> nn.Module:
    """A model whose every step merges 0.6 of the tokens, rewritten once for all tests that run it."""
    return sdtm_fx.rewrite(tiny_sdxl(), rules(**MERGED, **{"ratio.start": 0.6}))


@functools.cache
def plain(latent: tuple[int, int]) -> torch.Tensor:
    """What the model returns when it is not rewritten."""
    with torch.no_grad():
        return tiny_sdxl()(**sdxl_inputs(latent))[0]


def by_level(seen: Mapping[str, int]) -> tuple[set[int], set[int]]:
    """Token counts at the finer and at the coarser level."""
    fine = {path: count for path, count in seen.items() if path.startswith(FINE)}
    return set(fine.values()), {count for path, count in seen.items() if path not in fine}


def test_ratio_zero_and_restore_are_the_original_bit_for_bit(unet: nn.Module) -> None:
    sdtm_fx.rewrite(unet, rules(**{"ratio.start": 0.0}))
    assert torch.equal(run_steps(unet, sdxl_inputs(), 1)[0], plain((32, 24)))
    sdtm_fx.restore(unet)
    with torch.no_grad():
        assert torch.equal(unet(**sdxl_inputs())[0], plain((32, 24)))


def test_every_level_merges_its_part_on_its_grid_and_costs_what_is_said(merging: nn.Module) -> None:
    unet = merging
    for latent, fine, coarse in (((32, 24), 192, 48), ((26, 30), 195, 56)):
        grid, inputs = (latent[0] // 2, latent[1] // 2), sdxl_inputs(latent)
        told = sdtm_fx.explain(unet, steps=2, grid=grid, batch=2, text=5, quiet=True)
        with torch.no_grad(), sdtm_fx.steps(unet, 2) as clock:
            for step, phase in enumerate(told.phases):
                clock.step = step
                with MacCounter() as counter:
                    unet(**inputs)
                assert phase.macs.total == pytest.approx(counter.macs.total, rel=1e-6)
                assert phase.macs.linear == pytest.approx(counter.macs.linear, rel=1e-6)
                sites = [site for site in told.sites if site.phase == step and site.skipped is None]
                removed = {site.site: site.tokens_before - site.tokens_after for site in sites}
                assert {(site.site, site.tokens_before) for site in sites} == {
                    ("self", fine), ("ff", fine), ("coarse_self", coarse), ("coarse_ff", coarse)
                }  # fmt: skip
                assert removed["ff"] == phase.removed == pytest.approx(0.6 * fine, abs=2)
                assert removed["coarse_ff"] == pytest.approx(0.6 * coarse, abs=2)


def test_odd_latents_round_up(merging: nn.Module) -> None:
    with lengths(merging, ".ff") as seen:
        (output,) = run_steps(merging, sdxl_inputs((25, 31)), 1)  # 13 x 16 and 7 x 8 tokens
    assert output.shape[-2:] == (25, 31)
    assert by_level(seen) == ({208 - 125}, {56 - 34})


def test_forecasts_kept_plans_and_ages_have_the_size_of_their_level(unet: nn.Module) -> None:
    keep = {"keep_dense": {"first_steps": 2, "last_steps": 0, "every_steps": 5}, "plan.every_steps": 2}
    sdtm_fx.rewrite(unet, rules(**keep, **{"stages.*.method": {"name": "ssm", "age_weight": 0.05}}))
    first = run_steps(unet, sdxl_inputs(), 10)
    (branch,) = the_rewriting(unet).runtime.state.branches.values()
    assert {plan.tokens for plan in branch.plans.values()} == {192, 48}
    assert {ages.shape[1] for ages in branch.ages.values()} == {192, 48}
    assert all(bool(out.isfinite().all()) for out in first)
    again = run_steps(unet, sdxl_inputs(), 10)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_recorded_plans_are_on_the_grid_of_their_block(merging: nn.Module) -> None:
    with sdtm_fx.record_plans(merging) as record:
        run_steps(merging, sdxl_inputs(), 1)
    sites = record.at(action="merged")
    assert {site.grid for site in sites} == {(16, 12), (8, 6)}
    assert all(site.assign.shape[-1] == site.grid[0] * site.grid[1] for site in sites)
    dense = record.at(action="dense")
    assert {site.kept for site in dense if site.site == "coarse_cross"} == {48}


def test_a_full_ratio_is_full_at_every_level() -> None:
    rates, grid = LayerRates(levels={1: 2}, round_to=64), (13, 15)
    assert (
        rates.remove(1, Uniform().capacity(grid), Uniform(), grid) == Uniform().capacity((7, 8)) == 3 * 3 * 4
    )


def test_importance_is_averaged_over_the_tokens_of_a_level() -> None:
    scores = torch.arange(12.0).reshape(1, 12)
    assert pooled(scores, (4, 3), (4, 3)) is scores
    assert pooled(scores, (4, 3), (2, 1)).tolist() == [[2.5, 8.5]]
    assert pooled(scores, (4, 3), (2, 2)).shape == (1, 4)


def test_a_latent_may_be_covered() -> None:
    reader = GridReader(Tokens(grid=LatentGrid(latent="x", patch=2, round="up")))
    assert reader.read({"x": torch.zeros(1, 4, 7, 9)}).grid == (4, 5)
    assert reader.read({"x": torch.zeros(1, 4, 8, 10)}).grid == (4, 5)


def test_defaults_keep_the_fingerprint_and_other_values_change_it() -> None:
    plain = sdtm_fx.load_recipe("sd3-medium-windows")
    written = plain.override({"sites.*.downsample": 1, "tokens.grid.round": "down"})
    assert written.fingerprint() == plain.fingerprint()
    others = [plain.override({"sites.ff.downsample": 2}), plain.override({"tokens.grid.round": "up"})]
    assert len({plain.fingerprint(), *(other.fingerprint() for other in others)}) == 3
    assert written.to_data()["tokens"]["grid"]["round"] == "down", "the data itself is left as it is"


# -- what is refused -----------------------------------------------------------------------------------


def test_the_sites_of_a_block_have_the_same_tokens(unet: nn.Module) -> None:
    with pytest.raises(
        SiteError,
        match=r"sites 'coarse_self' \(downsample 2\) and 'coarse_cross' \(downsample 3\) both lie in "
        r"down_blocks\.2\.attentions\.0\.transformer_blocks\.0; the sites of a block have the same tokens",
    ):
        sdtm_fx.rewrite(unet, rules(**{"sites.coarse_cross.downsample": 3}))


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"plan.every_layers": 3}, r"a plan \(plan.every_layers\)"),
        ({"plan.ages": "call"}, r"ages \(plan.ages: call\)"),
    ],
)
def test_levels_share_nothing(unet: nn.Module, changes: dict[str, Any], shared: str) -> None:
    with pytest.raises(
        SiteError, match=rf"\(downsample 1\) and down_blocks\.2\S+ \(downsample 2\) would share {shared}"
    ):
        sdtm_fx.rewrite(unet, rules(**changes))


def test_a_ratio_out_of_reach_at_a_level_is_an_error() -> None:
    rates, ssm = LayerRates(levels={1: 2}), SSM()
    assert rates.remove(1, 189, ssm, (18, 14)) == 36, (
        "all that can go of the grid is all that can go of the level"
    )
    with pytest.raises(
        ScheduleError,
        match=r"ssm: found ratio 0\.7262 at a level of 9x7 tokens \(grid 18x14\); it can remove at most 36 of 63 "
        r"there \(ratio 0\.571",
    ):
        rates.remove(1, 183, ssm, (18, 14))


def test_a_wrong_level_is_an_error(unet: nn.Module) -> None:
    wrong = {f"sites.coarse_{name}.downsample": 4 for name in ("self", "cross", "ff")}
    with pytest.raises(
        SiteError,
        match=r"down_blocks\.2\S+ does not run on a grid of 8x6 tokens where the recipe's is 32x24 "
        r"\(downsample 4\): merge: found a tensor of shape \(2, 192, 32\)",
    ):
        sdtm_fx.rewrite(unet, rules(**wrong))


def test_a_threshold_counts_on_one_grid() -> None:
    tome = {"stages.*.method": {"name": "ca_tome"}, "ratio": {"threshold": 0.7, "start": 0.5}, "reuse": None}
    with pytest.raises(
        RecipeError,
        match=r"a threshold in stage 'structure', whose site 'coarse_self' has tokens of its own size; accepted "
        r"a threshold only where all tokens are those of `tokens.grid`",
    ):
        rules(**tome)
    assert rules(**tome, **{"stages.*.sites": ["self", "ff"]}).ratio.start == 0.5


def test_the_gate_says_that_it_does_not_weigh_levels(merging: nn.Module) -> None:
    told = sdtm_fx.explain(merging, steps=6, grid=(16, 12), batch=2, text=5, quiet=True).gate
    assert (told.active, told.says) == (
        False, "does not weigh sites on several grids: the recipe merges wherever it says"
    )  # fmt: skip


def test_the_native_grid_is_that_of_the_recipe(unet: nn.Module) -> None:
    assert _native_grid(unet, rules()) == (8, 8), "sample_size 16, two latent pixels a token"


def test_levels_round_up_and_keep_counts_near_the_ratio() -> None:
    rates = LayerRates(levels={1: 2}, scales={2: 0.5}, round_to=64)
    assert rates.grid(1, (65, 63)) == (33, 32)
    assert rates.removes(2048, ToMe(), (64, 64)) == {1: 512, 2: 1024}
    assert LayerRates(levels={1: 2}, scales={1: 0.5}).removes(2048, ToMe(), (64, 64)) == {1: 256}
    assert LayerRates(levels={1: 2}).remove(1, 0, ToMe(), (64, 64)) == 0
