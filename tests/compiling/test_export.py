"""Exported phases: the same images in a process that has only torch and sdtm_fx."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sdtm_fx
from sdtm_fx.compiling.manifest import MANIFEST, WEIGHTS
from sdtm_fx.errors import PackageError, RewriteError, ScheduleError
from tests.compiling.counting import FEW, phases_of
from tests.user.cases import SD3, run_steps

pytestmark = pytest.mark.compile

SIZE = sdtm_fx.Size(grid=(8, 8), batch=2, text=5, steps=8, cfg_halves=1)
# Kernels of ahead-of-time code add in another order; values here are of size one.
ROUNDING = 1e-4

OTHER_PROCESS = """
import sys
import torch
import sdtm_fx

folder, data = sys.argv[1:]
model = sdtm_fx.load(folder)
calls = torch.load(data)
outputs = []
with torch.no_grad(), model.steps() as clock:
    for call in calls:
        outputs.append(model(**call, return_dict=False)[0])
        clock.advance()
assert not any("transformer_sd3" in name for name in sys.modules), "the model's own Python was imported"
torch.save(outputs, data)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], list[torch.Tensor]]:
    """A package, the calls of one generation, and what eager phases answer."""
    folder = tmp_path_factory.mktemp("package") / "exported"
    model, inputs = SD3.model(), SD3.inputs()
    sdtm_fx.rewrite(model, SD3.recipe(FEW))
    calls: list[Any] = []
    handle = model.register_forward_pre_hook(
        lambda m, a, kwargs: calls.append({k: v for k, v in kwargs.items() if isinstance(v, torch.Tensor)}),
        with_kwargs=True,
    )
    eager = run_steps(model, inputs)
    handle.remove()
    sdtm_fx.export(model, folder, SIZE)
    assert len(list(folder.glob("*.pt2"))) == phases_of(model, 8)
    torch.testing.assert_close(run_steps(model, inputs), eager, rtol=0, atol=0)  # it stays as it was
    return folder, calls, eager


@pytest.mark.slow
def test_another_process_makes_the_same_images(
    package: tuple[Path, list[Any], list[torch.Tensor]], tmp_path: Path
) -> None:
    folder, calls, eager = package
    torch.save(calls, tmp_path / "calls.pt")
    command = [sys.executable, "-c", OTHER_PROCESS, str(folder), str(tmp_path / "calls.pt")]
    subprocess.run(command, check=True, timeout=600)
    outputs = torch.load(tmp_path / "calls.pt")
    torch.testing.assert_close(outputs, eager, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.slow
def test_a_second_generation_starts_afresh(package: tuple[Path, list[Any], list[torch.Tensor]]) -> None:
    folder, calls, eager = package
    model = sdtm_fx.load(folder)
    for _ in range(2):
        with model.steps() as clock:
            for call, expected in zip(calls, eager, strict=True):
                torch.testing.assert_close(
                    model(**call, return_dict=False)[0], expected, rtol=ROUNDING, atol=ROUNDING
                )
                clock.advance()


@pytest.mark.slow
def test_what_a_package_was_not_made_for_is_an_error(
    package: tuple[Path, list[Any], list[torch.Tensor]],
) -> None:
    folder, calls, _ = package
    model = sdtm_fx.load(folder)
    other = SD3.inputs(grid=(6, 10))
    with (
        pytest.raises(
            PackageError, match="not made for 6x10 tokens, batch 2, 5 text tokens; it has 8x8 tokens"
        ),
        model.steps(),
    ):
        model(**other)
    with (
        pytest.raises(PackageError, match=r"no schedule of 9 steps for 8x8 tokens.*it has 8"),
        model.steps(9),
    ):
        model(**calls[0])


@pytest.mark.slow
def test_arguments_are_those_that_were_exported_whatever_their_strides(
    package: tuple[Path, list[Any], list[torch.Tensor]],
) -> None:
    folder, calls, eager = package
    model = sdtm_fx.load(folder)
    # Pipelines expand one time to the batch: a stride of 0, which compiled code would not notice.
    expanded = {**calls[0], "timestep": calls[0]["timestep"][:1].expand(2)}
    with model.steps():
        output = model(**expanded).sample
    torch.testing.assert_close(output, eager[0], rtol=ROUNDING, atol=ROUNDING)
    double = {**calls[0], "timestep": calls[0]["timestep"].double()}
    with (
        pytest.raises(PackageError, match=r"for timestep: \[2\] torch\.float32; found \[2\] torch\.float64"),
        model.steps(),
    ):
        model(**double)
    missing = {k: v for k, v in calls[0].items() if k != "pooled_projections"}
    with (
        pytest.raises(
            PackageError, match=r"for pooled_projections: \[2, \d+\] torch\.float32; found no tensor"
        ),
        model.steps(),
    ):
        model(**missing)
    with (
        pytest.raises(PackageError, match=r"made for skip_layers=None, found \[0\]"),
        model.steps(),
    ):
        model(**calls[0], skip_layers=[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch": "2.0.0"}, r"made by torch 2\.0\.0, this is torch .*Export the model again"),
        ({"sdtm_fx": "0.0.1"}, r"made by sdtm_fx 0\.0\.1, this is sdtm_fx"),
        ({"format": 0}, "another format; accepted: format 1"),
        ({"processor": "i386 MMX"}, r"compiled for i386 MMX, this machine has .*Export the model here"),
        ({"files": {"weights.pt": 12}}, r"weights\.pt is missing\. Copy the whole folder, or export"),
        ({"device": "cuda"}, "compiled for cuda, and this machine has no CUDA device"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_package_of_another_world_is_refused(
    package: tuple[Path, list[Any], list[torch.Tensor]], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    if change.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    manifest = json.loads((package[0] / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(PackageError, match=message):
        sdtm_fx.load(tmp_path)


@pytest.mark.slow
def test_a_package_cut_short_is_refused(
    package: tuple[Path, list[Any], list[torch.Tensor]], tmp_path: Path
) -> None:
    folder = shutil.copytree(package[0], tmp_path / "copy")
    sdtm_fx.load(folder)
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(PackageError, match=r"weights\.pt has 100 bytes instead of \d+: it was cut short"):
        sdtm_fx.load(folder)


def test_a_folder_without_a_package_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        PackageError, match=r"no manifest\.json; accepted: a folder that sdtm_fx\.export has written"
    ):
        sdtm_fx.load(tmp_path)


def test_exporting_before_rewriting_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RewriteError, match=r"is not rewritten; call sdtm_fx\.rewrite"):
        sdtm_fx.export(SD3.model(), tmp_path, SIZE)


def test_a_size_that_the_recipe_cannot_do_is_an_error(tmp_path: Path) -> None:
    model = sdtm_fx.rewrite(SD3.model(), SD3.recipe({**FEW, "ratio.start": 0.74}))
    with pytest.raises(ScheduleError, match="ratio"):
        sdtm_fx.export(model, tmp_path / "exported", sdtm_fx.Size(grid=(3, 3), text=5))
    assert not (tmp_path / "exported").exists()


def test_a_measured_ratio_cannot_be_exported(tmp_path: Path) -> None:
    model = sdtm_fx.rewrite(
        SD3.model(), SD3.recipe({**FEW, "stages.structure.ratio": {"threshold": 0.2, "start": 0.5}})
    )
    with pytest.raises(
        PackageError, match=r"measures its ratio while it runs \(threshold\); accepted: a curve"
    ):
        sdtm_fx.export(model, tmp_path, SIZE)


# -- the compile cache -------------------------------------------------------------------------------------


ONE_CALL = """
import sys
import torch
import sdtm_fx
from torch._dynamo.utils import counters
from tests.compiling.counting import FEW
from tests.user.cases import SD3

action, file = sys.argv[1:]
if action == "load":
    sdtm_fx.load_compile_cache(file)
model = sdtm_fx.rewrite(SD3.model(), SD3.recipe(FEW))
sdtm_fx.compile(model)
with torch.no_grad(), sdtm_fx.steps(model, 8):
    model(**SD3.inputs())
if action == "save":
    sdtm_fx.save_compile_cache(file)
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
print(counters["aot_autograd"]["autograd_cache_hit"], counters["aot_autograd"]["autograd_cache_miss"])
"""


def run_process(action: str, file: Path, cache: Path) -> tuple[list[int], list[int]]:
    """Compile in a process of its own; returns hits and misses in inductor's cache, and in autograd's."""
    output = subprocess.run(
        [sys.executable, "-c", ONE_CALL, action, str(file)],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
    ).stdout
    graphs, whole = ([int(word) for word in line.split()] for line in output.splitlines()[-2:])
    return graphs, whole


@pytest.mark.slow
def test_a_second_process_starts_warm(tmp_path: Path) -> None:
    file = tmp_path / "cache.bin"
    graphs, whole = run_process("save", file, tmp_path / "first")
    assert max(graphs[1], whole[1]) == 1  # compiled
    graphs, whole = run_process("load", file, tmp_path / "second")
    assert graphs[1] == whole[1] == 0  # nothing was compiled again
    assert max(graphs[0], whole[0]) == 1


def test_a_missing_or_damaged_cache_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no compile cache at"):
        sdtm_fx.load_compile_cache(tmp_path / "none.bin")
    broken = tmp_path / "broken.bin"
    broken.write_bytes(b"not a cache")
    with pytest.raises(PackageError, match=r"broken\.bin is not a whole compile cache \(11 bytes\)"):
        sdtm_fx.load_compile_cache(broken)


@pytest.mark.slow
def test_tokens_that_are_stored_one_by_one_are_carried(tmp_path: Path) -> None:
    model, inputs = SD3.model(), SD3.inputs()
    method = {"name": "token_cache", "probe_queries": 16}
    changes = {
        "stages": [{"name": "all", "until": 1.0, "sites": ["ff"], "method": method}],  # two phases
        "reuse": {"order": 1, "weight": 0.0, "update": "tokens"},
        "keep_dense.last_steps": 0,
    }
    sdtm_fx.rewrite(model, SD3.recipe({**FEW, **changes}))
    calls: list[Any] = []
    handle = model.register_forward_pre_hook(
        lambda m, a, kwargs: calls.append({k: v for k, v in kwargs.items() if isinstance(v, torch.Tensor)}),
        with_kwargs=True,
    )
    eager = run_steps(model, inputs)
    handle.remove()
    sdtm_fx.export(model, tmp_path / "exported", SIZE)
    assert len(list((tmp_path / "exported").glob("*.pt2"))) == 2
    packaged = sdtm_fx.load(tmp_path / "exported")
    for _ in range(2):  # the second generation starts afresh
        with packaged.steps() as clock:
            for call, expected in zip(calls, eager, strict=True):
                found = packaged(**call, return_dict=False)[0]
                torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)
                clock.advance()
