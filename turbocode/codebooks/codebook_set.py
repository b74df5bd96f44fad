"""Several codebooks in one file, each for some layers, sides or KV heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from turbocode.codebooks.any_codebook import AnyCodebook, codebook_from_json
from turbocode.errors import DataError
from turbocode.formats.sides import SIDES

SET_SCHEMA = "turbocode-codebook-set"
SET_VERSION = 1


@dataclass(frozen=True, eq=False)
class ScopedCodebook:
    """A codebook and what it is for: a layer's name, `keys` or `values`, a KV head; None means all."""

    codebook: AnyCodebook
    layer: str | None = None
    side: str | None = None
    head: int | None = None


@dataclass(frozen=True, eq=False)
class CodebookSet:
    """Codebooks of which `select` takes the most specific that fits."""

    entries: tuple[ScopedCodebook, ...]
    file: str | None = None

    def select(self, layer: str, side: str, head: int) -> AnyCodebook:
        """The codebook for one KV head. Raises DataError if the set has none for it."""
        wanted = {"layer": layer, "side": side, "head": head}
        fitting = [
            entry
            for entry in self.entries
            if all(getattr(entry, key) in (None, value) for key, value in wanted.items())
        ]
        if not fitting:
            raise DataError(f"no codebook for layer {layer}, {side}, head {head}", file=self.file)
        return max(fitting, key=lambda entry: sum(getattr(entry, key) is not None for key in wanted)).codebook

    def to_json(self) -> dict[str, Any]:
        """The set as a JSON object that `from_json` reads back without loss."""
        return {
            "format": SET_SCHEMA,
            "format_version": SET_VERSION,
            "codebooks": [
                {"layer": e.layer, "side": e.side, "head": e.head, "codebook": e.codebook.to_json()}
                for e in self.entries
            ],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any], *, file: str | None = None) -> CodebookSet:
        """The set of a JSON object. Raises DataError naming the entry that is wrong."""
        if document.get("format") != SET_SCHEMA or document.get("format_version") != SET_VERSION:
            raise DataError(f"not a codebook set of version {SET_VERSION}", file=file)
        stored = document.get("codebooks")
        if not isinstance(stored, list) or not stored:
            raise DataError("key 'codebooks' must be a list that is not empty", file=file)
        entries = []
        for number, entry in enumerate(stored):
            where = f"codebooks[{number}]"
            if not isinstance(entry, dict):
                raise DataError("must be an object", file=file, object=where)
            layer, side, head = entry.get("layer"), entry.get("side"), entry.get("head")
            if not (layer is None or isinstance(layer, str)) or side not in (None, *SIDES):
                raise DataError("layer must be text or null, side keys, values or null", file=file, object=where)
            if head is not None and (type(head) is not int or head < 0):
                raise DataError("head must be a number from 0, or null", file=file, object=where)
            entries.append(ScopedCodebook(codebook_from_json(entry.get("codebook"), file=file), layer, side, head))
        return cls(tuple(entries), file)
