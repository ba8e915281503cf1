"""Procedural scenes: one textured shape on one background, drawn from a seed, at any height and width.

Scenes have smooth regions (plain fills, gradients) and fine detail (stripes, dots, checks, sharp edges), so
methods that merge similar tokens find both what they may merge and what they may not.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sdtm_fx.errors import SdtmFxError, nearest

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.10, 0.12),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.97, 0.92, 0.20),
    "green": (0.10, 0.65, 0.22),
    "cyan": (0.15, 0.85, 0.90),
    "blue": (0.10, 0.20, 0.85),
    "purple": (0.58, 0.15, 0.75),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.05),
}
"""Colour words and their RGB values in [0, 1]."""

SIZES: dict[str, float] = {"small": 0.14, "medium": 0.20, "large": 0.28}
"""Size words and the radius they stand for, as a fraction of the shorter image side."""

POSITIONS: dict[str, tuple[float, float]] = {
    "upper left": (0.26, 0.26),
    "upper centre": (0.50, 0.26),
    "upper right": (0.74, 0.26),
    "middle left": (0.26, 0.50),
    "centre": (0.50, 0.50),
    "middle right": (0.74, 0.50),
    "lower left": (0.26, 0.74),
    "lower centre": (0.50, 0.74),
    "lower right": (0.74, 0.74),
}
"""Position words and the centre (x, y) they stand for, as fractions of width and height."""

TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered")
"""Texture words of the shape; all but `plain` alternate the colour with a contrasting shade of it."""

BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "mottled")
"""Background kinds; `gradient` runs from top to bottom, `mottled` is smooth noise between two colours."""

JITTER = 0.02
"""Largest shift of the shape's centre, as a fraction of the shorter side; drawn from the scene's seed."""

_TEXTURE_PERIOD = 0.15


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1.0


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.86


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    sides = torch.maximum(x.abs() * math.cos(math.pi / 6) - y * 0.5, y)
    return sides - 0.55 - 0.12


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.76).abs() - 0.26


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    bar_x = torch.maximum(x - 1.0, y - 0.34)
    bar_y = torch.maximum(y - 1.0, x - 0.34)
    return torch.minimum(bar_x, bar_y)


def _star(x: Tensor, y: Tensor) -> Tensor:
    # A five-pointed star is the edge line of one half-arm, folded ten times around the centre.
    angle = torch.atan2(x, -y)
    sector = 2 * math.pi / 5
    folded = (angle - sector * torch.round(angle / sector)).abs()
    radius = torch.hypot(x, y)
    px, py = radius * torch.cos(folded), radius * torch.sin(folded)
    tip, notch = (1.15, 0.0), (0.50 * math.cos(sector / 2), 0.50 * math.sin(sector / 2))
    ex, ey = notch[0] - tip[0], notch[1] - tip[1]
    return ((px - tip[0]) * -ey + (py - tip[1]) * ex) / -math.hypot(ex, ey)


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
    "star": _star,
}
"""Shape words and their signed distances (negative inside), for a shape of radius 1; y points down."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """One shape on one background.

    Attributes:
        shape: A key of `SHAPES`.
        colour: Colour of the shape, a key of `COLOURS`.
        size: A key of `SIZES`.
        position: A key of `POSITIONS`.
        texture: One of `TEXTURES`.
        background: One of `BACKGROUNDS`.
        background_colours: One colour for a plain background, two for the others (gradient: top, bottom).
        seed: Draws what the caption does not say: the mottled noise, and a small shift of the shape.

    Raises:
        SdtmFxError: If a word is not known, or the number of background colours does not fit the background.
    """

    shape: str
    colour: str
    size: str
    position: str
    texture: str
    background: str
    background_colours: tuple[str, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        for field, known in _ACCEPTED.items():
            _check(field, getattr(self, field), known)
        for colour in self.background_colours:
            _check("background colour", colour, tuple(COLOURS))
        expected = 1 if self.background == "plain" else 2
        if len(self.background_colours) != expected:
            raise SdtmFxError(
                f"scene: a {self.background} background takes {expected} colour(s), found "
                f"{len(self.background_colours)}: {', '.join(self.background_colours) or 'none'}"
            )

    @property
    def caption(self) -> str:
        """The words that describe the scene; `sdtm_fx.toy.captions.parse_caption` reads them back."""
        subject = f"a {self.size} {self.texture} {self.colour} {self.shape} at the {self.position}"
        first, last = self.background_colours[0], self.background_colours[-1]
        return (
            subject
            + {
                "plain": f" on a plain {first} background",
                "gradient": f" on a {first}-to-{last} gradient",
                "mottled": f" on a mottled {first}-and-{last} background",
            }[self.background]
        )


_ACCEPTED: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "position": tuple(POSITIONS),
    "texture": TEXTURES,
    "background": BACKGROUNDS,
}


def _check(field: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise SdtmFxError(
            f"scene: unknown {field} {word!r}{nearest(word, known)}; accepted: {', '.join(known)}"
        )


def sample_scene(seed: int) -> Scene:
    """Draw the scene that belongs to a seed. The colours of shape and background always differ.

    Args:
        seed: Any integer; equal seeds give equal scenes, on every machine.
    """
    rng = random.Random(f"sdtm_fx.toy.scene:{seed}")
    colour, first, last = rng.sample(tuple(COLOURS), 3)
    background = rng.choice(BACKGROUNDS)
    return Scene(
        shape=rng.choice(tuple(SHAPES)),
        colour=colour,
        size=rng.choice(tuple(SIZES)),
        position=rng.choice(tuple(POSITIONS)),
        texture=rng.choice(TEXTURES),
        background=background,
        background_colours=(first,) if background == "plain" else (first, last),
        seed=seed,
    )


def scenes(start: int = 0) -> Iterator[Scene]:
    """Yield the scenes of the seeds `start`, `start + 1`, ... without end."""
    seed = start
    while True:
        yield sample_scene(seed)
        seed += 1


def render(scene: Scene, height: int, width: int) -> Tensor:
    """Draw a scene, anti-aliased.

    Args:
        scene: What to draw.
        height: Pixels, at least 1.
        width: Pixels, at least 1.

    Returns:
        [3, height, width] float32 in [-1, 1].

    Raises:
        SdtmFxError: If height or width is not positive.
    """
    if height < 1 or width < 1:
        raise SdtmFxError(f"render: height and width must be at least 1 pixel, found {height} x {width}")
    rng = random.Random(f"sdtm_fx.toy.render:{scene.seed}")
    side = min(height, width)
    shift_x, shift_y = (rng.uniform(-JITTER, JITTER) * side for _ in range(2))
    centre_x, centre_y = POSITIONS[scene.position]
    radius = SIZES[scene.size] * side
    # Pixel centres relative to the shape's centre, in pixels.
    x = (torch.arange(width) + 0.5 - centre_x * width - shift_x)[None, :].expand(height, width)
    y = (torch.arange(height) + 0.5 - centre_y * height - shift_y)[:, None].expand(height, width)
    inside = (0.5 - SHAPES[scene.shape](x / radius, y / radius) * radius).clamp(0, 1)
    image = torch.lerp(_background(scene, height, width, rng), _fill(scene, x, y, side), inside)
    return image * 2 - 1


def contrast(colour: str) -> Tensor:
    """Return the second colour of a texture, [3, 1, 1] in [0, 1]: darker, or lighter for dark colours."""
    value = torch.tensor(COLOURS[colour])[:, None, None]
    return value * 0.35 if float(value.mean()) > 0.2 else 1 - (1 - value) * 0.4


def _fill(scene: Scene, x: Tensor, y: Tensor, side: int) -> Tensor:
    """Colour of the shape at every pixel, [3, H, W] in [0, 1]; x and y [H, W] in pixels from its centre."""
    colour = torch.tensor(COLOURS[scene.colour])[:, None, None].expand(3, *x.shape)
    if scene.texture == "plain":
        return colour
    period = _TEXTURE_PERIOD * side
    wave_x, wave_y = (torch.sin(2 * math.pi * axis / period) for axis in (x, y))
    # Each field is positive on the first colour, negative on the second; its slope at zero is 2 pi / period.
    field = {
        "striped": wave_x,
        "checkered": wave_x * wave_y,
        "dotted": 0.6 - torch.cos(2 * math.pi * x / period) - torch.cos(2 * math.pi * y / period),
    }[scene.texture]
    first = (0.5 + field * period / (2 * math.pi)).clamp(0, 1)
    return torch.lerp(contrast(scene.colour), colour, first)


def _background(scene: Scene, height: int, width: int, rng: random.Random) -> Tensor:
    """Colour of the background at every pixel, [3, H, W] in [0, 1]."""
    first, last = (torch.tensor(COLOURS[scene.background_colours[i]])[:, None, None] for i in (0, -1))
    if scene.background == "plain":
        return first.expand(3, height, width)
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    if scene.background == "gradient":
        return torch.lerp(first, last, y)
    side = min(height, width)
    x = ((torch.arange(width) + 0.5) / side)[None, :]
    y = y * (height / side)
    noise = torch.zeros(height, width)
    # A few plane waves of random direction: smooth, endless, and independent of the resolution.
    for _ in range(6):
        angle, phase, frequency = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 2.2)
        direction = math.cos(angle) * x + math.sin(angle) * y
        noise = noise + torch.sin(2 * math.pi * frequency * direction + phase)
    return torch.lerp(first, last, torch.sigmoid(noise))
