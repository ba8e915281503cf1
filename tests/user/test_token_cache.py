"""`token_cache` on small SD3 and FLUX models and the toys: against the plain model with hooks, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sdtm_fx
from sdtm_fx.evaluate.fidelity import psnr
from sdtm_fx.toy import load_toy
from tests.compiling.counting import Graphs, graph_breaks, no_new_graph
from tests.user.cases import (
    FLUX_ATTENTION,
    FLUX_DEV,
    SD3,
    all_equal,
    moving,
    run_plain,
    run_steps,
    the_rewriting,
)

STEPS, EVERY, TOKENS = 8, 3, 64
CACHE: dict[str, Any] = {"name": "token_cache", "probe_queries": None}
RANDOM: dict[str, Any] = {"name": "token_cache", "rank": "random"}
# Products over fewer rows add in another order, and what is computed goes on to the next step.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def rules(
    method: dict[str, Any] = CACHE, order: int = 0, update: str = "tokens", **more: Any
) -> dict[str, Any]:
    return {
        "stages.*.method": method,
        "stages.*.sites": ["ff"],
        "ratio": {"curve": "constant", "start": 0.7},
        "keep_dense": {"first_steps": 1, "last_steps": 0, "every_steps": EVERY},
        "reuse": {"order": order, "weight": 0.0, "update": update},
        "plan.share": [],
        **more,
    }


# -- the same on the plain model, with hooks -----------------------------------------------------------


class Stored:
    """What one module has put out, token by token: step and value of each time that it was computed."""

    def __init__(self, order: int, update: str) -> None:
        self.order, self.update = order, update
        self.known: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}

    def store(self, output: Tensor, fresh: Tensor, step: int, dense: bool) -> None:
        for sample, token in fresh.nonzero().tolist():
            if dense or self.update == "tokens":
                self.known.setdefault((sample, token), []).append((step, output[sample, token].clone()))

    def recall(self, sample: int, token: int, step: int) -> Tensor:
        (when, value), *before = reversed(self.known[sample, token])
        if self.order == 0 or not before:
            return value
        earlier, former = before[0]
        return value + (value - former) * (step - when) / (when - earlier)


class Reference:
    """Hooks on the feed-forwards of a plain model that cache tokens as ToCa says, in plain loops."""

    def __init__(self, model: nn.Module, patch: pytest.MonkeyPatch, order: int, update: str) -> None:
        self.step, self.kept, self.chosen = 0, 0, list[list[list[int]]]()
        blocks = list(model.transformer_blocks)  # type: ignore[arg-type]
        self._stored = {id(block.ff): Stored(order, update) for block in blocks}
        self._ages = {id(block.ff): torch.zeros(2, TOKENS) for block in blocks}
        self._map: Tensor | None = None
        self._hooks = [block.ff.register_forward_hook(self._feed_forward) for block in blocks]
        own = functional.scaled_dot_product_attention

        def attend(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self._map = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
            return own(query, key, *args, **kwargs)

        patch.setattr(functional, "scaled_dot_product_attention", attend)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _feed_forward(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        stored, ages, dense = self._stored[id(module)], self._ages[id(module)], self.step % EVERY == 0
        fresh = torch.ones(2, TOKENS, dtype=torch.bool)
        if not dense:
            fresh = self._choose(ages)
        ages.add_(1).masked_fill_(fresh, 0)
        result = output.clone()
        for sample, token in (~fresh).nonzero().tolist():
            result[sample, token] = stored.recall(sample, token, self.step)
        stored.store(output, fresh, self.step, dense)
        return result

    def _choose(self, ages: Tensor) -> Tensor:
        assert self._map is not None
        received = self._map[:, :, :TOKENS, :TOKENS].sum(dim=(1, 2))
        score = received / received.norm(dim=1, keepdim=True) + 0.25 * ages / 3
        fresh = torch.zeros(2, TOKENS, dtype=torch.bool)
        for sample in range(2):
            for row in range(0, 8, 2):
                for column in range(0, 8, 2):
                    window = [8 * (row + i) + column + j for i in range(2) for j in range(2)]
                    score[sample, max(window, key=lambda token: float(score[sample, token]))] *= 1.6
            fresh[sample, score[sample].topk(self.kept).indices] = True
        self.chosen.append([row.nonzero().flatten().tolist() for row in fresh])
        return fresh


@pytest.mark.parametrize(
    ("order", "update"), [(0, "tokens"), (1, "tokens"), (0, "dense"), (1, "dense")], ids=str
)
def test_it_is_what_hooks_make_of_the_plain_model(
    monkeypatch: pytest.MonkeyPatch, order: int, update: str
) -> None:
    model, inputs = SD3.model(), SD3.inputs()
    # Stored in front of the gate, as in the released code; only there can a hook store, too.
    recipe = SD3.recipe(rules(order=order, update=update, **{"passes.sink_unmerge": False}))
    sdtm_fx.rewrite(model, recipe)
    with sdtm_fx.record_plans(model) as record:
        ours = run_steps(model, inputs, STEPS)
    sdtm_fx.restore(model)
    merged = record.at(action="merged")
    assert len(merged) == 2 * 5  # two blocks, five of eight steps
    assert all(site.kept == round(0.3 * TOKENS) for site in merged)
    with monkeypatch.context() as patch:
        reference = Reference(model, patch, order, update)
        reference.kept, theirs = merged[0].kept, []
        with torch.no_grad():
            for step in range(STEPS):
                reference.step = step
                theirs.append(model(**moving(inputs, step, STEPS))[0])
        reference.remove()
    assert [site.positions.tolist() for site in merged] == reference.chosen  # type: ignore[union-attr]
    torch.testing.assert_close(ours, theirs, **ROUNDING)
    plain = run_plain(model, inputs, STEPS)
    assert torch.equal(ours[0], plain[0])
    assert not torch.allclose(ours[1], plain[1], **ROUNDING)


def test_merged_attention_computes_the_kept_tokens_among_themselves() -> None:
    """Queries and keys are those of the kept tokens and of the text; all other outputs are the stored ones."""
    model, inputs = SD3.model(), SD3.inputs()
    changes = {"passes.sink_unmerge": False, "stages.*.sites": ["attn", "ff"]}
    sdtm_fx.rewrite(model, SD3.recipe(rules(RANDOM, **changes)))
    with sdtm_fx.record_plans(model) as record:
        ours = run_steps(model, inputs, 4)
    sdtm_fx.restore(model)
    chosen = {(s.step, s.path): s.positions.long() for s in record.at(action="merged")}  # type: ignore[union-attr]
    assert len(chosen) == 2 * 2 * 2  # steps 1 and 2, two blocks, two sites
    stored: dict[str, Tensor] = {}
    now = [0]

    def narrow(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            if (now[0], path) not in chosen:
                return None
            rows = chosen[now[0], path]
            pick = lambda x: torch.stack([x[b, rows[b]] for b in range(2)])  # noqa: E731
            if args:
                return (pick(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": pick(kwargs["hidden_states"])}

        return hook

    def widen(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            image = output[0] if isinstance(output, tuple) else output
            if (now[0], path) in chosen:
                for sample, rows in enumerate(chosen[now[0], path]):
                    stored[path][sample, rows] = image[sample]
            else:
                stored[path] = image.clone()
            full = stored[path].clone()
            return (full, *output[1:]) if isinstance(output, tuple) else full

        return hook

    for _, path in list(chosen):
        module = model.get_submodule(path)
        if not module._forward_hooks:
            module.register_forward_pre_hook(narrow(path), with_kwargs=True)
            module.register_forward_hook(widen(path))
    theirs = []
    with torch.no_grad():
        for step in range(4):
            now[0] = step
            theirs.append(model(**moving(inputs, step, 4))[0])
    torch.testing.assert_close(ours, theirs, **ROUNDING)


# -- as users have it ------------------------------------------------------------------------------------


FLUX_SITES = {"stages.*.sites": ["ff", "single_ff"]}
ALL_SITES = {"stages.*.sites": ["attn", "ff", "single_attn", "single_ff"], "plan.share": ["batch"]}
USES = [
    pytest.param(SD3, rules(), id="sd3"),
    pytest.param(FLUX_DEV, rules(order=1, **FLUX_SITES), id="flux"),
    pytest.param(FLUX_ATTENTION, rules(RANDOM, **ALL_SITES), id="flux-attention"),
]


@pytest.mark.parametrize(("case", "changes"), USES)
def test_it_runs_repeats_and_can_be_taken_back(case: Any, changes: dict[str, Any]) -> None:
    model, inputs = case.model(), case.inputs()
    plain = run_plain(model, inputs, 5)
    sdtm_fx.rewrite(model, case.recipe(changes))
    outputs = run_steps(model, inputs, 5)
    torch.testing.assert_close(outputs[0], plain[0])  # dense, through a split projection in FLUX
    assert not torch.allclose(outputs[1], plain[1], **ROUNDING)
    assert all(bool(out.isfinite().all()) for out in outputs)
    assert all_equal(run_steps(model, inputs, 5), outputs)
    odd = case.inputs(grid=(5, 7))
    assert all(bool(out.isfinite().all()) for out in run_steps(model, odd, 4))
    sdtm_fx.restore(model)
    assert all_equal(run_plain(model, inputs, 5), plain)


def test_ratio_zero_and_half_precision() -> None:
    model, inputs = SD3.model(torch.bfloat16), SD3.inputs(dtype=torch.bfloat16)
    plain = run_plain(model, inputs, 4)
    sdtm_fx.rewrite(model, SD3.recipe(rules(order=1, ratio={"curve": "constant", "start": 0.0})))
    assert all_equal(run_steps(model, inputs, 4), plain)
    sdtm_fx.rewrite(model, SD3.recipe(rules(order=1)))
    outputs = run_steps(model, inputs, 4)
    assert all(out.dtype == torch.bfloat16 and bool(out.isfinite().all()) for out in outputs)


def test_a_record_says_who_was_computed_and_state_is_counted() -> None:
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe(rules(order=1)))
    with sdtm_fx.record_plans(model) as record:
        run_steps(model, inputs, 3)
    for site in record.at(action="merged"):
        assert site.cached
        assert site.positions is not None
        assert site.merged_mask is not None
        computed = [(~row).nonzero().flatten().tolist() for row in site.merged_mask]
        assert computed == site.positions.tolist()
    assert not any(site.cached for site in record.at(action="refresh"))
    told = sdtm_fx.explain(model, quiet=True)
    width = SD3.model().transformer_blocks[0].ff.net[2].out_features  # type: ignore[union-attr, index]
    # Two values and two steps for each of two samples, 64 tokens and two blocks.
    assert told.state_bytes["features"] == 2 * 2 * 64 * 2 * (width + 1) * 4


def test_reading_attention_is_counted() -> None:
    cost = {}
    for method in ({**CACHE, "probe_queries": 16}, RANDOM):
        model = sdtm_fx.rewrite(SD3.model(), SD3.recipe(rules(method)))
        saved = the_rewriting(model).schedules.cost.saved(0, (8, 8), 5, 45)
        cost[method.get("rank", method.get("probe_queries"))] = saved.total
    # Two blocks of 16 channels: products of probes with 64 image and 5 text keys.
    assert cost["random"] - cost[16] == pytest.approx(2 * 16 * 69 * 16)


# -- on the toys -----------------------------------------------------------------------------------------


TOY_CACHE = {"name": "token_cache", "interval": EVERY}
PRUNED = {"name": "random"}


def toy_rules(name: str, method: dict[str, Any], **more: Any) -> sdtm_fx.Recipe:
    sites = ["ff"] if name == "sd3" else ["ff", "single_ff"]
    changes = {**rules(method), "stages.*.sites": sites, "plan.share": ["cfg"] if name == "sd3" else []}
    return sdtm_fx.load_recipe(f"toy-{name}").override({**changes, **more})


def draw(pipe: Any, steps: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    prompt = "a large plain red circle at the centre on a plain blue background"
    options = {"num_inference_steps": steps, "height": 32, "width": 32, "output_type": "pt"}
    images: Tensor = pipe(prompt, generator=generator, **options).images
    return images


def test_stored_values_are_worth_more_than_copies_of_other_tokens() -> None:
    pipe = load_toy("sd3")
    dense = draw(pipe)
    with sdtm_fx.rewritten(pipe, toy_rules("sd3", TOY_CACHE)):
        cached = draw(pipe)
        assert torch.equal(draw(pipe), cached)
    pruning = {"reuse": None, "stages.*.reduce": "prune"}
    with sdtm_fx.rewritten(pipe, toy_rules("sd3", PRUNED, **pruning)):
        pruned = draw(pipe)
    better = psnr(cached, dense)[0] - psnr(pruned, dense)[0]
    assert better > 1, better


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_the_toys_compile_without_a_break(name: str) -> None:
    torch._dynamo.reset()
    pipe = sdtm_fx.rewrite(load_toy(name), toy_rules(name, TOY_CACHE, **{"reuse.order": 1}))
    eager = draw(pipe, 4)
    sdtm_fx.compile(pipe, regional=True, backend="eager")
    graphs = Graphs()
    assert torch.equal(draw(pipe, 4), eager)
    assert graphs.made > 0
    assert not graph_breaks()
    with no_new_graph():
        assert torch.equal(draw(pipe, 4), eager)
    torch._dynamo.reset()
