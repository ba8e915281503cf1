"""One small random model of the real diffusers class for every family of shipped recipes, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from packaging.version import Version
from torch import nn

import sdtm_fx
from tests.pipelines import TEXT_DIM, randomize
from tests.unets import sdxl_inputs, tiny_sdxl
from tests.zoo import ZOO, Inputs, latent_inputs, noise, pixart

Grid = tuple[int, int]


@dataclass(frozen=True)
class FamilyCase:
    """A family.

    Attributes:
        recipe_name: The shipped recipe for it.
        make: Makes the model.
        inputs: Makes the arguments of a call from batch, (height, width) in tokens, and text length.
        latent: The argument that holds the image.
        odd: A grid of odd sides, not square where the model takes that.
        structures: How many different block graphs it has.
        text: Text tokens of every call here.
        beside: How many tokens stand beside image and references where blocks run on one sequence, from the number of
            image tokens and that of text tokens.
        references: Tokens of reference images in every call here.
        whole: Whether the model compiles in one graph where nothing is rewritten.
        sites: What both stages merge; None for what the recipe says.
        changes: What else its recipe says here.
    """

    recipe_name: str
    make: Callable[[], nn.Module] = field(repr=False)
    inputs: Inputs = field(repr=False)
    latent: str = "hidden_states"
    odd: Grid = (9, 7)
    structures: int = 1
    text: int = 5
    beside: Callable[[int, int], int] = field(default=lambda image, text: text, repr=False)
    references: int = 0
    whole: bool = True
    sites: tuple[str, ...] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_variant(self) -> bool:
        """Whether another case has the same blocks."""
        return self.sites is not None or self.recipe_name in (
            "pixart-alpha-512",
            "flux.1-kontext-windows",
            "flux.1-dev-keys",
            "qwen-image-keys",
            "chroma-keys",
            "lumina-2-keys",
            "sdxl-turbo",
        )

    @property
    def name(self) -> str:
        """What tests call it."""
        return self.recipe_name if self.sites is None else f"{self.recipe_name}, {' '.join(self.sites)}"

    def text_of(self, batch: int) -> int:
        """Text tokens of the longest prompt."""
        inputs = self.call(batch, (2, 2))
        return max(len(each) for each in inputs["cap_feats"]) if "cap_feats" in inputs else self.text

    def model(self) -> nn.Module:
        """A fresh model with weights large enough for every layer to matter."""
        return randomize(self.make(), seed=3, scale=0.15)

    def call(self, batch: int, grid: Grid) -> dict[str, Any]:
        """Arguments of one call."""
        return self.inputs(batch, grid, self.text)

    def recipe(self, ratio: float, *, reuse: bool = False) -> sdtm_fx.Recipe:
        """The shipped recipe for any depth and size, at one ratio; without forecasts every step merges."""
        changes: dict[str, Any] = {
            "sites.*.expect": None,
            "plan.round_to": 1,
            "ratio": {"curve": "constant", "start": ratio},
            **self.changes,
        }
        if not reuse:
            changes["reuse"] = None
            changes["stages.structure.until"] = 0.5
            changes["keep_dense"] = {"first_steps": 0, "last_steps": 0, "every_steps": None}
        if self.sites is not None:
            changes["stages.*.sites"] = list(self.sites)
        return sdtm_fx.load_recipe(self.recipe_name).override(changes)


def moving(case: FamilyCase, inputs: Mapping[str, Any], step: int, count: int) -> dict[str, Any]:
    """The arguments of a later step: the image moves, and the time falls."""
    moved = dict(inputs)
    scale, shift = 1.0 - 0.5 * step / count, 0.1 * step / count
    latent, time = inputs[case.latent], "t" if "t" in inputs else "timestep"
    one_per_sample = isinstance(latent, list)
    moved[case.latent] = [x * scale + shift for x in latent] if one_per_sample else latent * scale + shift
    moved[time] = inputs[time] * (1.0 - step / count)
    return moved


def first(output: Any) -> torch.Tensor:
    """What a model returned, as one tensor: a list holds one for every sample."""
    return torch.stack(output[0]) if isinstance(output[0], list) else output[0]


@torch.no_grad()
def run(case: FamilyCase, model: nn.Module, inputs: Mapping[str, Any], count: int = 4) -> list[torch.Tensor]:
    """The outputs of a rewritten model over a whole generation."""
    outputs = []
    with sdtm_fx.steps(model, count) as clock:
        for step in range(count):
            outputs.append(first(model(**moving(case, inputs, step, count))))
            clock.advance()
    return outputs


@torch.no_grad()
def run_plain(
    case: FamilyCase, model: nn.Module, inputs: Mapping[str, Any], count: int = 4
) -> list[torch.Tensor]:
    """The outputs of a model that is not rewritten, for the same inputs as `run`."""
    return [first(model(**moving(case, inputs, step, count))) for step in range(count)]


# -- the models -----------------------------------------------------------------------------------------


def _dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
        num_embeds_ada_norm=10,
    )  # fmt: skip


def _dit_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, grid[0] * 2, grid[1] * 2),
        "timestep": torch.full((batch,), 500.0),
        "class_labels": torch.arange(batch),
        "return_dict": False,
    }


def _hunyuan_dit() -> nn.Module:
    return diffusers.HunyuanDiT2DModel(
        sample_size=8, num_layers=4, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        cross_attention_dim=16, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=16, text_len=3,
        text_len_t5=4,
    )  # fmt: skip


def _hunyuan_dit_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    return latent_inputs(batch, grid, text) | {
        "encoder_hidden_states": noise(batch, 3, 16),
        "text_embedding_mask": torch.ones(batch, 3),
        "encoder_hidden_states_t5": noise(batch, 4, TEXT_DIM),
        "text_embedding_mask_t5": torch.tensor([1, 1, 1, 0]).repeat(batch, 1),
        "image_meta_size": noise(batch, 6),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": get_2d_rotary_pos_embed(8, ((0, 0), grid), grid, output_type="pt"),
    }


def _pixart_alpha() -> nn.Module:
    return pixart(sized=True)


def _pixart_alpha_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    size = {"resolution": torch.full((batch, 2), 64.0), "aspect_ratio": torch.ones(batch, 1)}
    return ZOO["pixart"].inputs(batch, grid, text) | {"added_cond_kwargs": size}


def _sd15() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16, 16, 16), attention_head_dim=2, cross_attention_dim=TEXT_DIM, norm_num_groups=4,
    )  # fmt: skip


def _sd15_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    return {
        "sample": noise(batch, 4, *grid),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, text, TEXT_DIM),
        "return_dict": False,
    }


def _sdxl_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    return sdxl_inputs((2 * grid[0], 2 * grid[1]), batch, text)


def _chroma() -> nn.Module:
    return diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT_DIM, axes_dims_rope=(4, 6, 6), approximator_num_channels=16,
        approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip


def _chroma_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    inputs = ZOO["flux"].inputs(batch, grid, text)
    return {name: value for name, value in inputs.items() if name not in ("guidance", "pooled_projections")}


def _masked_chroma_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    """What the pipeline passes; padding of the prompt is masked but for its first token."""
    mask = torch.ones(batch, text + grid[0] * grid[1], dtype=torch.bool)
    mask[:, text - 2 : text] = False
    return _chroma_inputs(batch, grid, text) | {"attention_mask": mask}


REFERENCES = 6


def _kontext_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    """A reference of one row behind the image."""
    inputs = ZOO["flux"].inputs(batch, grid, text)
    reference = torch.tensor([[1.0, 0.0, column] for column in range(REFERENCES)])
    return inputs | {
        "hidden_states": noise(batch, grid[0] * grid[1] + REFERENCES, 16),
        "img_ids": torch.cat([inputs["img_ids"], reference]),
    }


def _flux2() -> nn.Module:
    return diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT_DIM, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip


def _flux2_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    """Ids have a fourth column, and an axis of samples, as the pipeline makes them."""
    inputs = _kontext_inputs(batch, grid, text)
    ids = torch.nn.functional.pad(inputs["img_ids"], (0, 1))
    ids[-REFERENCES:, 0] = 10
    del inputs["pooled_projections"]
    return inputs | {"img_ids": ids.expand(batch, -1, -1), "txt_ids": torch.zeros(batch, text, 4)}


def _qwen() -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT_DIM, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def _qwen_inputs(batch: int, grid: Grid, text: int, references: tuple[Grid, ...] = ()) -> dict[str, Any]:
    shapes = [(1, *sides) for sides in (grid, *references)]
    lengths = {"txt_seq_lens": [text] * batch} if Version(diffusers.__version__) < Version("0.37") else {}
    return lengths | {
        "hidden_states": noise(batch, sum(h * w for _, h, w in shapes), 16),
        "encoder_hidden_states": noise(batch, text, TEXT_DIM),
        "timestep": torch.full((batch,), 0.5),
        "img_shapes": [shapes] * batch,
        "return_dict": False,
    }


def _padded_qwen_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    """One prompt is shorter than the other, so that attention has a mask."""
    mask = torch.ones(batch, text, dtype=torch.bool)
    mask[0, -2:] = False
    return _qwen_inputs(batch, grid, text) | {"encoder_hidden_states_mask": mask}


def _qwen_edit_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    """Two images are edited; one prompt is shorter than the other."""
    mask = torch.ones(batch, text, dtype=torch.bool)
    mask[0, -1] = False
    mask = {"encoder_hidden_states_mask": mask}
    return _qwen_inputs(batch, grid, text, ((1, 2), (2, 2))) | mask


def _z_image() -> nn.Module:
    return diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=TEXT_DIM,
        axes_dims=[4, 6, 6], axes_lens=[256, 64, 64],
    )  # fmt: skip


def _z_image_inputs(batch: int, grid: Grid, text: int) -> dict[str, Any]:
    """One prompt is longer than the other, so that attention has a mask."""
    return {
        "x": [noise(4, 1, grid[0] * 2, grid[1] * 2, seed=i) for i in range(batch)],
        "t": torch.full((batch,), 0.5),
        "cap_feats": [noise(text + 30 * i, TEXT_DIM) for i in range(batch)],
        "return_dict": False,
    }


def lumina() -> nn.Module:
    return diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(64, 32, 32), cap_feat_dim=TEXT_DIM,
    )  # fmt: skip


def lumina_inputs(
    batch: int, grid: Grid, text: int, lengths: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Prompts are padded by one token, or have `lengths`, one for each sample."""
    mask = torch.zeros(batch, text, dtype=torch.int64)
    for row, length in zip(mask, lengths or (text - 1,) * batch, strict=True):
        row[:length] = 1
    return {
        "hidden_states": noise(batch, 4, grid[0] * 2, grid[1] * 2),
        "timestep": torch.full((batch,), 0.5),
        "encoder_hidden_states": noise(batch, text, TEXT_DIM),
        "encoder_attention_mask": mask,
        "return_dict": False,
    }


FAMILIES = (
    FamilyCase("pixart-alpha", _pixart_alpha, _pixart_alpha_inputs),
    FamilyCase("pixart-alpha-512", pixart, ZOO["pixart"].inputs),
    FamilyCase("pixart-sigma", pixart, ZOO["pixart"].inputs, sites=("self", "cross", "ff")),
    FamilyCase("dit-xl-2", _dit, _dit_inputs, odd=(9, 9)),
    FamilyCase("hunyuan-dit", _hunyuan_dit, _hunyuan_dit_inputs, structures=2),
    FamilyCase(
        "hunyuan-dit", _hunyuan_dit, _hunyuan_dit_inputs, structures=2, sites=("self", "cross", "ff"),
        changes={"plan.share": ["batch"]},
    ),
    FamilyCase("auraflow", ZOO["auraflow"].build, ZOO["auraflow"].inputs, structures=2,
        beside=lambda image, text: text + 8),
    FamilyCase("sana", ZOO["sana"].build, ZOO["sana"].inputs),
    FamilyCase("sana", ZOO["sana"].build, ZOO["sana"].inputs, sites=("self", "cross")),
    FamilyCase("chroma", _chroma, _masked_chroma_inputs, structures=2),
    FamilyCase(
        "chroma", _chroma, _chroma_inputs, structures=2, sites=("attn", "ff", "single_attn", "single_ff"),
        changes={"plan.share": ["batch"]},
    ),
    FamilyCase("chroma-keys", _chroma, _masked_chroma_inputs, structures=2),
    FamilyCase("flux.1-dev-keys", ZOO["flux"].build, ZOO["flux"].inputs, structures=2),
    FamilyCase(
        "flux.1-kontext-windows", ZOO["flux"].build, _kontext_inputs, structures=2, references=REFERENCES,
        changes={"stages.detail": {"sites": ["ff", "single_ff"], "method": {"name": "local_match", "radius": 1}}},
    ),
    FamilyCase("flux.2", _flux2, _flux2_inputs, structures=2, references=REFERENCES),
    FamilyCase("qwen-image", _qwen, _qwen_inputs),
    FamilyCase("qwen-image-keys", _qwen, _padded_qwen_inputs),
    FamilyCase("qwen-image-edit", _qwen, _qwen_edit_inputs, references=6),
    # Image and text are each padded to 32 tokens, and the prompts of a batch to the longest.
    FamilyCase(
        "z-image", _z_image, _z_image_inputs, latent="x",
        beside=lambda image, text: -image % 32 + text + -text % 32,
    ),
    # The model leaves the padding of prompts out.
    FamilyCase("lumina-2", lumina, lumina_inputs, beside=lambda image, text: text - 1, whole=False),
    FamilyCase("lumina-2-keys", lumina, lumina_inputs, beside=lambda image, text: text - 1, whole=False),
    # A U-Net halves its sides: odd ones are rounded up, on every level.
    FamilyCase("sd1.5", _sd15, _sd15_inputs, latent="sample", odd=(18, 11), structures=2),
    FamilyCase("sdxl-turbo", tiny_sdxl, _sdxl_inputs, latent="sample", odd=(10, 7), structures=2),
)  # fmt: skip
