"""The tables and words of multirate sides in the memory of GPUs, made for the shared memory that is left for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from turbocode.formats import MultirateFormat
from turbocode.kernels import _launch
from turbocode.kernels.attention.gpu_arrays import Side
from turbocode.kernels.attention.rate_tables import KEY_RUNS, VALUE_RUNS, RatedSide, least_image_bytes, rate_tables
from turbocode.kernels.multirate.gpu_table import gains_of, tables_of


@dataclass(frozen=True, eq=False)
class OnDevice:
    """RateTables on a GPU; words : by the number of the side, keys 0, values 1."""

    image: Any
    words: dict[int, Any]


class RatedArrays:
    """Of the sides of an attention that are multirate, at least one.

    least_bytes : of shared memory that they need
    """

    def __init__(self, keys: Side, values: Side) -> None:
        sides = {0: _rated_side(keys, KEY_RUNS), 1: _rated_side(values, VALUE_RUNS)}
        self._sides = {number: side for number, side in sides.items() if side is not None}
        self._found: dict[tuple[int, int], OnDevice] = {}
        self.least_bytes = least_image_bytes(list(self._sides.values()))

    def on_device(self, device: int, max_bytes: int) -> OnDevice:
        """The arrays whose image takes at most max_bytes of shared memory."""
        key = device, max_bytes
        if key not in self._found:
            found = rate_tables(list(self._sides.values()), max_bytes)
            words = zip(self._sides, found.words, strict=True)
            on_device = {number: _launch.upload(of_side[None], device) for number, of_side in words}
            self._found[key] = OnDevice(_launch.upload(found.image, device), on_device)
        return self._found[key]


def _rated_side(side: Side, runs: int) -> RatedSide | None:
    form: Any = side.block_format
    if not isinstance(form, MultirateFormat):
        return None
    table = np.ascontiguousarray(side.centroids[0], np.float32)
    return RatedSide(form.rates, tables_of(table), gains_of(table), runs)
