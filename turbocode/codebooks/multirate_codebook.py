"""The codebook of a multi-rate trellis: for each rate, the value that each state decodes to; and where they come from.

Values are in units of the standard deviation of a channel. One codebook is shipped; all multirate codecs use it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError
from turbocode.formats.multirate_format import MAX_RATE, MULTIRATE_STATES_LOG2

MULTIRATE_SCHEMA = "turbocode-multirate-codebook"
MULTIRATE_VERSION = 1
MULTIRATE_NAME = "multirate-10"
_N_STATES = 1 << MULTIRATE_STATES_LOG2


@dataclass(frozen=True, eq=False)
class MultirateCodebook:
    """Values of states at every rate, with provenance.

    name : identifier; values : float64 (8, 1024), row k - 1 for the rate k, in standard deviations
    nmse : (8,), mean squared error / variance of each rate on the schedules it was trained for, in (0, 1]
    provenance : JSON-able facts: trainer, seed, versions
    """

    name: str
    values: NDArray[np.float64]
    nmse: tuple[float, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.shape != (MAX_RATE, _N_STATES) or not np.isfinite(values).all():
            raise DataError(f"codebook {self.name!r}: finite values of shape {(MAX_RATE, _N_STATES)} are needed")
        if len(self.nmse) != MAX_RATE or not all(0.0 < nmse <= 1.0 for nmse in self.nmse):
            raise DataError(f"codebook {self.name!r}: nmse must be {MAX_RATE} numbers in (0, 1]")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    @functools.cached_property
    def tables(self) -> NDArray[np.float32]:
        """float32 (9, 1024): row k has the values of rate k, row 0 zeros."""
        tables = np.zeros((MAX_RATE + 1, _N_STATES), np.float32)
        tables[1:] = self.values
        tables.setflags(write=False)
        return tables

    @functools.cached_property
    def sha256(self) -> str:
        """Hex digest of the tables' bytes, little-endian float32: what decoding depends on."""
        return hashlib.sha256(self.tables.astype("<f4").tobytes()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The codebook as a JSON object that `from_json` reads back without loss."""
        return {
            "format": MULTIRATE_SCHEMA,
            "format_version": MULTIRATE_VERSION,
            "name": self.name,
            "states_log2": MULTIRATE_STATES_LOG2,
            "values": self.values.tolist(),
            "nmse": list(self.nmse),
            "provenance": dict(self.provenance),
        }

    def dumps(self) -> str:
        """`to_json` as text ending in a newline; the same codebook gives the same bytes."""
        document = self.to_json()
        rows = ",\n".join(f"  {json.dumps(row)}" for row in document.pop("values"))
        return json.dumps(document, indent=1, allow_nan=False)[:-2] + f',\n "values": [\n{rows}\n ]\n}}\n'

    @classmethod
    def from_json(cls, document: object, *, file: str | None = None) -> MultirateCodebook:
        """The codebook of a JSON object. Raises DataError naming the key that is missing or wrong."""
        if not isinstance(document, dict) or document.get("format") != MULTIRATE_SCHEMA:
            raise DataError(f"not a multirate codebook: the key 'format' must be {MULTIRATE_SCHEMA!r}", file=file)
        version = document.get("format_version")
        if version != MULTIRATE_VERSION or document.get("states_log2") != MULTIRATE_STATES_LOG2:
            raise DataError(f"multirate codebook version {version!r}, or its states_log2, is unknown", file=file)
        try:
            values = np.array(document["values"], dtype=np.float64)
            nmse = tuple(float(nmse) for nmse in document["nmse"])
            return cls(str(document["name"]), values, nmse, dict(document.get("provenance", {})))
        except KeyError as error:
            raise DataError(f"multirate codebook: key {error.args[0]!r} is missing", file=file) from None
        except (ValueError, TypeError) as error:
            raise DataError(f"multirate codebook: {error}", file=file) from None


@functools.cache
def multirate_codebook() -> MultirateCodebook:
    """The shipped codebook."""
    file = resources.files(__package__).joinpath("tables", f"{MULTIRATE_NAME}.json")
    return MultirateCodebook.from_json(json.loads(file.read_text(encoding="utf-8")), file=file.name)
