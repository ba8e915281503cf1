"""Where measurements of devices are kept: one JSON file per device in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import asdict
from pathlib import Path

from sdtm_fx.cost.profile import DeviceKey, DeviceProfile

VARIABLE = "SDTM_FX_CACHE"


def cache_folder() -> Path:
    """``$SDTM_FX_CACHE``, or ``sdtm_fx`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``; it need not be there."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sdtm_fx"


def profile_path(key: DeviceKey) -> Path:
    """The file that the profile of a key is kept in."""
    digest = hashlib.sha256(json.dumps(asdict(key), sort_keys=True).encode()).hexdigest()[:12]
    name = re.sub(r"\W+", "-", f"{key.device}-{key.dtype}").strip("-").lower()
    return cache_folder() / "profiles" / f"{name}-{digest}.json"


def save_profile(profile: DeviceProfile) -> Path:
    """Write a profile, in place of an older one of the same key; returns the file."""
    path = profile_path(profile.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may read at this moment: it sees the old file or the new one.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
        file.write(profile.to_json())
    os.replace(file.name, path)
    return path


def load_profiles() -> dict[DeviceKey, DeviceProfile]:
    """Every profile in the cache folder; those of other devices and versions match no key, and do no harm.

    Raises:
        CalibrationError: A file is not what `save_profile` writes.
    """
    files = sorted((cache_folder() / "profiles").glob("*.json"))
    profiles = [DeviceProfile.from_json(f.read_text(encoding="utf-8", errors="replace"), f) for f in files]
    return {profile.key: profile for profile in profiles}
