"""Options that say how keys and values are coded, and the recipe they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from turbocode.errors import OptionError
from turbocode_cli.options import FILE

if TYPE_CHECKING:
    from turbocode.policies import Recipe

k_option = click.option("--k", "k", metavar="CODEC", help="Codec of the keys, such as turbo3 or turbo3:norm=mse.")
v_option = click.option("--v", "v", metavar="CODEC", help="Codec of the values.")
recipe_option = click.option(
    "--recipe", "recipe_path", type=FILE, metavar="FILE", help="YAML or JSON with codecs per layer, instead of --k/--v."
)


def recipe_from(
    k: str | None, v: str | None, recipe_path: Path | None, layers: tuple[int, ...] | None, n_layers: int
) -> Recipe:
    """The recipe that the options ask for. Raises OptionError where they contradict each other or name no layer."""
    from turbocode.codecs import parse_codec
    from turbocode.policies import Recipe, read_recipe
    from turbocode.policies.recipe import restricted

    if recipe_path is not None:
        if k is not None or v is not None:
            raise OptionError("--recipe and --k/--v are given; one of them says which codecs to use")
        recipe = read_recipe(recipe_path)
    else:
        if k is None or v is None:
            raise OptionError("both --k and --v are needed, or --recipe", hint="for example --k turbo3 --v turbo3")
        recipe = Recipe(k=str(parse_codec(k)), v=str(parse_codec(v)))
    if layers is None:
        return recipe
    if layers[-1] >= n_layers:
        raise OptionError(f"--layers names layer {layers[-1]}; the dump has layers 0 to {n_layers - 1}")
    return restricted(recipe, layers, n_layers)
