"""`sdtm-fx calibrate`: measures this device for the cost gate."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def calibrate(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="What models compute in: float32, bfloat16 or float16.")
    ] = "float32",
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Measure compiled code, for models that are compiled.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")] = 0,
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 40.0,
) -> None:
    """Measure what this device can do per second, and keep it: recipes then leave out sites that do not pay."""
    import torch

    import sdtm_fx
    from sdtm_fx.cost.profile_cache import profile_path

    if threads:
        torch.set_num_threads(threads)
    profile = sdtm_fx.calibrate(device, dtype, compiled=compiled, seconds=seconds)
    table = Table("part", "rate")
    rows = {
        "linear layers": f"{profile.linear / 1e9:.4g} GMAC/s",
        "attention": f"{profile.attention / 1e9:.4g} GMAC/s",
        "bytes in order": f"{profile.streamed / 1e9:.4g} GB/s",
        "bytes by index": f"{profile.gathered / 1e9:.4g} GB/s",
        "activations": f"{profile.activated / 1e9:.4g} G/s",
        "sorting": f"{profile.sorted / 1e9:.4g} G/s",
        "launch": f"{1e6 * profile.launch:.3g} us",
    }
    for part, rate in rows.items():
        table.add_row(part, rate)
    console = Console()
    console.print(profile.key.says(), soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"kept in {profile_path(profile.key)}", soft_wrap=True, highlight=False)
