"""`import sdtm_fx` does nothing but define names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECK = """
import random, sys
import numpy
import rich.console  # draws from `random` when it is imported
import torch
import torch._dynamo.config, torch._inductor.config

def state():
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        torch.random.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(),
        torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy(),
    )

before = state()
import sdtm_fx
assert state() == before, "the import changed global state"
assert not torch.cuda.is_initialized()
heavy = ("matplotlib", "transformers", "peft", "accelerate", "typer", "hypothesis")
print("heavy:", *(name for name in heavy if name in sys.modules))
"""


def test_it_changes_no_global_state_and_loads_nothing_heavy(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "heavy:"
