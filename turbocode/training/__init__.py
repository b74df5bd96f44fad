"""Training (floor 3): codebooks from densities and from dumps."""
