"""Reading measurements that a command wrote as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from sdtm_fx.errors import SdtmFxError

Record = TypeVar("Record", bound=BaseModel)


def holds(path: Path, key: str) -> bool:
    """Whether a file is a JSON object with a key at its top; of what is no readable JSON, it is not.

    Args:
        path: The file; whoever reads it next says what is wrong with it.
        key: Tells one kind of measurements from the others.
    """
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and key in data


def read_record(kind: type[Record], path: Path, accepted: str) -> Record:
    """Read a file of measurements.

    Args:
        kind: What it should hold.
        path: The JSON.
        accepted: What writes such a file, for the error.

    Raises:
        SdtmFxError: There is no such file, or it holds something else.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SdtmFxError(f"{path}: found no readable file ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise SdtmFxError(f"{path}: {place}: {first['msg']}; accepted: {accepted}") from error
