"""The recipe: what is merged, where, and when, as strictly typed data (recipe language, version 1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from sdtm_fx.methods import AnyMethod
from sdtm_fx.recipe.check import find_problems
from sdtm_fx.recipe.dump import write_yaml
from sdtm_fx.recipe.extend import plain_source, read_file, read_named, resolve
from sdtm_fx.recipe.layers import LayerRule
from sdtm_fx.recipe.merge import merge, nested
from sdtm_fx.recipe.part import Count, Label, Part, Positive, RecipeName, Text
from sdtm_fx.recipe.ratio import Ratio
from sdtm_fx.recipe.span import SpanSpec
from sdtm_fx.recipe.tokens import Input, Tokens
from sdtm_fx.recipe.validate import validate
from sdtm_fx.recipe.yaml_source import Source, read_yaml
from sdtm_fx.recipe.younger import without_younger
from sdtm_fx.reductions import Reduce


class SiteSpec(Part):
    """An attention or feed-forward module whose image tokens may be merged."""

    id: Label
    """Name that stages use."""
    kind: Literal["attention", "feed_forward"]
    """What the module computes."""
    match: Text
    """Glob over module paths (``*`` stays between dots, ``**`` does not), or ``re:`` and an expression."""
    input: Count | Text = 0
    """Argument of the module that carries the tokens: its position or its name."""
    output: Count | None = None
    """Index of the tokens in the tuple that the module returns; absent: it returns the tokens alone."""
    prefix: Text | None = None
    """Argument of the block whose length is the number of leading tokens that are not image."""
    rotary: Text | None = None
    """Argument of the module that carries the rotary tables (cos, sin), [sequence, channels] each."""
    metric: Text | None = None
    """Argument of the block that tokens are compared by, image tokens alone; absent: what reaches the module. All
    sites of a block share the plan of the first."""
    merge: Literal["tokens", "keys"] = "tokens"
    """``tokens``: the module runs on merged tokens. ``keys``: queries stay as they are, and attention looks at
    fewer image keys and values, so nothing is unmerged and `reuse` has nothing to forecast there."""
    expect: Positive | None = None
    """Exact number of modules that match; absent: at least one."""


class Stage(Part):
    """A span of denoising steps with one method and one set of sites."""

    name: Label
    """Name in reports."""
    until: Annotated[float, Field(gt=0, le=1)]
    """Fraction of the denoising steps at which the stage ends; the last stage ends at 1."""
    sites: Annotated[tuple[str, ...], Field(min_length=1)]
    """Ids of the sites and spans that are merged."""
    method: AnyMethod
    """What decides which tokens are merged, with its options."""
    ratio: Ratio | None = None
    """Ratio in this stage; absent: the ratio of the recipe."""
    reduce: Reduce | None = None
    """What becomes of the tokens of a slot; absent: as the method has it, which is their mean unless it says else."""


class KeepDense(Part):
    """Steps and layers that are left as they are."""

    first_steps: Count = 1
    """Number of leading steps."""
    last_steps: Count = 1
    """Number of trailing steps."""
    every_steps: Annotated[int, Field(ge=2)] | Annotated[float, Field(gt=1)] | None = None
    """Every so many steps one is dense, counted from the first; it refreshes what `reuse` needs. A fraction
    spreads dense steps evenly: with 1.5, every third step is not dense."""
    layers: tuple[int | Text, ...] = ()
    """Blocks that are never merged: indices (negative: from the end) or globs over block paths."""


class Reuse(Part):
    """What merged positions take from earlier dense steps."""

    order: Literal[0, 1]
    """0 copies the last dense step, 1 extrapolates the last two."""
    weight: Annotated[float, Field(ge=0, le=1)]
    """Share of the newly computed value at merged positions; the rest is the forecast."""


class PlanSharing(Part):
    """How far one merge plan reaches."""

    share: tuple[Literal["cfg", "batch"], ...] = ()
    """``cfg``: one plan for both guidance halves; ``batch``: one plan for every sample."""
    every_layers: Positive = 1
    """Number of consecutive blocks that share a plan."""
    every_steps: Positive = 1
    """Number of consecutive steps that share a plan."""
    destinations_every: Positive | None = None
    """Number of consecutive steps that share the destinations of a plan, a multiple of `every_steps`: in between,
    tokens are weighed anew for the same ones. For methods that choose destinations first (`toma`); absent: as
    `every_steps`."""
    round_to: Positive = 64
    """Kept counts are multiples of this where the sequence allows."""
    ages: Literal["step", "call"] = "step"
    """Whether token ages count denoising steps, or calls of the method (the released SDTM code)."""
    proportional: bool = False
    """Proportional attention: the logarithm of the size of its slot is added to the logits of every image key, by
    an additive mask, which not all attention kernels take."""

    @property
    def keeps_plans(self) -> bool:
        """Whether some step takes over a plan, or its destinations, from a step before."""
        return (self.destinations_every or self.every_steps) > 1


class PromptWeight(Part):
    """Step-dependent weight of the text keys in attention: its logarithm is added to their logits."""

    start: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    """Weight at the first step; 1 changes nothing."""
    end: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    """Weight at the last step, reached linearly."""


class PassSwitches(Part):
    """Optional graph passes."""

    sink_unmerge: bool = True
    """Move elementwise work in front of the unmerge."""
    split_projection: bool = True
    """Split a projection of joined branches (FLUX single blocks), so that one branch can stay merged."""
    gather_rotary: bool = True
    """Let rotary tables follow the tokens. Without it they are cut to length, which puts most merged tokens
    in a wrong place: what a merge that does not know of positions would do, for comparison."""


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
    """Arguments of the model in an example call: what capture and the cost model run."""
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
