"""Keeps drawn batches, in memory or in a folder, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdtm_fx.evaluate.drawn import Drawn, names_in, read_drawn, write_drawn
from sdtm_fx.evaluate.row import Row
from sdtm_fx.evaluate.sampling import Sampling
from sdtm_fx.evaluate.variant import variant, variant_name

_VERSION = 1
_SUFFIX = ".safetensors"


class Store:
    """Batches by key.

    Args:
        identity: Whatever else decides what is drawn (`sdtm_fx.evaluate.identity`): plain data.
        folder: Where batches are files; None keeps them in memory.
    """

    def __init__(self, identity: Mapping[str, Any], folder: Path | None = None) -> None:
        self.identity = dict(identity)
        self._folder = folder
        self._held: dict[str, Drawn] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def key(self, row: Row | None, sampling: Sampling, batch: range) -> str:
        """Name of a batch of a row: equal only where the same images would be drawn.

        Args:
            row: The row; None is dense.
            sampling: What is drawn.
            batch: Indices of the images.
        """
        drawn = {
            "version": _VERSION,
            "identity": self.identity,
            "variant": None if row is None else variant(row),
            "prompts": [sampling.prompts[i] for i in batch],
            "seeds": [sampling.seeds[i] for i in batch],
            "settings": [sampling.steps, sampling.height, sampling.width, sampling.guidance_scale],
        }
        digest = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:24]
        name = "dense" if row is None else variant_name(row)
        return f"{name}-{batch.start:04d}-{digest}"

    def holds(self, key: str, *, latents: bool = False, growth: bool = False) -> bool:
        """Whether a batch is there, with what is asked for.

        Args:
            key: From `key`.
            latents: It must have its latents.
            growth: It must have its error growth.

        Raises:
            SdtmFxError: The file is damaged.
        """
        needed = {name for name, wanted in (("latents", latents), ("growth", growth)) if wanted}
        if self._folder is None:
            drawn = self._held.get(key)
            return drawn is not None and all(getattr(drawn, name) is not None for name in needed)
        path = self._folder / f"{key}{_SUFFIX}"
        return path.is_file() and needed <= names_in(path)

    def get(self, key: str) -> Drawn:
        """The batch of a key that `holds` confirmed.

        Raises:
            SdtmFxError: The file is damaged.
        """
        return self._held[key] if self._folder is None else read_drawn(self._folder / f"{key}{_SUFFIX}")

    def put(self, key: str, drawn: Drawn) -> None:
        """Keep a batch, in place of one of the same key."""
        if self._folder is None:
            self._held[key] = drawn
        else:
            write_drawn(drawn, self._folder / f"{key}{_SUFFIX}")

    def clear(self) -> None:
        """Forget every batch."""
        self._held.clear()
        if self._folder is not None:
            for path in self._folder.glob(f"*{_SUFFIX}"):
                path.unlink()
