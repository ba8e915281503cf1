"""Building the model: in full on meta to look at, and a smaller copy with random weights to run.

The rule for the smaller copy, in order; the first that builds (and that a call can be found for) is taken:

1. Fields that count layers (their names say layer, depth or block; integers, or lists of integers) become at most
   `layers`. Widths stay. This is all where the weights then take less than `LIMIT` numbers.
2. Heads are divided as well, by the largest number that divides them all, and fields that hold a width made of them
   (a multiple of heads times head dimension) by the same number. In a U-Net the lists of channels take their place.
3. Numbers of heads are divided alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from sdtm_fx.errors import InspectionError
from sdtm_fx.inspecting.opening import Subject

LIMIT = 40_000_000
"""Weights of a copy that is run as it is."""

_COUNTS = ("layer", "depth", "block")
_HEADS = (
    "num_attention_heads",
    "num_heads",
    "n_heads",
    "num_kv_heads",
    "n_kv_heads",
    "num_cross_attention_heads",
)


def build_on_meta(subject: Subject, config: Mapping[str, Any] | None = None) -> torch.nn.Module:
    """Build a model without weights.

    Args:
        subject: What to build.
        config: Another config of the class; absent: the subject's own.

    Raises:
        InspectionError: The class refuses the config.
    """
    try:
        with torch.device("meta"):
            model: torch.nn.Module = subject.kind(**(subject.config if config is None else config))
    except Exception as error:
        raise InspectionError(
            f"{subject.name} cannot be built from {subject.source}: {type(error).__name__}: {error}; "
            "give the config.json of a released model with --config"
        ) from error
    return model.eval().requires_grad_(False)


def with_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """A config with at most so many layers of each kind; fields that count none of them are kept."""
    return {name: _cut(name, value, layers) for name, value in config.items()}


def layer_fields(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a config that count layers, in its order."""
    return tuple(n for n, v in config.items() if type(v) is int and v > 0 and _cut(n, v, 0) != v)


def small_configs(subject: Subject, layers: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield configs of smaller copies, the nearest to the model first, and what was done to each.

    A model that is small already is yielded as it is.

    Args:
        subject: The model.
        layers: Most layers of each kind.
    """
    cut = with_layers(subject.config, layers)
    said = f"at most {layers} layers of each kind"
    if weights(build_on_meta(subject)) <= LIMIT // 10:
        yield dict(subject.config), "the model itself"
    for config in (cut, with_layers(subject.config, layers + 1), with_layers(subject.config, 2 * layers)):
        model = _try_build(subject, config)
        if model is not None and weights(model) <= LIMIT:
            yield config, said
    for config, divisor in _narrower(cut):
        model = _try_build(subject, config)
        if model is not None and weights(model) <= LIMIT:
            yield config, f"{said}, widths divided by {divisor}"


def weights(model: torch.nn.Module) -> int:
    """Numbers in the parameters of a model."""
    return sum(p.numel() for p in model.parameters())


def fill(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give a model that was built on the host small random weights, zero-initialised gates too, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            is_scale = parameter.ndim == 1 and bool(torch.all(parameter == 1))
            parameter.copy_(noise + 1.0 if is_scale else noise)
    return model.eval().requires_grad_(False)


def _try_build(subject: Subject, config: Mapping[str, Any]) -> torch.nn.Module | None:
    """A model of another config, or None where the class refuses it: that is how configs are found out."""
    try:
        return build_on_meta(subject, config)
    except InspectionError:
        return None


def _cut(name: str, value: Any, layers: int) -> Any:
    if not any(word in name for word in _COUNTS) or "channels" in name or "dim" in name or "size" in name:
        return value
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return min(value, layers)
    if isinstance(value, list | tuple) and value and all(type(v) is int for v in value) and "per" in name:
        return type(value)(min(v, layers) for v in value)
    return value


def _narrower(config: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    heads = {name: config[name] for name in _HEADS if type(config.get(name)) is int}
    if heads:
        common = math.gcd(*heads.values())
        width = max(heads.values()) * _head_dim(config)
        for divisor in sorted(_divisors(common) - {1}, reverse=True):
            narrow = {n: v // divisor if n in heads else v for n, v in config.items()}
            wide = {
                n: v // divisor if _is_width(n, v, width) and n not in heads else v for n, v in narrow.items()
            }
            yield wide, divisor
            yield narrow, divisor
    channels = config.get("block_out_channels")
    if isinstance(channels, list | tuple):
        groups = config.get("norm_num_groups") or 1
        for divisor in sorted(
            _divisors(math.gcd(*channels) // math.gcd(*channels, groups)) - {1}, reverse=True
        ):
            yield {**config, "block_out_channels": tuple(c // divisor for c in channels)}, divisor


def _head_dim(config: Mapping[str, Any]) -> int:
    for name in ("attention_head_dim", "head_dim"):
        if type(config.get(name)) is int:
            return int(config[name])
    return 1


def _is_width(name: str, value: Any, width: int) -> bool:
    return type(value) is int and width > 1 and value >= width and value % width == 0


def _divisors(number: int) -> set[int]:
    return {d for d in range(1, number + 1) if number % d == 0}
