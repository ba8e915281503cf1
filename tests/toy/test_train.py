from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.batches import make_batch
from sdtm_fx.toy.export import pipeline_from_checkpoint
from sdtm_fx.toy.load import load_toy
from sdtm_fx.toy.muon import Muon, orthogonalise
from sdtm_fx.toy.pipeline import ToyFluxPipeline, ToySD3Pipeline
from sdtm_fx.toy.runs import rate
from sdtm_fx.toy.sd3 import build_sd3
from sdtm_fx.toy.train import train
from sdtm_fx.toy.trainer import TrainConfig, Trainer

TINY = TrainConfig(steps=4, high_steps=1, warmup=1, pixels=32 * 32, high_pixels=64 * 64, bfloat16=False)


def test_batches_are_a_function_of_seed_and_step() -> None:
    first, again, other = (
        make_batch(0, 5, high=False),
        make_batch(0, 5, high=False),
        make_batch(0, 6, high=False),
    )
    assert torch.equal(first.images, again.images)
    assert first.captions == again.captions
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.sigmas, again.sigmas)
    assert first.captions != other.captions
    assert first.noise.shape == first.images.shape
    assert len(first.captions) == len(first.images) == len(first.sigmas)
    with pytest.raises(SdtmFxError, match="must not be negative, found seed 0, step -1"):
        make_batch(0, -1, high=False)


def test_batches_cover_sizes_empty_captions_and_times() -> None:
    low = [make_batch(1, step, high=False, pixels=4096) for step in range(80)]
    high = [make_batch(1, step, high=True, pixels=4096) for step in range(20)]
    assert {(32, 32), (24, 40), (40, 24)} <= {tuple(batch.images.shape[2:]) for batch in low}
    assert (64, 64) in {tuple(batch.images.shape[2:]) for batch in high}
    captions = [caption for batch in low for caption in batch.captions]
    assert 0.04 < captions.count("") / len(captions) < 0.2
    sigmas = torch.cat([batch.sigmas for batch in low])
    assert sigmas.min() > 0
    assert sigmas.max() < 1
    assert torch.cat([batch.sigmas for batch in high]).mean() > sigmas.mean() + 0.03
    assert (sigmas < 0.3).float().mean() > 0.04, "fine detail is drawn at low noise"
    nearer = make_batch(1, 0, high=False, pixels=4096, shift=9.0)
    assert torch.equal(nearer.images, low[0].images)
    assert (nearer.sigmas >= low[0].sigmas).all()
    assert (nearer.sigmas > low[0].sigmas).any()


def test_the_rate_warms_up_holds_and_falls_to_zero() -> None:
    rates = [rate(step, steps=100, warmup=10, decay=0.4) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:60] == [1.0] * 51
    assert rates[80] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert all(after <= before for before, after in itertools.pairwise(rates[60:]))


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    for shape in ((3, 16, 48), (3, 48, 16)):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(matrices))
        assert values.min() > 0.5
        assert values.max() < 1.4
        alone = torch.stack([orthogonalise(matrix[None])[0] for matrix in matrices])
        assert torch.allclose(orthogonalise(matrices), alone, atol=1e-5)


def test_muon_descends() -> None:
    goal = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    weight, idle = torch.nn.Parameter(torch.zeros(8, 8)), torch.nn.Parameter(torch.ones(8, 8))
    optimiser = Muon([weight, idle], lr=0.1, weight_decay=0.0)
    for _ in range(60):
        optimiser.zero_grad()
        (weight - goal).square().mean().backward()
        optimiser.step()
    assert (weight - goal).square().mean() < 0.1 * goal.square().mean()
    assert torch.equal(idle, torch.ones(8, 8))


def test_the_initial_weights_depend_on_the_seed_alone() -> None:
    small = {"num_layers": 1, "num_heads": 1, "head_dim": 16}
    first, again, other = (build_sd3(seed, **small) for seed in (0, 0, 1))
    assert torch.equal(first.context_embedder.weight, again.context_embedder.weight)
    assert not torch.equal(first.context_embedder.weight, other.context_embedder.weight)
    assert not first.proj_out.weight.any()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    folder = tmp_path_factory.mktemp("run")
    return folder, train(TINY, folder, every=2)


def test_a_resumed_run_is_the_same_run(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    _, whole = run
    half = Trainer(TINY)
    half.train_step()
    half.train_step()
    torch.save(half.state_dict(), tmp_path / "checkpoint.pt")
    resumed = train(TINY, tmp_path, resume=True)
    assert resumed.losses == whole.losses
    assert resumed.step == 4
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_the_loss_curve_is_written(run: tuple[Path, Trainer]) -> None:
    folder, trainer = run
    curve = json.loads((folder / "losses.json").read_text())
    assert curve["loss"] == trainer.losses
    assert len(curve["loss"]) == 4
    assert curve["config"]["high_steps"] == 1
    assert curve["seconds"] > 0


def export(run: Path, out: Path, shift: float = 2.0) -> None:
    pipeline = pipeline_from_checkpoint(run / "checkpoint.pt", shift=shift)
    pipeline.to(dtype=torch.float16).save_pretrained(out)


def test_a_run_exports_to_a_float16_pipeline(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    folder, trainer = run
    export(folder, tmp_path, shift=1.5)
    pipe = ToySD3Pipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert pipe.scheduler.config.shift == 1.5
    expected = trainer.average["transformer.proj_out.weight"].half().float()
    assert torch.equal(pipe.transformer.proj_out.weight, expected)
    assert str(tmp_path) not in (tmp_path / "transformer/config.json").read_text()


def test_a_run_of_the_flux_toy_exports_its_own_pipeline(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, model="flux", steps=2, high_pixels=32 * 32)
    trainer = train(config, tmp_path / "run")
    assert trainer.losses[0] > 0.5
    export(tmp_path / "run", tmp_path / "pipeline")
    pipe = ToyFluxPipeline.from_pretrained(tmp_path / "pipeline", low_cpu_mem_usage=False)
    expected = trainer.average["transformer.proj_out.weight"].half().float()
    assert torch.equal(pipe.transformer.proj_out.weight, expected)


def test_a_run_starts_from_the_averaged_weights_of_another(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    folder, earlier = run
    config = dataclasses.replace(TINY, start=str(folder), seed=1)
    begun: list[dict[str, torch.Tensor]] = []

    def note(trainer: Trainer) -> None:
        begun.append({name: param.detach().clone() for name, param in trainer.toy.named_parameters()})

    later = train(config, tmp_path, every=2, on_step=note)
    assert set(begun[0]) == set(earlier.average)
    assert all(torch.equal(begun[0][name], value) for name, value in earlier.average.items())
    assert later.step == 4
    assert later.losses[0] < earlier.losses[0]
    # Going on needs the run's own checkpoint only, whatever became of the earlier one.
    gone = dataclasses.replace(config, start=str(tmp_path / "gone"))
    with pytest.raises(SdtmFxError, match=r"another run: start .*gone"):
        train(gone, tmp_path, resume=True)
    with pytest.raises(
        SdtmFxError, match=r"start: .*gone.checkpoint\.pt is missing; accepted: the folder of"
    ):
        train(gone, tmp_path / "new")
    typo = dataclasses.replace(config, start="shiped")
    with pytest.raises(SdtmFxError, match=r"or shipped \(did you mean 'shipped'\?\)"):
        train(typo, tmp_path / "new")
    flux = dataclasses.replace(config, model="flux")
    with pytest.raises(SdtmFxError, match="the run to start from trained 'sd3', not 'flux'"):
        train(flux, tmp_path / "flux")
    assert not (tmp_path / "flux").exists()


def test_a_run_starts_from_the_shipped_weights(tmp_path: Path) -> None:
    begun: list[dict[str, torch.Tensor]] = []

    def note(trainer: Trainer) -> None:
        begun.append({name: value.clone() for name, value in trainer.average.items()})

    train(dataclasses.replace(TINY, start="shipped", steps=1), tmp_path, on_step=note)
    shipped = load_toy("sd3")
    expected = {
        f"{part}.{name}": value
        for part in ("transformer", "text_encoder")
        for name, value in shipped.components[part].named_parameters()
    }
    assert set(begun[0]) == set(expected)
    assert all(torch.equal(begun[0][name], value) for name, value in expected.items())


def test_guidance_is_distilled(tmp_path: Path) -> None:
    short = dataclasses.replace(TINY, start="shipped", steps=2, pixels=4 * 32 * 32)
    configs = {scale: dataclasses.replace(short, distil=scale) for scale in (1.0, 3.0, 5.0)}
    runs = {scale: train(config, tmp_path / str(scale), every=1) for scale, config in configs.items()}
    assert runs[1.0].losses[0] < 1e-9, "without guidance the teacher says what the pupil says"
    assert runs[3.0].losses[0] > 1e-6
    assert runs[5.0].losses[0] == pytest.approx(4 * runs[3.0].losses[0], rel=1e-3), "both are on one line"
    with pytest.raises(
        SdtmFxError, match="distil 2 needs a run to distil from; give start or teacher: its folder, or"
    ):
        Trainer(dataclasses.replace(TINY, distil=2.0))

    class Cut(Exception):
        """The power went out."""

    def cut(trainer: Trainer) -> None:
        if trainer.step == 2:
            raise Cut

    with pytest.raises(Cut):
        train(configs[3.0], tmp_path / "cut", every=1, on_step=cut)
    resumed = train(configs[3.0], tmp_path / "cut", every=1, resume=True)
    assert resumed.losses == runs[3.0].losses, "the teacher is part of the checkpoint"


def test_a_teacher_may_be_another_run_than_the_one_it_starts_from(
    run: tuple[Path, Trainer], tmp_path: Path
) -> None:
    folder, trainer = run
    config = dataclasses.replace(
        TINY, start="shipped", teacher=str(folder), distil=1.0, steps=1, pixels=4 * 32 * 32
    )
    seen: list[Trainer] = []
    made = train(config, tmp_path / "pupil", on_step=seen.append)
    assert made.teacher is not None
    taught = dict(made.teacher.named_parameters())
    assert all(torch.equal(taught[name], value) for name, value in trainer.average.items())
    assert made.losses[0] > 1e-3, "the shipped weights say something else than those of a few steps"
    from_scratch = dataclasses.replace(config, start=None, teacher="shipped")
    assert train(from_scratch, tmp_path / "scratch").losses[0] > 1e-3
    with pytest.raises(SdtmFxError, match="the teacher was trained as 'sd3', not 'flux'"):
        train(dataclasses.replace(config, model="flux"), tmp_path / "flux")
    with pytest.raises(SdtmFxError, match=r"train: teacher: .*is missing.*did you mean 'shipped'"):
        train(dataclasses.replace(config, teacher="shiped"), tmp_path / "typo")
    with pytest.raises(SdtmFxError, match="teacher shipped: nothing of it would be learned; give distil"):
        Trainer(dataclasses.replace(TINY, teacher="shipped"))


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(SdtmFxError, match=r"no model 'flx' \(did you mean 'flux'\?\); accepted: sd3, flux"):
        Trainer(dataclasses.replace(TINY, model="flx"))


def test_runs_are_not_mixed_up(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    folder, _ = run
    with pytest.raises(SdtmFxError, match="holds a run already; pass --resume"):
        train(TINY, folder)
    with pytest.raises(SdtmFxError, match="nothing to resume"):
        train(TINY, tmp_path, resume=True)
    with pytest.raises(SdtmFxError, match=r"of another run: steps 4 \(now 5\), high_steps 1 \(now 1700\)"):
        train(dataclasses.replace(TINY, steps=5, high_steps=1700), folder, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    trainer = Trainer(TINY)
    torch.nn.init.constant_(trainer.toy.transformer.proj_out.bias, float("nan"))
    with pytest.raises(SdtmFxError, match="loss is nan at step 0; lower the learning rate"):
        trainer.train_step()
