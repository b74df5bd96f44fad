"""Codebooks: the numbers (floor 0)."""

from turbocode.codebooks.codebook import Codebook

__all__ = ["Codebook"]
