"""Trains the judge on one CPU core, resumable and deterministic by seed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdtm_fx.toy.judge import Judge
from sdtm_fx.toy.judge_data import judge_batch
from sdtm_fx.toy.runs import check_same_run, checked, rate, run_to_end


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """What decides a run.

    Attributes:
        steps: Steps in all.
        seed: Seed of weights and data.
        lr: Peak learning rate (AdamW); a linear warm-up of `warmup` steps, then a cosine to zero.
        warmup: Steps.
        weight_decay: Of the matrices, not of norms and biases.
        batch: Images per step.
        width: As `Judge`.
        bfloat16: Compute in bfloat16 under autocast; weights and optimiser stay float32.
    """

    steps: int = 3600
    seed: int = 0
    lr: float = 4e-3
    warmup: int = 100
    weight_decay: float = 0.02
    batch: int = 64
    width: int = 32
    bfloat16: bool = True


class JudgeTrainer:
    """The state of a run: weights, optimiser, step and losses.

    Args:
        config: The run.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self.step = 0
        self.losses: list[float] = []
        self.seconds = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.judge = Judge(width=config.width).to(memory_format=torch.channels_last)
        params = list(self.judge.parameters())
        groups = [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr)

    def train_step(self) -> float:
        """Run one step and return its loss: the cross-entropy, averaged over images and attributes.

        Raises:
            SdtmFxError: If the loss is not finite.
        """
        began, config = time.perf_counter(), self.config
        batch = judge_batch(config.seed, self.step, size=config.batch)
        self.judge.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            logits = self.judge(batch.images)
        loss = mean_loss(logits, batch.targets)
        value = checked("judge", float(loss.detach()), self.step)
        loss.backward()
        nn.utils.clip_grad_norm_(self.judge.parameters(), 5.0)
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr * rate(self.step, steps=config.steps, warmup=config.warmup, decay=1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.losses.append(value)
        self.seconds += time.perf_counter() - began
        return value

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on exactly."""
        return {
            "config": dataclasses.asdict(self.config),
            "step": self.step,
            "losses": self.losses,
            "seconds": self.seconds,
            "judge": self.judge.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` gave.

        Raises:
            SdtmFxError: If the checkpoint belongs to a run with another configuration.
        """
        check_same_run("judge", state["config"], self.config)
        self.step, self.losses, self.seconds = state["step"], list(state["losses"]), state["seconds"]
        self.judge.load_state_dict(state["judge"])
        self.optimiser.load_state_dict(state["optimiser"])


def mean_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Cross-entropy, averaged over images and attributes.

    Args:
        logits: [B, number of words] per attribute, of any floating type.
        targets: [B] int64 per attribute.
    """
    losses = [nn.functional.cross_entropy(scores.float(), targets[name]) for name, scores in logits.items()]
    return torch.stack(losses).mean()


def train_judge(
    config: JudgeConfig,
    folder: Path,
    *,
    resume: bool = False,
    every: int = 200,
    on_step: Callable[[JudgeTrainer], None] = lambda trainer: None,
) -> JudgeTrainer:
    """Train to the end, with `checkpoint.pt` and `losses.json` in `folder` every `every` steps.

    Args:
        config: The run.
        folder: Made if it is not there.
        resume: Go on from the checkpoint in `folder`.
        every: Steps between checkpoints.
        on_step: Called after the checkpoint is read, and after each step.

    Raises:
        SdtmFxError: If there is nothing to resume, a run would be overwritten, or the checkpoint is not whole.
    """
    return run_to_end(JudgeTrainer(config), folder, "judge", resume=resume, every=every, on_step=on_step)


def finished_judge(trainer: JudgeTrainer) -> Judge:
    """Return the judge as it is shipped: weights rounded to float16, held in float32, in evaluation mode.

    Args:
        trainer: The run; it is left as it is.
    """
    judge = Judge(width=trainer.config.width)
    judge.load_state_dict(trainer.judge.state_dict())
    finished: Judge = judge.half().float().eval()
    return finished


def export_judge(trainer: JudgeTrainer, folder: Path) -> None:
    """Write the weights in float16, as `load_judge` reads them.

    Args:
        trainer: The run; it is left as it is.
        folder: Made if it is not there.
    """
    finished_judge(trainer).half().save_pretrained(folder)
