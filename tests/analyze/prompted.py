"""Tiny pipelines have no text encoders: this answers to prompts with embeddings instead."""

from __future__ import annotations

from typing import Any

from tests.pipelines import flux_prompt_kwargs, sd3_prompt_kwargs, tiny_flux_pipeline, tiny_sd3_pipeline


class Prompted:
    """A pipeline that is called with prompts, as real ones are."""

    def __init__(self, pipeline: Any, kwargs: Any) -> None:
        self.pipeline, self.kwargs = pipeline, kwargs

    def __call__(self, prompt: list[str], **call: Any) -> Any:
        return self.pipeline(**{**self.kwargs(len(prompt)), **call})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)


def sd3(**options: Any) -> Prompted:
    return Prompted(tiny_sd3_pipeline(layers=2, **options), sd3_prompt_kwargs)


def flux(**options: Any) -> Prompted:
    return Prompted(tiny_flux_pipeline(layers=1, single_layers=2, **options), flux_prompt_kwargs)
