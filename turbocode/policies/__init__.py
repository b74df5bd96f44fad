"""Policies (floor 3): which codec for which layer, keys or values, head."""

from turbocode.policies.cache_policy import EXACT, EXACT_CACHE, CachePolicy
from turbocode.policies.recipe import HeadChoice, LayerChoice, Recipe, read_recipe
from turbocode.policies.resolve import resolve_codec, resolve_coder

__all__ = [
    "EXACT",
    "EXACT_CACHE",
    "CachePolicy",
    "HeadChoice",
    "LayerChoice",
    "Recipe",
    "read_recipe",
    "resolve_codec",
    "resolve_coder",
]
