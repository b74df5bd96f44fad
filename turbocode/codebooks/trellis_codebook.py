"""A trellis codebook: the value that each state of a bit-shift trellis decodes to, and where the values come from.

Values are in units of the standard deviation of a coordinate, as a scalar codebook's centroids are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError

TRELLIS_SCHEMA = "turbocode-trellis-codebook"
TRELLIS_VERSION = 1
TRELLIS_BITS = range(1, 5)
MAX_STATES_LOG2 = 12
MIN_EXTRA_BITS = 3  # states_log2 is at least bits + this
_NO_BOUNDARIES = np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class TrellisCodebook:
    """Values of states with provenance.

    name : identifier, e.g. `trellis3-9`
    bits : k, bits that a step consumes, 1 to 4
    values : float64 array (2**states_log2,), in standard deviations; states_log2 is bits + 3 to 12
    nmse : mean squared error / variance on the distribution it was trained for, in (0, 1]
    provenance : JSON-able facts: source, seed, versions, training data hash
    """

    name: str
    bits: int
    values: NDArray[np.float64]
    nmse: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        count = values.size
        if self.bits not in TRELLIS_BITS:
            raise DataError(f"codebook {self.name!r}: {self.bits} bits; a trellis has 1 to 4")
        least, most = 2 ** (self.bits + MIN_EXTRA_BITS), 2**MAX_STATES_LOG2
        if values.ndim != 1 or not least <= count <= most or count & (count - 1):
            raise DataError(
                f"codebook {self.name!r}: {count} values; allowed is a power of two from {least} to {most} "
                f"for a trellis of {self.bits} bits"
            )
        if not np.isfinite(values).all() or not np.ptp(values) > 0:
            raise DataError(f"codebook {self.name!r}: values must be finite and not all equal")
        if not (0.0 < self.nmse <= 1.0):
            raise DataError(f"codebook {self.name!r}: nmse {self.nmse} is outside (0, 1]")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    @property
    def states_log2(self) -> int:
        return int(self.values.size).bit_length() - 1

    @property
    def shannon_gap_db(self) -> float:
        """How far `nmse` lies above the rate-distortion bound 4**-bits of a Gaussian, in dB."""
        return 10.0 * math.log10(self.nmse * 4.0**self.bits)

    def for_group(self, group_size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(values, nothing) as float32, scaled for coordinates of a unit vector of `group_size` values."""
        return (self.values / math.sqrt(group_size)).astype(np.float32), _NO_BOUNDARIES

    def to_json(self) -> dict[str, Any]:
        """The codebook as a JSON object that `from_json` reads back without loss."""
        return {
            "format": TRELLIS_SCHEMA,
            "format_version": TRELLIS_VERSION,
            "name": self.name,
            "bits": self.bits,
            "states_log2": self.states_log2,
            "values": self.values.tolist(),
            "nmse": self.nmse,
            "shannon_gap_db": self.shannon_gap_db,
            "provenance": dict(self.provenance),
        }

    def dumps(self) -> str:
        """`to_json` as text, one key a line, ending in a newline; the same codebook gives the same bytes."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, document: object, *, file: str | None = None) -> TrellisCodebook:
        """The codebook of a JSON object. Raises DataError naming the key that is missing or wrong."""
        if not isinstance(document, dict) or document.get("format") != TRELLIS_SCHEMA:
            raise DataError(f"not a trellis codebook: the key 'format' must be {TRELLIS_SCHEMA!r}", file=file)
        version = document.get("format_version")
        if version != TRELLIS_VERSION:
            raise DataError(f"trellis codebook version {version!r} is unknown; known is {TRELLIS_VERSION}", file=file)
        name, bits, values = document.get("name"), document.get("bits"), document.get("values")
        nmse, provenance = document.get("nmse"), document.get("provenance", {})
        if not isinstance(name, str) or not name:
            raise DataError("key 'name' must be a non-empty string", file=file)
        if type(bits) is not int:
            raise DataError("key 'bits' must be a whole number", file=file)
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise DataError("key 'values' must be a list of numbers", file=file)
        if not isinstance(nmse, int | float) or isinstance(nmse, bool):
            raise DataError("key 'nmse' must be a number", file=file)
        if not isinstance(provenance, dict):
            raise DataError("key 'provenance' must be an object", file=file)
        try:
            codebook = cls(name, bits, np.asarray(values, dtype=np.float64), float(nmse), provenance)
        except (DataError, OverflowError) as error:
            raise DataError(str(error), file=file) from None
        if document.get("states_log2", codebook.states_log2) != codebook.states_log2:
            raise DataError(f"{len(values)} values are {codebook.states_log2} bits of state", file=file)
        return codebook
