"""Codebooks: the numbers (floor 0)."""

from turbocode.codebooks.any_codebook import AnyCodebook, codebook_from_json
from turbocode.codebooks.catalog import CODEBOOK_NAMES, load_codebook, read_codebook, trellis_codebook_name
from turbocode.codebooks.codebook import Codebook
from turbocode.codebooks.codebook_set import CodebookSet, ScopedCodebook
from turbocode.codebooks.trellis_codebook import TrellisCodebook

__all__ = [
    "CODEBOOK_NAMES",
    "AnyCodebook",
    "Codebook",
    "CodebookSet",
    "ScopedCodebook",
    "TrellisCodebook",
    "codebook_from_json",
    "load_codebook",
    "read_codebook",
    "trellis_codebook_name",
]
