"""Layer-adaptive modes, sinks and residual in recipes."""

from __future__ import annotations

import pytest

from turbocode.errors import DataError, OptionError
from turbocode.policies import CachePolicy, Recipe
from turbocode.policies.layer_modes import N_MODES, promoted_layers
from turbocode.policies.recipe import parse_recipe, restricted

TEN = (0, 128) * 5
EXPECTED = {
    0: ((), "kv"),
    1: ((0, 1, 2, 3, 6, 7, 8, 9), "kv"),
    2: (tuple(range(2, 10)), "kv"),
    3: ((6, 7, 8, 9), "kv"),
    4: ((0, 1, 2, 3), "kv"),
    5: ((0, 1, 8, 9), "kv"),
    6: (tuple(range(2, 10)), "v"),
    7: (tuple(range(2, 10)), "k"),
    8: ((0, 1, 8, 9), "v"),
    9: ((8, 9), "kv"),
    10: ((6, 7, 8, 9), "k"),
    11: ((4, 5, 6, 7, 8, 9), "kv"),
    12: ((0, 2, 4, 6, 8), "kv"),
    13: ((0, 2, 4, 6, 8), "v"),
    14: ((1, 3, 5, 7, 9), "kv"),
    15: ((1, 3, 5, 7, 9), "v"),
    16: ((0, 4, 8), "kv"),
    17: ((0, 3, 6, 9), "kv"),
    18: ((0, 2, 4, 6, 8), "kv"),
}


@pytest.mark.parametrize("mode", range(N_MODES))
def test_every_mode(mode: int) -> None:
    layers, sides = EXPECTED[mode]
    assert promoted_layers(mode, TEN) == (layers, sides)
    recipe = Recipe(k="turbo3", v="turbo2", layer_mode=mode, transforms={"k": ["mean"]}).for_layers(TEN)
    for layer in range(10):
        for side, letter, plain in (("keys", "k", "turbo3"), ("values", "v", "turbo2")):
            is_better = layer in layers and letter in sides
            assert recipe.codec_for(layer, side).name == ("q8_0" if is_better else plain)
            assert recipe.transforms_for(layer, side) == (("mean",) if letter == "k" and not is_better else ())


def test_modes_about_windows_need_both_kinds() -> None:
    for mode in (12, 13, 14, 15):
        with pytest.raises(OptionError, match="here all are alike"):
            promoted_layers(mode, (0, 0, 0))


def test_what_a_recipe_says_of_layers_wins_over_the_mode() -> None:
    recipe = Recipe(layer_mode=4, promoted="turbo4", layers={"1": {"k": "f16"}, "0-9": {"v": "q4_0"}})
    with pytest.raises(OptionError, match="needs the layers"):
        recipe.codec_for(0, "keys")
    found = recipe.for_layers(TEN)
    assert [found.codec_for(layer, "keys").name for layer in range(5)] == [
        "turbo4",
        "f16",
        "turbo4",
        "turbo4",
        "turbo3",
    ]
    assert {found.codec_for(layer, "values").name for layer in range(10)} == {"q4_0"}
    assert restricted(recipe, [1], 10).for_layers(TEN).codec_for(0, "keys").name == "f16"
    assert restricted(recipe, [0], 10).for_layers(TEN).codec_for(0, "keys").name == "turbo4"


def test_small_models_have_every_layer_promoted() -> None:
    assert promoted_layers(1, (0, 0, 0)) == ((0, 1, 2), "kv")


@pytest.mark.parametrize("document", [{"layer_mode": 19}, {"layer_mode": "3"}, {"promoted": "q9"}, {"sinks": -1}])
def test_wrong_fields_are_named(document: dict[str, object]) -> None:
    with pytest.raises(DataError) as caught:
        parse_recipe(document)
    assert caught.value.object == next(iter(document))


def test_sinks_of_the_recipe_unless_others_are_given() -> None:
    recipe = Recipe(sinks=4, residual=8)
    assert (CachePolicy.of_recipe(recipe).sinks, CachePolicy.of_recipe(recipe).residual) == (4, 8)
    assert CachePolicy.of_recipe(recipe, sinks=0).sinks == 0
