"""The state and the step of the toy's training: rectified flow, Muon and AdamW, an average of the weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdtm_fx.errors import SdtmFxError, nearest
from sdtm_fx.toy.batches import SHIFT, Batch, make_batch
from sdtm_fx.toy.captions import CaptionEncoder
from sdtm_fx.toy.flux import build_flux, flux_velocity
from sdtm_fx.toy.model import TEXT_WIDTH
from sdtm_fx.toy.muon import Muon
from sdtm_fx.toy.runs import check_same_run, checked, rate
from sdtm_fx.toy.sd3 import build_sd3, sd3_velocity

_BUILDERS: dict[str, tuple[Callable[[int], nn.Module], Callable[..., Tensor]]] = {
    "sd3": (build_sd3, sd3_velocity),
    "flux": (build_flux, flux_velocity),
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What decides a run.

    Attributes:
        model: "sd3" or "flux".
        steps: Steps in all.
        high_steps: Steps at the end that are drawn around 64 x 64 px instead of 32 x 32 px.
        seed: Seed of weights and data.
        matrix_lr: Peak learning rate of the blocks' matrices (Muon).
        other_lr: Peak learning rate of everything else (AdamW).
        warmup: Steps of linear warm-up.
        decay: Fraction of the steps, at the end, over which the rate falls to zero along a cosine.
        ema: Decay of the weight average.
        pixels: Pixels per batch of the steps around 32 x 32 px.
        high_pixels: Pixels per batch of the steps around 64 x 64 px.
        shift: Shift of the training times at 32 x 32 px, towards noise; it grows with the side.
        bfloat16: Compute in bfloat16 under autocast; weights and optimiser stay float32.
        start: Folder of an earlier run whose averaged weights this one starts from, or ``shipped`` for the weights
            that the package carries; None starts from the seed.
        distil: Guidance scale to distil: what is learned is what `teacher` says under that guidance, so that one call
            a step does for two, as FLUX.1 dev was made; None learns from scenes.
        teacher: As `start`; the run whose guidance is distilled. None is the run of `start`.
    """

    model: str = "sd3"
    steps: int = 6700
    high_steps: int = 1700
    seed: int = 0
    matrix_lr: float = 4e-3
    other_lr: float = 2e-3
    warmup: int = 50
    decay: float = 0.35
    ema: float = 0.995
    pixels: int = 16 * 32 * 32
    high_pixels: int = 6 * 64 * 64
    shift: float = SHIFT
    bfloat16: bool = True
    start: str | None = None
    distil: float | None = None
    teacher: str | None = None


class Toy(nn.Module):
    """Transformer and caption encoder, trained together.

    Args:
        model: "sd3" or "flux".
        seed: Seed of the initial weights; the global generator is left untouched.

    Raises:
        SdtmFxError: If there is no such model.
    """

    def __init__(self, model: str = "sd3", seed: int = 0) -> None:
        super().__init__()
        if model not in _BUILDERS:
            accepted = ", ".join(_BUILDERS)
            raise SdtmFxError(f"toy: no model {model!r}{nearest(model, _BUILDERS)}; accepted: {accepted}")
        build, self._velocity = _BUILDERS[model]
        self.transformer = build(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.text_encoder = CaptionEncoder(width=TEXT_WIDTH, pooled_width=TEXT_WIDTH)

    def forward(self, noisy: Tensor, sigmas: Tensor, captions: Sequence[str]) -> Tensor:
        """Predict the velocity noise - image.

        Args:
            noisy: [B, 3, H, W].
            sigmas: [B] in [0, 1].
            captions: B captions.
        """
        height, width = noisy.shape[-2:]
        words, pooled = self.text_encoder.encode(captions, height, width)
        return self._velocity(self.transformer, noisy, sigmas * 1000, words, pooled)


class Trainer:
    """The state of a run: weights, their average, optimisers, step and losses.

    Args:
        config: The run.

    Raises:
        SdtmFxError: If there is nothing to distil from, or a teacher with nothing to distil.
    """

    def __init__(self, config: TrainConfig) -> None:
        if config.distil is not None and config.start is None and config.teacher is None:
            raise SdtmFxError(
                f"train: distil {config.distil:g} needs a run to distil from; give start or teacher: its folder, or "
                "shipped"
            )
        if config.teacher is not None and config.distil is None:
            raise SdtmFxError(
                f"train: teacher {config.teacher}: nothing of it would be learned; give distil: a guidance scale"
            )
        self.config = config
        self.teacher: Toy | None = None
        self.step = 0
        self.losses: list[float] = []
        self.seconds = 0.0
        self.toy = Toy(config.model, config.seed)
        self.average = {name: param.detach().clone() for name, param in self.toy.named_parameters()}
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, param in self.toy.named_parameters():
            is_matrix = param.ndim == 2 and "transformer_blocks" in name and "norm" not in name
            (matrices if is_matrix else others).append(param)
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=config.matrix_lr),
            torch.optim.AdamW(others, lr=config.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self._peaks = [config.matrix_lr, config.other_lr]

    def train_step(self) -> float:
        """Run one step and return its loss.

        Raises:
            SdtmFxError: If the loss is not finite.
        """
        began, config = time.perf_counter(), self.config
        high = self.step >= config.steps - config.high_steps
        pixels = config.high_pixels if high else config.pixels
        batch = make_batch(config.seed, self.step, high=high, pixels=pixels, shift=config.shift)
        sigmas = batch.sigmas[:, None, None, None]
        noisy = torch.lerp(batch.images, batch.noise, sigmas)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            velocity = self.toy(noisy, batch.sigmas, batch.captions)
        loss = (velocity.float() - self._target(batch, noisy)).square().mean()
        value = checked("train", float(loss.detach()), self.step)
        loss.backward()
        nn.utils.clip_grad_norm_(self.toy.parameters(), 1.0)
        share = rate(self.step, steps=config.steps, warmup=config.warmup, decay=config.decay)
        for optimiser, peak in zip(self.optimisers, self._peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * share
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        self.losses.append(value)
        self.seconds += time.perf_counter() - began
        return value

    @torch.no_grad()
    def _target(self, batch: Batch, noisy: Tensor) -> Tensor:
        """The velocity to learn: that of the scenes, or the guided one of the teacher."""
        if self.config.distil is None:
            return batch.noise - batch.images
        assert self.teacher is not None, "whoever distils calls learn_from"
        captions = [*batch.captions, *([""] * len(batch.captions))]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
            both = self.teacher(torch.cat([noisy] * 2), batch.sigmas.repeat(2), captions)
        positive, negative = both.float().chunk(2)
        return torch.lerp(negative, positive, self.config.distil)

    @torch.no_grad()
    def _update_average(self) -> None:
        # A short memory at first, or the average would keep the initial weights for long.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for name, param in self.toy.named_parameters():
            self.average[name].lerp_(param, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on exactly."""
        return {
            "config": dataclasses.asdict(self.config),
            "step": self.step,
            "losses": self.losses,
            "seconds": self.seconds,
            "toy": self.toy.state_dict(),
            "average": self.average,
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` gave.

        Raises:
            SdtmFxError: If the checkpoint belongs to a run with another configuration.
        """
        check_same_run("train", state["config"], self.config)
        self.step, self.losses, self.seconds = state["step"], list(state["losses"]), state["seconds"]
        self.toy.load_state_dict(state["toy"])
        self.average = {name: value.clone() for name, value in state["average"].items()}
        if self.config.distil is not None:
            self._take_teacher(state["teacher"])
        for optimiser, previous in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(previous)

    def start_from(self, model: str, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of an earlier run; steps, rates and optimisers begin anew.

        Args:
            model: What the earlier run trained.
            weights: Its parameters, by their names in `Toy`.

        Raises:
            SdtmFxError: If the earlier run trained another model.
        """
        if model != self.config.model:
            raise SdtmFxError(f"train: the run to start from trained {model!r}, not {self.config.model!r}")
        self.toy.load_state_dict(weights, strict=False)
        self.average = {name: param.detach().clone() for name, param in self.toy.named_parameters()}

    def learn_from(self, model: str, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a run whose guidance is to be distilled.

        Args:
            model: What that run trained.
            weights: Its parameters, by their names in `Toy`.

        Raises:
            SdtmFxError: If that run trained another model.
        """
        if model != self.config.model:
            raise SdtmFxError(f"train: the teacher was trained as {model!r}, not {self.config.model!r}")
        self._take_teacher({**self.toy.state_dict(), **weights})

    def _take_teacher(self, weights: Mapping[str, Tensor]) -> None:
        self.teacher = Toy(self.config.model, self.config.seed)
        self.teacher.load_state_dict(weights)
        self.teacher.eval()

    def averaged(self) -> Toy:
        """Return a toy that holds the averaged weights."""
        toy = Toy(self.config.model, self.config.seed)
        toy.load_state_dict(self.average, strict=False)
        return toy.eval()
