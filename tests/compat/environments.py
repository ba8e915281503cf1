"""`environments.yaml`: which versions are installed together, and what is run there."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


class Compatibility(BaseModel):
    """The file.

    Attributes:
        environments: Arguments of pip, by the name of the environment.
        matrix: Test files, or tests as pytest names them, by the row of the table that they stand in.
        since: The version of diffusers that brought a model class, where that is not the oldest one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    environments: dict[str, tuple[str, ...]]
    matrix: dict[str, tuple[str, ...]]
    since: dict[str, str]

    @property
    def tests(self) -> tuple[str, ...]:
        """All of the matrix."""
        return tuple(test for tests in self.matrix.values() for test in tests)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that they are in."""
        return tuple(dict.fromkeys(map(_path, self.tests)))

    def row_of(self, module: str) -> str:
        """The row that the tests of a module, such as ``tests.user.test_restore``, stand in.

        Raises:
            LookupError: The module is in no row.
        """
        for row, files in self.matrix.items():
            names = (_path(file).removesuffix(".py").replace("/", ".") for file in files)
            if any(f"{module}.".startswith(f"{name}.") for name in names):
                return row
        raise LookupError(
            f"{module}: found in no row of environments.yaml; accepted: {', '.join(self.paths)}"
        )


def read_compatibility(path: Path = FOLDER / "environments.yaml") -> Compatibility:
    """Read the file."""
    return Compatibility.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def _path(test: str) -> str:
    return test.partition("::")[0]
