"""What a benchmark ran on."""

from __future__ import annotations

import platform
from typing import Any

import torch

from sdtm_fx.provenance import commit_of_code, processor


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers of this process are taken on, for a record of them.

    Args:
        device: Where the models run.
    """
    on_cuda = device.type == "cuda"
    return {
        "commit": commit_of_code(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name(device) if on_cuda else processor(),
        "threads": torch.get_num_threads(),
        "peak_memory": "torch.cuda.max_memory_allocated of one call" if on_cuda else "not counted on a CPU",
    }
