"""What can be known of guidance before a generation: whether a method that reads it will ever find any."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sdtm_fx.errors import RewriteError
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.tokens import LatentGrid

ATTRIBUTE = "do_classifier_free_guidance"
"""By which pipelines of diffusers say, during a call, that a batch stacks two guidance halves."""


def check_pipeline(recipe: Recipe, target: Any) -> None:
    """Refuse a pipeline that never says that its batches stack guidance halves, where a method compares them.

    Whether one that can say so will is decided at each call: the first step that merges then says what is missing.

    Args:
        recipe: The recipe.
        target: What is rewritten.

    Raises:
        RewriteError: The recipe compares guidance halves, and the pipeline has no `do_classifier_free_guidance`.
    """
    if isinstance(target, torch.nn.Module) or not recipe.wants("importance"):
        return
    if not hasattr(type(target), ATTRIBUTE) and ATTRIBUTE not in vars(target):
        raise RewriteError(
            f"recipe {recipe.name!r} reads what guidance changes (method importance), and {type(target).__name__} does "
            f"not stack guidance halves in one batch, or does not say so: it has no {ATTRIBUTE} (guidance-distilled "
            "models have none, true CFG runs its halves apart); accepted: a pipeline that has, another method, or the "
            "model itself with a loop of your own, sdtm_fx.steps(model, count, cfg_halves=2)"
        )


def check_output(recipe: Recipe, model: torch.nn.Module, graph: fx.Graph) -> None:
    """Refuse a model whose output is no image in latent space, where a method reads what guidance changes in it.

    Args:
        recipe: The recipe.
        model: The model.
        graph: Its own graph, with example values.

    Raises:
        RewriteError: The recipe compares guidance halves, and the model returns something else.
    """
    if not recipe.wants("importance"):
        return
    returned = next(iter(reversed(graph.nodes))).all_input_nodes
    value = returned[0].meta.get("val") if returned else None
    layout, ndim = recipe.tokens.grid, 5 if recipe.tokens.has_frames else 4
    turned = isinstance(layout, LatentGrid) and layout.axes is not None  # channels are somewhere else
    if not isinstance(value, torch.Tensor) or value.ndim != ndim or turned:
        found = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise RewriteError(
            f"recipe {recipe.name!r} reads what guidance changes (method importance), and {type(model).__name__} "
            f"returns {found}; accepted: a model that returns [batch, channels, {'frames, ' * (ndim == 5)}height, "
            "width] in latent space, or another method"
        )
