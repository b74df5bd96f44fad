"""Recipes: what they choose, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from turbocode.errors import DataError, NoInputError, OptionError
from turbocode.policies import LayerChoice, Recipe, read_recipe
from turbocode.policies.recipe import MAX_RECIPE_BYTES, parse_layers, parse_recipe, restricted


@pytest.mark.parametrize(("text", "expected"), [("0", (0,)), ("0-3,7", (0, 1, 2, 3, 7)), ("7, 2-3 ,2", (2, 3, 7))])
def test_layers_are_read(text: str, expected: tuple[int, ...]) -> None:
    assert parse_layers(text) == expected


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-", "1,,2", "99999", "1.5"])
def test_layers_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(OptionError):
        parse_layers(text)


def test_later_entries_win_and_none_keeps_the_default(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("version: 1\nk: turbo3\nv: turbo4\nlayers:\n  '0-2': {k: q8_0}\n  2: {k: f16, v: f16}\n")
    recipe = read_recipe(path)
    chosen = [[str(recipe.codec_for(layer, side)) for side in ("keys", "values")] for layer in range(4)]
    assert chosen == [["q8_0", "turbo4"], ["q8_0", "turbo4"], ["f16", "f16"], ["turbo3", "turbo4"]]
    recipe.check_layers(3)
    with pytest.raises(OptionError, match="layers 0 to 1"):
        recipe.check_layers(2)


def test_json_is_a_recipe_too(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"k": "turbo2", "layers": {"1": {"v": "q4_0"}}}')
    assert str(read_recipe(path).codec_for(1, "values")) == "q4_0"


def test_restricting_keeps_other_layers_in_float16() -> None:
    recipe = restricted(Recipe(k="turbo2", v="turbo3"), (1, 2), 4)
    assert [str(recipe.codec_for(layer, "keys")) for layer in range(4)] == ["f16", "turbo2", "turbo2", "f16"]
    everything = Recipe(k="turbo2", v="turbo3")
    assert restricted(everything, range(4), 4) == everything


def test_restricting_wins_over_entries_that_are_there() -> None:
    recipe = Recipe(layers={"0": LayerChoice(k="q8_0"), "0-1": LayerChoice(k="turbo2", v="turbo2")})
    assert str(restricted(recipe, (1,), 2).codec_for(0, "keys")) == "f16"


def test_keys_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("layers: {010: {k: q8_0}}\n")
    assert str(read_recipe(path).codec_for(10, "keys")) == "q8_0"
    for text in ("k: turbo3\nk: turbo2\n", "layers: {2: {k: q8_0}, '2': {k: f16}}\n", "? [a]\n: b\n"):
        path.write_text(text)
        with pytest.raises(DataError):
            read_recipe(path)


BAD: list[tuple[Any, str]] = [
    (None, "mapping"),
    ([], "mapping"),
    ({"version": 2}, "version"),
    ({"version": True}, "version"),
    ({"version": 1.0}, "version"),
    ({"k": 3}, "k"),
    ({"k": "turbo9"}, "unknown codec"),
    ({"k": "turbo3:norm=x"}, "norm mode"),
    ({"layers": {"a": {"k": "q8_0"}}}, "not a number or a range"),
    ({"layers": {"0": {"q": "q8_0"}}}, "unknown key"),
    ({"layers": {"0": "q8_0"}}, "layers"),
    ({"layers": []}, "layers"),
    ({"layer": {}}, "unknown key"),
]


@pytest.mark.parametrize(("document", "message"), BAD, ids=range(len(BAD)))
def test_malformed_recipes_name_the_key(document: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        parse_recipe(document, file="r.yaml")
    assert message in str(error.value)
    assert str(error.value).startswith("r.yaml")


def test_a_typo_in_a_key_gets_a_suggestion() -> None:
    with pytest.raises(DataError) as error:
        parse_recipe({"layer": {}})
    assert error.value.hint == "did you mean layers?"


@pytest.mark.parametrize(
    "text",
    [
        "k: [",
        "a: &a [x, x]\nb: *a\n",
        "k: !!python/object/apply:os.system ['true']",
        "k: !x y",
        "\x00",
        "- " * 20000,
        "k: 1e400",
        "{" * 3000,
    ],
)
def test_yaml_that_is_not_plain_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(DataError):
        read_recipe(path)


def test_files_that_cannot_be_recipes(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text("#" * (MAX_RECIPE_BYTES + 1))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00k")
    for path in (large, binary):
        with pytest.raises(DataError):
            read_recipe(path)
    for path in (tmp_path, tmp_path / "absent.yaml"):
        with pytest.raises(NoInputError):
            read_recipe(path)
