"""The toy's judge: a small classifier of scenes, whose answers give caption accuracy and whose features compare sets.

It judges the toy and nothing else: it knows no image but the procedural scenes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.captions import parse_caption
from sdtm_fx.toy.files import read_model
from sdtm_fx.toy.scenes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, TEXTURES

ATTRIBUTES: tuple[str, ...] = ("shape", "colour", "position", "size")
"""What is graded, in the order of the columns of `Judge.grade`."""

WORDS: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "position": tuple(POSITIONS),
    "size": tuple(SIZES),
    "texture": TEXTURES,
    "background": BACKGROUNDS,
}
"""Every attribute that the judge answers, with its words; the last two make better features, and are not graded."""

MIN_SIDE, MAX_SIDE = 32, 96
"""Smallest and largest image side in pixels."""

WEIGHTS = Path(__file__).parent / "weights" / "judge"
"""What `Judge.save_pretrained` wrote, in float16."""

_SIDE, _CELLS = 64, 8


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the judge sees in B images: one word per image and attribute.

    Attributes:
        shape: B keys of `scenes.SHAPES`.
        colour: B keys of `scenes.COLOURS`, the colour of the shape.
        position: B keys of `scenes.POSITIONS`.
        size: B keys of `scenes.SIZES`.
        texture: B of `scenes.TEXTURES`.
        background: B of `scenes.BACKGROUNDS`.
    """

    shape: tuple[str, ...]
    colour: tuple[str, ...]
    position: tuple[str, ...]
    size: tuple[str, ...]
    texture: tuple[str, ...]
    background: tuple[str, ...]


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside the identity; [B, C, H, W] to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_in = nn.BatchNorm2d(channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_out = nn.BatchNorm2d(channels)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = torch.relu(self.norm_in(self.conv_in(hidden)))
        return torch.relu(hidden + self.norm_out(self.conv_out(inner)))


class _Down(nn.Module):
    """A 3 x 3 convolution of stride 2; [B, C, H, W] to [B, D, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(wider)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(hidden)))


class Judge(ModelMixin, ConfigMixin):
    """A convolutional classifier with coordinate channels and one head per attribute.

    Scenes scale with the shorter side of the image, so every image is first resized to one length of it; what
    is left of the size is the aspect. Two extra channels hold the place of each pixel relative to width and
    height (CoordConv, Liu et al. 2018), because convolutions alone cannot tell a position. The features pool
    the last map by its mean and by attention, which looks where the shape is.

    Args:
        width: Channels of the first map; deeper maps have 2 and 4 times as many.
        feature_width: F, the width of the features.
        words: Words per attribute, `WORDS` where not given; part of the weights' meaning, so it is saved.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers has no annotations
    def __init__(
        self, width: int = 32, feature_width: int = 128, words: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__()
        self.words = {name: tuple(known) for name, known in (words or WORDS).items()}
        self.register_to_config(words={name: list(known) for name, known in self.words.items()})
        self.stem = _Down(5, width)
        self.body = nn.Sequential(
            _Down(width, 2 * width),
            _Residual(2 * width),
            _Down(2 * width, 4 * width),
            _Residual(4 * width),
        )
        self.attention = nn.Conv2d(4 * width, 1, 1)
        self.squeeze = nn.Conv2d(4 * width, width // 2, 1)
        self.to_features = nn.Linear(8 * width + width // 2 * _CELLS**2, feature_width, bias=False)
        self.norm = nn.BatchNorm1d(feature_width)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(feature_width, len(known)) for name, known in self.words.items()}
        )

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of what is graded: `ATTRIBUTES`."""
        return ATTRIBUTES

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Score every word of every attribute.

        Args:
            images: As `features`.

        Returns:
            [B, number of words] logits per attribute.
        """
        features = torch.relu(self.features(images))
        return {name: head(features) for name, head in self.heads.items()}

    def features(self, images: Tensor) -> Tensor:
        """Describe images by the values in front of the last layer, before its rectifier.

        Args:
            images: [B, 3, H, W] float in [0, 1]; sides from `MIN_SIDE` to `MAX_SIDE`, equal or not.

        Returns:
            [B, F] float32.

        Raises:
            SdtmFxError: If shape, sizes, or range of the images are others.
        """
        check_images(images)
        hidden = self.body(self.stem(_prepare(images.to(self.device, torch.float32))))
        weights = torch.softmax(self.attention(hidden).flatten(2), dim=-1)
        looked_at = (hidden.flatten(2) * weights).sum(-1)
        cells = nn.functional.adaptive_avg_pool2d(torch.relu(self.squeeze(hidden)), _CELLS).flatten(1)
        features: Tensor = self.norm(
            self.to_features(torch.cat([hidden.mean((2, 3)), looked_at, cells], dim=1))
        )
        return features.float()

    @torch.no_grad()
    def answers(self, images: Tensor) -> Answers:
        """Name what is in the images.

        Args:
            images: As `features`.

        Raises:
            SdtmFxError: As `features`.
        """
        logits = self(images)
        return Answers(
            **{
                name: tuple(known[index] for index in logits[name].argmax(1).tolist())
                for name, known in self.words.items()
            }
        )

    def grade(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Compare images with the captions that they should show.

        Args:
            images: As `features`.
            captions: B full captions, as `Scene.caption` writes them.

        Returns:
            [B, 4] bool on the CPU, one column per attribute of `ATTRIBUTES`: true where the answer is right.

        Raises:
            SdtmFxError: As `features` and `parse_caption`, or if there are not as many captions as images.
        """
        if len(captions) != len(images):
            raise SdtmFxError(f"judge: {len(captions)} captions for {len(images)} images; pass one per image")
        wanted = [parse_caption(caption) for caption in captions]
        given = self.answers(images)
        columns = [
            [
                answer == getattr(scene, name)
                for answer, scene in zip(getattr(given, name), wanted, strict=True)
            ]
            for name in ATTRIBUTES
        ]
        return torch.tensor(columns, dtype=torch.bool).T.contiguous()


def load_judge() -> Judge:
    """Load the judge that the package carries: float32, on the CPU, frozen, in evaluation mode.

    Raises:
        SdtmFxError: If its weights are not installed, cut short, or trained for other words.
    """
    judge = read_model(Judge, WEIGHTS)
    if judge.words != WORDS:
        changed = ", ".join(name for name, known in WORDS.items() if judge.words.get(name) != known)
        raise SdtmFxError(
            f"load_judge: the weights in {WEIGHTS} were trained for other words ({changed}) than scenes.py "
            "has; train the judge again"
        )
    return judge.eval().requires_grad_(False)


def check_images(images: Tensor) -> None:
    """Raise unless a tensor holds images that the judge reads.

    Args:
        images: What was given.

    Raises:
        SdtmFxError: If it is not [B, 3, H, W] float in [0, 1] with sides from `MIN_SIDE` to `MAX_SIDE`.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise SdtmFxError(
            f"judge: images must be [B, 3, height, width] of a floating type, found {list(images.shape)} of "
            f"{images.dtype}"
        )
    for name, pixels in (("height", images.shape[2]), ("width", images.shape[3])):
        if not MIN_SIDE <= pixels <= MAX_SIDE:
            raise SdtmFxError(
                f"judge: {name} {pixels} px is not accepted; it must be {MIN_SIDE} to {MAX_SIDE}"
            )
    if not images.numel():
        return
    low, high = (float(bound) for bound in images.aminmax())
    # Written so that NaN fails too.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise SdtmFxError(
            f"judge: images must be finite and in [0, 1], found {low:.3g} to {high:.3g}; "
            "images in [-1, 1] are (images + 1) / 2"
        )


def _prepare(images: Tensor) -> Tensor:
    """Resize [B, 3, H, W] to a shorter side of `_SIDE`, center the values, and add x and y in [-1, 1]."""
    height, width = images.shape[2:]
    scale = _SIDE / min(height, width)
    height, width = round(height * scale), round(width * scale)
    if images.shape[2:] != (height, width):
        images = nn.functional.interpolate(images, (height, width), mode="bilinear", antialias=True)
    x = torch.linspace(-1, 1, width, device=images.device).expand(len(images), 1, height, width)
    y = torch.linspace(-1, 1, height, device=images.device)[:, None].expand(len(images), 1, height, width)
    return torch.cat([images * 2 - 1, x, y], dim=1)
