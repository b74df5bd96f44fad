"""A scalar codebook: centroids, the boundaries between them, and where they come from.

Centroids are in units of the standard deviation of a coordinate. A coordinate of a unit vector of dimension g has
standard deviation 1 / sqrt(g), so a kernel multiplies by that once: `for_group`.
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

SCHEMA = "turbocode-codebook"
SCHEMA_VERSION = 1
MAX_BITS = 8


@dataclass(frozen=True, eq=False)
class Codebook:
    """Centroids with provenance.

    name : identifier, e.g. `gaussian-3`
    centroids : float64 array (2**bits,), strictly increasing, in standard deviations
    nmse : mean squared error / variance on the distribution it was trained for, in (0, 1]
    provenance : JSON-able facts: source, seed, versions, training data hash
    """

    name: str
    centroids: NDArray[np.float64]
    nmse: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        centroids = np.array(self.centroids, dtype=np.float64)
        count = centroids.size
        if centroids.ndim != 1 or count < 2 or count > 2**MAX_BITS or count & (count - 1):
            raise DataError(
                f"codebook {self.name!r}: {count} centroids; allowed is a power of two from 2 to {2**MAX_BITS}"
            )
        if not np.isfinite(centroids).all() or not (np.diff(centroids) > 0).all():
            raise DataError(f"codebook {self.name!r}: centroids must be finite and strictly increasing")
        if not (0.0 < self.nmse <= 1.0):
            raise DataError(f"codebook {self.name!r}: nmse {self.nmse} is outside (0, 1]")
        centroids.setflags(write=False)
        object.__setattr__(self, "centroids", centroids)

    @property
    def bits(self) -> int:
        return int(self.centroids.size).bit_length() - 1

    @property
    def boundaries(self) -> NDArray[np.float64]:
        """Decision boundaries, float64 (2**bits - 1,): midpoints, so that quantizing is nearest-centroid."""
        return 0.5 * (self.centroids[:-1] + self.centroids[1:])

    @property
    def shannon_gap_db(self) -> float:
        """How far `nmse` lies above the rate-distortion bound 4**-bits of a Gaussian, in dB."""
        return 10.0 * math.log10(self.nmse * 4.0**self.bits)

    def for_group(self, group_size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(centroids, boundaries) as float32, scaled for coordinates of a unit vector of `group_size` values."""
        scale = 1.0 / math.sqrt(group_size)
        return (self.centroids * scale).astype(np.float32), (self.boundaries * scale).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """The codebook as a JSON object that `from_json` reads back without loss."""
        return {
            "format": SCHEMA,
            "format_version": SCHEMA_VERSION,
            "name": self.name,
            "bits": self.bits,
            "centroids": self.centroids.tolist(),
            "boundaries": self.boundaries.tolist(),
            "nmse": self.nmse,
            "shannon_gap_db": self.shannon_gap_db,
            "provenance": dict(self.provenance),
        }

    def dumps(self) -> str:
        """`to_json` as text, one key a line, ending in a newline; the same codebook gives the same bytes."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, document: object, *, file: str | None = None) -> Codebook:
        """The codebook of a JSON object. Raises DataError naming the key that is missing or wrong."""
        if not isinstance(document, dict) or document.get("format") != SCHEMA:
            raise DataError(f"not a codebook: the key 'format' must be {SCHEMA!r}", file=file)
        version = document.get("format_version")
        if version != SCHEMA_VERSION:
            raise DataError(f"codebook version {version!r} is unknown; known is {SCHEMA_VERSION}", file=file)
        name, centroids, nmse = document.get("name"), document.get("centroids"), document.get("nmse")
        if not isinstance(name, str) or not name:
            raise DataError("key 'name' must be a non-empty string", file=file)
        if not isinstance(centroids, list) or not all(type(centroid) in (int, float) for centroid in centroids):
            raise DataError("key 'centroids' must be a list of numbers", file=file)
        if not isinstance(nmse, int | float) or isinstance(nmse, bool):
            raise DataError("key 'nmse' must be a number", file=file)
        provenance = document.get("provenance", {})
        if not isinstance(provenance, dict):
            raise DataError("key 'provenance' must be an object", file=file)
        try:
            codebook = cls(name, np.asarray(centroids, dtype=np.float64), float(nmse), provenance)
        except (DataError, OverflowError) as error:
            raise DataError(str(error), file=file) from None
        if document.get("bits", codebook.bits) != codebook.bits:
            raise DataError(f"{len(centroids)} centroids are {codebook.bits} bits, not {document['bits']}", file=file)
        return codebook
