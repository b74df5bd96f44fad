"""Kernels (floor 1): one folder per operation, each with its reference (NumPy float64) and its cpu twin (Numba)."""
