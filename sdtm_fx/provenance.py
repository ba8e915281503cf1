"""Where numbers come from: the commit of the code and the processor of the machine."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path

_ROOT = Path(__file__).parent


def commit_of_code() -> str | None:
    """Commit of the checkout that the code lies in, marked where files differ from it; None outside of one."""
    inside = ["git", "-C", str(_ROOT)]
    try:
        commit = subprocess.run([*inside, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run(
            [*inside, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=False,
        )
        tracked = subprocess.run(
            [*inside, "ls-files", "--error-unmatch", str(_ROOT / "__init__.py")],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:  # no git
        return None
    if commit.returncode or tracked.returncode:  # no checkout, or one of something else around this package
        return None
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


@functools.cache
def processor() -> str:
    """The model of the CPU; where Linux does not say, what Python knows."""
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
