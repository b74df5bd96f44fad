"""Codebooks: the numbers (floor 0)."""

from turbocode.codebooks.catalog import CODEBOOK_NAMES, load_codebook, read_codebook
from turbocode.codebooks.codebook import Codebook
from turbocode.codebooks.codebook_set import CodebookSet, ScopedCodebook

__all__ = ["CODEBOOK_NAMES", "Codebook", "CodebookSet", "ScopedCodebook", "load_codebook", "read_codebook"]
