from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.judge import MAX_SIDE, MIN_SIDE, WORDS, Judge
from sdtm_fx.toy.judge_data import SIZES, disturb, draw, judge_batch, targets, unseen
from sdtm_fx.toy.judge_train import (
    JudgeConfig,
    JudgeTrainer,
    export_judge,
    finished_judge,
    mean_loss,
    train_judge,
)

TINY = JudgeConfig(steps=4, warmup=1, batch=4, width=4, bfloat16=False)


def test_batches_are_a_function_of_seed_and_step() -> None:
    first, again, other = judge_batch(0, 3, size=4), judge_batch(0, 3, size=4), judge_batch(0, 4, size=4)
    assert torch.equal(first.images, again.images)
    assert first.images.shape[:2] == (4, 3)
    assert first.images.min() >= 0
    assert first.images.max() <= 1
    assert all(torch.equal(first.targets[name], again.targets[name]) for name in WORDS)
    assert any(not torch.equal(first.targets[name], other.targets[name]) for name in WORDS)
    with pytest.raises(SdtmFxError, match="must not be negative, found seed -1, step 0"):
        judge_batch(-1, 0)


def test_batches_cover_the_sizes_that_the_judge_reads() -> None:
    sides = [side for size in SIZES for side in size]
    assert (min(sides), max(sides)) == (MIN_SIDE, MAX_SIDE)
    drawn = {tuple(judge_batch(0, step, size=1).images.shape[2:]) for step in range(60)}
    assert drawn <= set(SIZES)
    assert len(drawn) > 8
    assert sum(size == (64, 64) for size in SIZES) >= 6


def test_targets_are_the_words_of_the_scenes() -> None:
    scenes = unseen(5)
    found = targets(scenes)
    assert list(found) == list(WORDS)
    for name, places in found.items():
        words = [WORDS[name][place] for place in places.tolist()]
        assert words == [getattr(scene, name) for scene in scenes]


def test_disturbing_is_mild_deterministic_and_leaves_some_images_sharp() -> None:
    images = draw(unseen(32), 64, 64)
    disturbed = disturb(images, torch.Generator().manual_seed(1))
    assert torch.equal(disturbed, disturb(images, torch.Generator().manual_seed(1)))
    change = (disturbed - images).abs().mean((1, 2, 3))
    assert change.max() < 0.15
    assert change.min() < 0.02 < change.mean()


def test_the_loss_of_a_clueless_judge_is_that_of_guessing() -> None:
    scenes = unseen(6)
    logits = {name: torch.zeros(6, len(words)) for name, words in WORDS.items()}
    expected = sum(torch.tensor(float(len(words))).log() for words in WORDS.values()) / len(WORDS)
    assert mean_loss(logits, targets(scenes)) == pytest.approx(float(expected))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, JudgeTrainer]:
    folder = tmp_path_factory.mktemp("judge")
    return folder, train_judge(TINY, folder, every=2)


def test_a_resumed_run_is_the_same_run(run: tuple[Path, JudgeTrainer], tmp_path: Path) -> None:
    _, whole = run
    half = JudgeTrainer(TINY)
    half.train_step()
    half.train_step()
    torch.save(half.state_dict(), tmp_path / "checkpoint.pt")
    seen: list[int] = []
    resumed = train_judge(TINY, tmp_path, resume=True, on_step=lambda trainer: seen.append(trainer.step))
    assert seen == [2, 3, 4]
    assert resumed.losses == whole.losses
    for name, value in whole.judge.state_dict().items():
        assert torch.equal(value, resumed.judge.state_dict()[name]), name


def test_a_run_learns_writes_its_losses_and_leaves_the_global_generator(
    run: tuple[Path, JudgeTrainer],
) -> None:
    folder, trainer = run
    curve = json.loads((folder / "losses.json").read_text())
    assert curve["loss"] == trainer.losses
    assert len(curve["loss"]) == 4
    assert curve["config"]["width"] == 4
    assert curve["seconds"] > 0
    assert {path.name for path in folder.iterdir()} == {"checkpoint.pt", "losses.json"}
    state = torch.random.get_rng_state()
    longer = JudgeTrainer(JudgeConfig(steps=40, warmup=2, batch=8, width=4, bfloat16=False))
    while longer.step < 40:
        longer.train_step()
    assert torch.equal(state, torch.random.get_rng_state())
    assert sum(longer.losses[-10:]) < sum(longer.losses[:10])


def test_an_export_is_what_was_trained(run: tuple[Path, JudgeTrainer], tmp_path: Path) -> None:
    _, trainer = run
    export_judge(trainer, tmp_path)
    judge = Judge.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    assert judge.words == WORDS
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()
    finished = finished_judge(trainer)
    assert not finished.training
    for name, value in trainer.judge.state_dict().items():
        assert torch.equal(finished.state_dict()[name], judge.state_dict()[name]), name
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(judge.state_dict()[name], expected), name


def test_runs_are_not_mixed_up(run: tuple[Path, JudgeTrainer], tmp_path: Path) -> None:
    folder, _ = run
    with pytest.raises(SdtmFxError, match="holds a run already; pass --resume"):
        train_judge(TINY, folder)
    with pytest.raises(SdtmFxError, match=r"nothing to resume or export: .*checkpoint\.pt is missing"):
        train_judge(TINY, tmp_path, resume=True)
    with pytest.raises(
        SdtmFxError, match=r"of another run: steps 4 \(now 9\), seed 0 \(now 1\); resume with"
    ):
        other = JudgeConfig(steps=9, seed=1, warmup=1, batch=4, width=4, bfloat16=False)
        train_judge(other, folder, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    trainer = JudgeTrainer(TINY)
    torch.nn.init.constant_(trainer.judge.heads["shape"].bias, float("nan"))
    with pytest.raises(SdtmFxError, match="loss is nan at step 0; lower the learning rate"):
        trainer.train_step()
