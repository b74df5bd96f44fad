"""What a guarded file contains, as plain Python: the schema checks work on this and never on HDF5 itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from turbocode.dumps.value_types import ValueType
from turbocode.errors import DataError

Scalar = str | int | float


@dataclass(frozen=True)
class DatasetFacts:
    """shape, value_type; chunks (None: contiguous or compact); filters, HDF5 ids in order; fletcher32."""

    shape: tuple[int, ...]
    value_type: ValueType
    chunks: tuple[int, ...] | None
    filters: tuple[int, ...]
    fletcher32: bool


@dataclass(frozen=True)
class Inventory:
    """Everything a guarded file holds, by absolute path without trailing slash; the root group is "/"."""

    file: str
    file_size: int
    superblock: int
    attributes: Mapping[str, Mapping[str, Scalar]]
    groups: frozenset[str]
    datasets: Mapping[str, DatasetFacts] = field(default_factory=dict)

    def refuse(self, path: str, message: str, hint: str | None = None) -> NoReturn:
        raise DataError(message, file=self.file, object=path, hint=hint)

    def children(self, group: str) -> list[str]:
        """Sorted names directly below a group."""
        prefix = "/" if group == "/" else group + "/"
        paths = [*self.groups, *self.datasets]
        return sorted(
            p[len(prefix) :] for p in paths if p != "/" and p.startswith(prefix) and "/" not in p[len(prefix) :]
        )

    def require_group(self, path: str) -> None:
        if path not in self.groups:
            self.refuse(path, "group is missing")

    def require_dataset(self, path: str) -> DatasetFacts:
        if path not in self.datasets:
            self.refuse(path, "dataset is missing")
        return self.datasets[path]

    def has_attribute(self, path: str, name: str) -> bool:
        return name in self.attributes.get(path, {})

    def text(self, path: str, name: str) -> str:
        """A string attribute; DataError if it is missing or not a string."""
        value = self._attribute(path, name)
        if not isinstance(value, str):
            self.refuse(path, f"attribute {name!r} must be a string")
        return value

    def label(self, path: str, name: str, longest: int = 4096) -> str:
        """A string attribute fit for a terminal: printable, at most `longest` characters."""
        value = self.text(path, name)
        if len(value) > longest or not value.isprintable():
            self.refuse(path, f"attribute {name!r} must be at most {longest} printable characters")
        return value

    def integer(self, path: str, name: str, low: int, high: int) -> int:
        """An integer attribute in low..high; DataError otherwise."""
        value = self._attribute(path, name)
        if not isinstance(value, int):
            self.refuse(path, f"attribute {name!r} must be an integer")
        if not low <= value <= high:
            self.refuse(path, f"attribute {name!r} is {value}; allowed is {low} to {high}")
        return value

    def number(self, path: str, name: str, low: float, high: float) -> float:
        """A float attribute in low..high (an integer will do); DataError otherwise, also for NaN."""
        value = self._attribute(path, name)
        if not isinstance(value, int | float):
            self.refuse(path, f"attribute {name!r} must be a number")
        if not low <= value <= high:
            self.refuse(path, f"attribute {name!r} is {value!r}; allowed is {low:g} to {high:g}")
        return float(value)

    def _attribute(self, path: str, name: str) -> Scalar:
        found = self.attributes.get(path, {})
        if name not in found:
            self.refuse(path, f"attribute {name!r} is missing")
        return found[name]
