"""What passes make of the blocks of a model, as graphs: the work of `rewrite`, of which nothing is put in place."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from torch import fx

from sdtm_fx.inspecting.survey import Survey
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.prepare import prepare
from sdtm_fx.rewriting.programs import Program, work_for
from sdtm_fx.rewriting.runner import run_passes
from sdtm_fx.runtime.call import Variant


@dataclass(frozen=True)
class RewrittenBlocks:
    """Blocks that a recipe treats alike.

    Attributes:
        paths: The blocks, in the order of execution.
        before: Their graph as it was captured.
        after: What they run in the stage; None where the stage leaves them as they are.
    """

    paths: tuple[str, ...]
    before: fx.Graph
    after: fx.Graph | None


def rewritten_blocks(survey: Survey, recipe: Recipe, stage: int = 0) -> tuple[RewrittenBlocks, ...]:
    """Find what the blocks of a model run in one stage of a recipe, spans included.

    Args:
        survey: The model; it is not changed.
        recipe: The recipe. One without `inputs` is tried on the call that the survey found.
        stage: Number of the stage.

    Returns:
        Blocks that share their graphs, in the order of execution; those that the recipe keeps dense are not there.

    Raises:
        SdtmFxError: What `rewrite` would say of the recipe and the model.
    """
    example = None if recipe.inputs else survey.call.values(survey.call.sizes)
    with survey.call.shapes():
        rewriting = prepare(survey.model, recipe, example)
    alike: dict[int, tuple[Program, list[str]]] = {}
    for path, binding in rewriting.bindings.items():
        for program in binding.programs.values():
            alike.setdefault(id(program), (program, []))[1].append(path)
    return tuple(
        RewrittenBlocks(
            tuple(dict.fromkeys(paths)), program.captured, _after(survey, recipe, stage, program, paths[0])
        )
        for program, paths in alike.values()
    )


def _after(survey: Survey, recipe: Recipe, stage: int, program: Program, path: str) -> fx.Graph | None:
    work = work_for(recipe, survey.model.get_submodule(path), program, Variant(stage=stage))
    if work is None:
        return None
    run_passes(work, importlib.import_module("sdtm_fx.passes").PASSES)
    return work.graph
