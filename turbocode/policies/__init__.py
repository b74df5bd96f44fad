"""Policies (floor 3): which codec for which layer, keys or values, head."""

from turbocode.policies.recipe import LayerChoice, Recipe, read_recipe
from turbocode.policies.resolve import resolve_codec

__all__ = ["LayerChoice", "Recipe", "read_recipe", "resolve_codec"]
