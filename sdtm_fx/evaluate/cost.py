"""MACs of the model calls that really ran, by the cost model of `explain`."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from sdtm_fx.cost.cost import Cost
from sdtm_fx.cost.counter import Macs
from sdtm_fx.explaining.explain import explain
from sdtm_fx.phase import Phase
from sdtm_fx.rewriting.rewriting import Rewriting, rewriting_of
from sdtm_fx.runtime.schedules import CallSize


def rewriting_in(pipeline: Any) -> tuple[torch.nn.Module, Rewriting] | None:
    """The first rewritten model of a pipeline, which is the one that `explain` is about."""
    for model in pipeline.components.values():
        if isinstance(model, torch.nn.Module) and (rewriting := rewriting_of(model)) is not None:
            return model, rewriting
    return None


@dataclass
class CostWatch:
    """Notes which phase every call of a rewritten model runs, since a recipe with a threshold decides late.

    Attributes:
        pipeline: The rewritten pipeline.
    """

    pipeline: Any
    _macs: dict[CallSize, tuple[Macs, dict[Phase, Macs]]] = field(default_factory=dict)

    @contextlib.contextmanager
    def calls(self) -> Iterator[Counter[tuple[CallSize, Phase]]]:
        """Count the model calls inside the block, by size and phase."""
        found = rewriting_in(self.pipeline)
        assert found is not None
        model, runtime = found[0], found[1].runtime
        seen: Counter[tuple[CallSize, Phase]] = Counter()

        def note(module: torch.nn.Module, args: Any) -> None:
            assert runtime.call is not None
            assert runtime.last is not None
            seen[runtime.last, runtime.call.phase] += 1

        handle = model.register_forward_pre_hook(note)
        try:
            yield seen
        finally:
            handle.remove()

    def cost(self, seen: Counter[tuple[CallSize, Phase]], images: int) -> Cost:
        """The cost of the calls that were seen.

        Args:
            seen: From `calls`.
            images: How many images they drew.
        """
        macs = dense = Macs()
        for (size, phase), count in seen.items():
            whole, by_phase = self._of_size(size)
            # A phase outside the schedule is a step that had to be dense, because features were missing.
            macs = macs + by_phase.get(phase, whole) * count
            dense = dense + whole * count
        return Cost(macs * (1 / images), dense * (1 / images))

    def _of_size(self, size: CallSize) -> tuple[Macs, dict[Phase, Macs]]:
        if size not in self._macs:
            found = rewriting_in(self.pipeline)
            assert found is not None
            tokens = found[1].recipe.tokens
            report = explain(
                self.pipeline,
                steps=size.steps,
                grid=tokens.whole(size.grid),
                batch=size.batch,
                text=size.text or None,
                references=size.references,
                quiet=True,
            )
            phases = (
                found[1]
                .runtime.schedule(size.steps, size.grid, size.text, size.batch, size.references)
                .phases
            )
            by_phase = {phase: told.macs for phase, told in zip(phases, report.phases, strict=True)}
            self._macs[size] = (report.dense, by_phase)
        return self._macs[size]
