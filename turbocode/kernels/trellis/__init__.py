"""Trellis-coded quantization: the path through a bit-shift trellis whose values are nearest to a group; and back.

Importing this package does not import Numba; `reference` and `cpu` are its two implementations.
"""

from turbocode.kernels.trellis.search import GAINS, SEARCH_NAMES, VITERBI, Search, SearchKind, parse_search
from turbocode.kernels.trellis.trellis import Trellis

__all__ = ["GAINS", "SEARCH_NAMES", "VITERBI", "Search", "SearchKind", "Trellis", "parse_search"]
