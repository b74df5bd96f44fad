"""What decode attention may leave out because it hardly counts: off unless asked for, and never exact.

Both compare with the largest weight found so far in a stretch of tokens, as an online softmax knows it. sparse_v leaves
out the values of tokens whose weight is below it; the denominator keeps the weight, so that an output is off by at most
sparse_v times the sum of the norms of the values left out. skip_tiles leaves out whole tiles, the denominator's part
too, if the largest weight of a tile is below it (arXiv 2512.12087).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from turbocode.errors import OptionError

NEVER = -1e30  # a logarithm that no weight is below


class Skipping(NamedTuple):
    """sparse_v, skip_tiles : weights relative to the largest, from 0, nothing is left out, to below 1"""

    sparse_v: float = 0.0
    skip_tiles: float = 0.0

    @property
    def is_on(self) -> bool:
        return self.sparse_v > 0 or self.skip_tiles > 0

    @property
    def tile_floor(self) -> float:
        """The natural logarithm of skip_tiles."""
        return math.log(self.skip_tiles) if self.skip_tiles > 0 else NEVER

    def check(self) -> Skipping:
        """Itself. Raises OptionError for numbers that are no such weights."""
        for name, value in self._asdict().items():
            if not 0 <= value < 1:
                raise OptionError(f"{name} is {value}; allowed are weights from 0 to below 1")
        return self


EVERYTHING = Skipping()
