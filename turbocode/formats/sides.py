"""The two sides of a KV cache, in the order in which everything here treats them."""

SIDES = ("keys", "values")
