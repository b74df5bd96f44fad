"""How a running model's cache is coded: a recipe, and which tokens and sides stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from turbocode.codecs import Coder, parse_codec
from turbocode.errors import OptionError
from turbocode.formats.sides import SIDES
from turbocode.policies.recipe import Recipe
from turbocode.policies.resolve import resolve_coder

EXACT = "exact"  # the word for a side that is not coded at all


@dataclass(frozen=True)
class CachePolicy:
    """What happens to each key and value that enters a cache.

    recipe : the codecs; exact : sides (`keys`, `values`) kept in the model's own dtype whatever the recipe says
    sinks : first tokens of a sequence kept in 16 bits; residual : latest tokens kept in 16 bits until newer ones come
    name : how tables call it
    Raises OptionError for counts below 0.
    """

    recipe: Recipe
    exact: tuple[str, ...] = ()
    sinks: int = 0
    residual: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.residual < 0:
            raise OptionError(f"sinks is {self.sinks} and residual {self.residual}; allowed is 0 and more")

    @classmethod
    def of(cls, k: str, v: str, *, sinks: int = 0, residual: int = 0) -> CachePolicy:
        """The policy of one codec for all keys and one for all values; `exact` leaves a side as it is."""
        exact = tuple(side for side, text in (("keys", k), ("values", v)) if text == EXACT)
        recipe = Recipe(k=_codec_text(k), v=_codec_text(v))
        return cls(recipe, exact, sinks, residual, k if k == v else f"{k} / {v}")

    @classmethod
    def of_recipe(
        cls, recipe: Recipe, *, sinks: int | None = None, residual: int | None = None, name: str = ""
    ) -> CachePolicy:
        """The policy of a recipe, with its own sinks and residual where None is given."""
        counts = (recipe.sinks if sinks is None else sinks, recipe.residual if residual is None else residual)
        return cls(recipe, (), *counts, name)

    def for_layers(self, windows: Sequence[int]) -> CachePolicy:
        """The policy for layers with these windows, 0 for full attention; see Recipe.for_layers.

        Raises OptionError also where layers with a window would have to be predicted, or predicted from: what is
        dropped there cannot be decoded any more.
        """
        recipe = self.recipe.for_layers(windows)
        for number, window in enumerate(windows):
            is_predicted = any(recipe.predicts(number, side) for side in SIDES if side not in self.exact)
            if is_predicted and (window or windows[max(number - 1, 0)]):
                raise OptionError(
                    f"aqua predicts layer {number} from the layer below; in a running cache none of both may have a "
                    "sliding window"
                )
        return replace(self, recipe=recipe)

    def codec_for(self, number: int, side: str, head_dim: int, n_kv_heads: int) -> Coder | None:
        """The codec of layer `number` (0: the first that owns a cache) and side; None: it stays as it is.

        Raises OptionError for a head_dim that the codec cannot hold, NoInputError and DataError for its codebook file.
        """
        if side in self.exact:
            return None
        return resolve_coder(self.recipe, number, side, head_dim, n_kv_heads)


def _codec_text(text: str) -> str:
    """What a recipe says for a side: of an exact one, whose codec is never asked for, float16."""
    return "f16" if text == EXACT else str(parse_codec(text))


EXACT_CACHE = CachePolicy.of(EXACT, EXACT)
