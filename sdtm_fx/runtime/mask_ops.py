"""Operations on attention masks: columns that follow merged keys, and a bias beside a mask."""

from __future__ import annotations

import torch

from sdtm_fx.errors import PlanError
from sdtm_fx.plan import MergePlan


def reduce_mask(
    plan: MergePlan, mask: torch.Tensor, keys: torch.Tensor, start: int, length: int
) -> torch.Tensor:
    """Merge the image columns of a mask as their keys are merged; those of text stay, whatever they mask.

    Where a slot holds the token that represents it (``prune``), its column is that of this token, which is exact.
    Where it holds a mean:

    * of a boolean mask, a slot may be seen where any of its tokens may, so that no query loses its last key. A token
      that is masked has its part in the mean all the same; where image tokens are masked, prefer ``prune``;
    * of an additive mask, a slot gets log(mean(exp(bias))) of its tokens, which is exact for equal tokens once
      proportional attention adds log(size): together they weigh what each of them weighed (the sources are silent;
      this is the bias of ToMe's proportional attention for tokens that do not count the same). The column of a slot
      of one token stays as it is, to the last bit.

    Args:
        plan: The plan over the image tokens.
        mask: Boolean, True where a query sees a key, or additive. It broadcasts to [B, H, L', L], or where heads are
            folded into the batch to [B * H, L', L].
        keys: The keys, merged or not: [B, H, L, d], [B, L, H, d], or [B * H, L, d].
        start: Where the image starts among the keys.
        length: N, its tokens.

    Returns:
        The mask over L - N + M keys; where it was one for all keys, the mask.
    """
    if mask.shape[-1] == 1:
        return mask
    table = _batched(plan, mask, keys)
    image = _columns(plan, table[..., start : start + length], keys.dtype)
    shape = torch.broadcast_shapes(table.shape[:-1], image.shape[:-1])
    parts = [table[..., :start].expand(*shape, -1), image, table[..., start + length :].expand(*shape, -1)]
    fewer = torch.cat([part for part in parts if part.shape[-1]], dim=-1)
    if keys.ndim == 4:
        return fewer
    samples, heads = fewer.shape[:2]
    heads = max(heads, keys.shape[0] // samples) if samples > 1 else heads
    return fewer.expand(-1, heads, -1, -1).flatten(0, 1)


def add_bias(mask: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Add a bias over keys to the mask of a module: what is masked stays masked.

    Args:
        mask: Boolean, True where a query sees a key, or additive.
        bias: Additive; broadcasts with it.

    Returns:
        An additive mask, in the dtype of `mask`, or of `bias` where that is boolean.

    Raises:
        PlanError: The mask is over other keys: queries were merged too, and it comes from outside of the module.
    """
    if mask.shape[-1] not in (1, bias.shape[-1]):
        raise PlanError(
            f"attention has a mask over {mask.shape[-1]} keys, and merged tokens leave {bias.shape[-1]}: a mask from "
            "outside of the module follows where keys alone are merged; accepted: `merge: keys` at that site"
        )
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return mask + bias.to(mask.dtype)


def _batched(plan: MergePlan, mask: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The mask as [1 or B, 1 or H, 1 or L', L]."""
    if keys.ndim == 4:
        return mask[(None,) * (4 - mask.ndim)]
    folded = mask[(None,) * (3 - mask.ndim)]
    return folded[None] if folded.shape[0] == 1 else folded.unflatten(0, (plan.assign.shape[0], -1))


def _columns(plan: MergePlan, image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B, H, L', N] to [B, H, L', M]."""
    own = torch.take_along_dim(image, plan.positions[:, None, None], dim=-1)
    if plan.reduce == "prune":
        return own
    if image.dtype == torch.bool:
        return _mean(plan, image.to(dtype)) > 0
    top = image.amax(dim=-1, keepdim=True).float().clamp(min=torch.finfo(torch.float32).min)
    shared = _mean(plan, (image - top).exp()).log() + top
    return torch.where((plan.members > 1)[:, None, None], shared.to(image.dtype), own)


def _mean(plan: MergePlan, image: torch.Tensor) -> torch.Tensor:
    rows = image.movedim(-1, 1)
    rows = rows.expand(max(rows.shape[0], plan.assign.shape[0]), -1, -1, -1)
    return plan.reduced_by("mean").merge(rows.flatten(2)).unflatten(2, rows.shape[2:]).movedim(1, -1)
