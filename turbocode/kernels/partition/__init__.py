"""Optimal partition of a weighted line into cells: exact one-dimensional k-means.

Importing this package does not import Numba; `reference` and `cpu` are its two implementations.
"""
