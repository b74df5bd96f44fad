"""How next-token distributions differ from reference ones, token by token, in float64 over the whole vocabulary.

Unlike llama-perplexity, which stores reference logits as 16-bit numbers and leaves out tokens below exp(-16), nothing
is rounded or left out: equal logits give exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError, OptionError

Array = NDArray[np.float64]
ROW_BYTES = 64  # a word of a row: its logits twice in float32, and in float64 log-probabilities and temporaries
MAX_BLOCK_BYTES = 256 << 20  # longer blocks are no faster


@dataclass(frozen=True)
class TokenFigures:
    """One entry a scored token, float64 (n,), but same_top, bool (n,).

    nll, nll_base : -log of the probability of the token that came next, in nats; p, p_base : that probability
    kl : KL(base || coded) of the next-token distribution in nats; same_top : whether the likeliest token is the same
    """

    nll: Array
    nll_base: Array
    p: Array
    p_base: Array
    kl: Array
    same_top: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: list[TokenFigures]) -> TokenFigures:
        """Those of several runs of tokens, one after the other."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> TokenFigures:
        return TokenFigures(*(getattr(self, f.name)[rows] for f in fields(self)))


def log_softmax(logits: NDArray[np.float32]) -> Array:
    """Log-probabilities float64 (n, words). Raises DataError for a NaN or an infinity."""
    if not np.isfinite(logits).all():
        raise DataError("the model's logits hold a NaN or an infinity", hint="try --compute-dtype float32")
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


class ReferenceBlock:
    """The reference distributions of a run of positions, with which any number of others are compared."""

    def __init__(self, logits: NDArray[np.float32], targets: NDArray[np.int64]) -> None:
        """logits (n, words); targets (n,): the token that came next."""
        self._log_p = log_softmax(logits)
        self._p = np.exp(self._log_p)
        self._targets, self._rows = targets, np.arange(len(targets))
        self._top = logits.argmax(axis=1)

    def compare(self, logits: NDArray[np.float32]) -> TokenFigures:
        """Figures of the distributions with these logits (n, words)."""
        log_q = log_softmax(logits)
        at = (self._rows, self._targets)
        nll, nll_base = -log_q[at], -self._log_p[at]
        np.subtract(self._log_p, log_q, out=log_q)
        log_q *= self._p
        return TokenFigures(
            nll, nll_base, np.exp(-nll), np.exp(-nll_base), log_q.sum(axis=1), logits.argmax(axis=1) == self._top
        )


def block_rows(n_words: int, max_memory: int) -> int:
    """Positions to compare at once under a memory limit. Raises OptionError where not even one fits."""
    rows = min(max_memory, MAX_BLOCK_BYTES) // (ROW_BYTES * n_words)
    if rows < 1:
        raise OptionError(
            f"{max_memory} bytes of memory do not hold the logits of one position over {n_words:,} words",
            hint=f"--max-memory {ROW_BYTES * n_words} is enough",
        )
    return rows
