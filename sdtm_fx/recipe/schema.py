"""The recipe: what is merged, where, and when, as strictly typed data (recipe language, version 1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from sdtm_fx.recipe.check import find_problems
from sdtm_fx.recipe.dump import write_yaml
from sdtm_fx.recipe.extend import plain_source, read_file, read_named, resolve
from sdtm_fx.recipe.layers import LayerRule
from sdtm_fx.recipe.merge import merge, nested
from sdtm_fx.recipe.part import Part, RecipeName, Text
from sdtm_fx.recipe.ratio import Ratio
from sdtm_fx.recipe.sections import (
    KeepDense,
    PassSwitches,
    PlanSharing,
    PromptWeight,
    Reuse,
    SiteSpec,
    Stage,
)
from sdtm_fx.recipe.span import SpanSpec
from sdtm_fx.recipe.tokens import Input, Tokens
from sdtm_fx.recipe.validate import validate
from sdtm_fx.recipe.yaml_source import Source, read_yaml
from sdtm_fx.recipe.younger import without_younger


class Recipe(Part):
    """What is merged in a model, where, and when.

    A recipe is frozen and checked as a whole. Read one with `sdtm_fx.load_recipe`, `from_file`, `named` or
    `from_yaml_text`, which raise `RecipeError` with file, line and key path; change one with `override`.

    Example::

        version: 1
        name: example
        model: [SD3Transformer2DModel]
        tokens: {grid: {latent: hidden_states, patch: 2}}
        sites:
          - {id: ff, kind: feed_forward, match: "transformer_blocks.*.ff"}
        stages:
          - {name: all, until: 1.0, sites: [ff], method: {name: ssm}}
        ratio: {curve: constant, start: 0.5}
    """

    version: Literal[1]
    """Version of the recipe language."""
    name: RecipeName
    """Name of the recipe."""
    description: str = ""
    """What the recipe is for."""
    model: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Class names of the models that the recipe is written for."""
    tokens: Tokens
    """Layout of the image tokens."""
    inputs: Mapping[str, Input] = Field(default_factory=dict)
    """Arguments of the model in an example call: what capture and the cost model run. A dot leads into an argument that
    is a mapping: ``added_cond_kwargs.time_ids``."""
    sites: Annotated[tuple[SiteSpec, ...], Field(min_length=1)]
    """Modules whose image tokens may be merged."""
    spans: tuple[SpanSpec, ...] = ()
    """Runs of blocks between which image tokens may stay merged."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """Spans of denoising steps, in order."""
    ratio: Ratio
    """Fraction of the image tokens that is removed, over the steps."""
    keep_dense: KeepDense = KeepDense()
    """Steps and layers that are left as they are."""
    layers: tuple[LayerRule, ...] = ()
    """Blocks that remove less than the others, or make something else of a slot."""
    reuse: Reuse | None = None
    """What merged positions take from earlier dense steps; absent: copies of their slot, as in the paper."""
    plan: PlanSharing = PlanSharing()
    """How far one merge plan reaches."""
    prompt: PromptWeight | None = None
    """Step-dependent weight of the text keys; absent: none."""
    passes: PassSwitches = PassSwitches()
    """Optional graph passes."""
    gate: Literal["auto", "off"] = "auto"
    """``auto`` leaves out sites where merging is predicted to cost more time than it saves, on a device that
    `sdtm_fx.calibrate` has measured; ``off`` merges wherever the recipe says."""
    seed: int = 0
    """Seed of the counter-based hash that methods draw from."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        problems = find_problems(self)
        if problems:
            text = "; ".join(map(str, problems))
            raise PydanticCustomError("recipe", text, {"problems": problems})
        return self

    def __hash__(self) -> int:
        """Hash by content."""
        return hash(self.fingerprint())

    @classmethod
    def named(cls, name: str) -> Recipe:
        """Return the shipped recipe called `name`.

        Raises:
            RecipeError: There is none, or the recipes are not installed.
        """
        return cls.from_source(read_named(name))

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Read a recipe from a YAML file.

        Raises:
            RecipeError: The file cannot be read, or is no valid recipe.
        """
        return cls.from_source(read_file(Path(path)))

    @classmethod
    def from_yaml_text(cls, text: str, label: str = "<text>") -> Recipe:
        """Read a recipe from YAML.

        Args:
            text: The document.
            label: What to call it in errors.

        Raises:
            RecipeError: The text is no valid recipe.
        """
        return cls.from_source(resolve(read_yaml(text, label)))

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], label: str = "<mapping>") -> Recipe:
        """Build a recipe from plain data: what a YAML file would hold, `extends` included.

        Args:
            data: Mappings, lists, tuples, scalars, methods and parts of recipes.
            label: What to call it in errors.

        Raises:
            RecipeError: The data is no valid recipe.
        """
        return cls.from_source(resolve(plain_source(data, label)))

    @classmethod
    def from_source(cls, source: Source) -> Recipe:
        """Validate data whose `extends` is already resolved, and blame the lines it was written on."""
        return validate(cls, source)

    def wants(self, what: str) -> bool:
        """Whether the method of some stage reads something beside the tokens, for instance "attention"."""
        return any(what in stage.method.wants() for stage in self.stages)

    @property
    def reads_halves(self) -> bool:
        """Whether it matters that a batch stacks guidance halves."""
        return "cfg" in self.plan.share or self.wants("importance")

    def to_data(self) -> dict[str, Any]:
        """Return the recipe as plain data, every default written out."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the recipe as YAML that loads as an equal recipe."""
        return write_yaml(self.to_data())

    def fingerprint(self) -> str:
        """Return the SHA-256 of the content: equal for equal recipes, however they were written."""
        text = json.dumps(
            without_younger(self.to_data()), sort_keys=True, separators=(",", ":"), ensure_ascii=True
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def override(self, changes: Mapping[str, Any] | None = None, /, **sections: Any) -> Recipe:
        """Return a checked copy with some values changed.

        Mappings are merged into what is there, everything else replaces it. Sites and stages are addressed by
        id or name (or index, or ``*`` for all)::

            recipe.override({"ratio.start": 0.5, "sites.*.expect": None}, reuse=None)
            recipe.override(stages={"detail": {"method": {"name": "skip"}}})

        Args:
            changes: Dotted key paths to values.
            sections: The same for keys without dots.

        Raises:
            RecipeError: A path names nothing, or the result is no valid recipe.
        """
        label = f"{self.name} (overridden)"
        result = Source(label, self.to_data())
        for path, value in {**(changes or {}), **sections}.items():
            result = merge(result, plain_source(nested(path, value), label))
        return self.from_source(result)
