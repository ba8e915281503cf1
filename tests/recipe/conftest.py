"""A recipe of every section, as text whose line numbers the tests know."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sdtm_fx.errors import RecipeError
from sdtm_fx.recipe import Recipe

EXAMPLE = """\
version: 1
name: example
model: [SD3Transformer2DModel]
tokens:
  grid: {latent: hidden_states, patch: 2}
inputs:
  hidden_states: [batch, in_channels, height, width]
  guidance: {shape: [batch], when: guidance_embeds}
sites:
  - {id: attn, kind: attention, match: "blocks.*.attn", input: hidden_states, output: 0}
  - {id: ff, kind: feed_forward, match: "blocks.*.ff", expect: 24}
stages:
  - {name: structure, until: 0.4, sites: [attn, ff], method: {name: ssm, window: [2, 2]}}
  - {name: detail, until: 1.0, sites: [ff], method: {name: idm}, ratio: {curve: constant, start: 0.8}}
ratio: {curve: cosine, start: 0.7, end: 0.3}
keep_dense: {every_steps: 3, layers: [0, -1, "blocks.1*"]}
reuse: {order: 1, weight: 0.1}
plan: {share: [cfg], round_to: 16}
prompt: {start: 2.0}
passes: {sink_unmerge: false}
seed: 7
"""


@pytest.fixture
def example_text() -> str:
    return EXAMPLE


@pytest.fixture
def example() -> Recipe:
    return Recipe.from_yaml_text(EXAMPLE)


@pytest.fixture
def error_of() -> Callable[[str, str], str]:
    """Return the error that the example gives when one piece of it is replaced by another."""

    def text_of_error(old: str, new: str) -> str:
        assert EXAMPLE.count(old) == 1, f"{old!r} is not in the example exactly once"
        with pytest.raises(RecipeError) as caught:
            Recipe.from_yaml_text(EXAMPLE.replace(old, new), "example.yaml")
        return str(caught.value)

    return text_of_error
