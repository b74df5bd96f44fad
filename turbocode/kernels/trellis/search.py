"""How the path through the trellis is looked for. Viterbi is exact; the others are there to be compared with it."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

import numpy as np

from turbocode.errors import OptionError


class SearchKind(enum.IntEnum):
    """Kernels branch on the number."""

    VITERBI = 0  # the best of all paths
    GREEDY = 1  # one path from state 0, at each step the nearest value
    MULTISTART = 2  # such a path from every state, of which the best is kept
    BEAM = 3  # the M-algorithm: at each step the best `width` states go on (Jelinek and Anderson 1971)


SEARCH_NAMES = ("viterbi", "greedy", "multistart", "beamN")
MAX_BEAM = 4096
# Scales of a unit vector that are tried in this order; measured in docs/log.md. The stored norm undoes the one taken.
GAINS = np.array([1.0, 0.97, 1.03, 0.94, 1.06], np.float32)


@dataclass(frozen=True)
class Search:
    """kind : the algorithm; width : states that a beam keeps, 1 otherwise"""

    kind: SearchKind = SearchKind.VITERBI
    width: int = 1

    def __str__(self) -> str:
        return f"beam{self.width}" if self.kind is SearchKind.BEAM else self.kind.name.lower()


VITERBI = Search()


def parse_search(text: str) -> Search:
    """The search that `viterbi`, `greedy`, `multistart` or `beam16` names. Raises OptionError."""
    beam = re.fullmatch(r"beam([1-9][0-9]{0,3})", text, re.ASCII)
    if beam and int(beam[1]) <= MAX_BEAM:
        return Search(SearchKind.BEAM, int(beam[1]))
    if text not in SEARCH_NAMES[:-1]:
        raise OptionError(
            f"unknown search {text!r}; allowed: viterbi, greedy, multistart, beam1 to beam{MAX_BEAM}",
            hint="viterbi finds the best path, the others are for comparison",
        )
    return Search(SearchKind[text.upper()])
