"""A transformers Cache that holds packed blocks: for `generate()`, and for measuring what coding does to a model.

Every token is encoded once, as it enters (or leaves the residual), and every attention, of the prompt too, meets the
decoded values: transformers' own quantized caches attend to the fresh chunk unquantized. Tokens are coded where they
are: on a GPU that numba-cuda can use by its kernels, with the CPU's bits, else on the CPU. Every step decodes all
tokens of a layer: this cache saves memory, not time. Attention that reads the blocks is in `packed_attention`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from turbocode.codecs import Coder, predicting
from turbocode.errors import DataError, OptionError
from turbocode.formats.sides import SIDES
from turbocode.integrations.coded_side import CodedSide
from turbocode.integrations.hf_packages import transformers
from turbocode.transforms.aqua import READ_FROM

if TYPE_CHECKING:
    from turbocode.policies import CachePolicy, Recipe

_stock = transformers.cache_utils
# Up to 5.13 `crop` took the length to keep, and negative numbers for tokens to remove; later ones remove only.
_CROP_ONLY_REMOVES = "tokens_to_remove" in inspect.signature(_stock.DynamicLayer.crop).parameters
# Up to 5.4 models with layers of linear attention brought caches of their own.
_KNOWS_OTHER_LAYERS = hasattr(_stock, "LinearAttentionLayer")
_LAYERS_WITHOUT_KEYS = ("LinearAttentionLayer", "DummyLayer")


class TurboLayer(transformers.cache_utils.DynamicLayer):
    """The cache of one layer with full attention; keys and values are CodedSides in `sides`, nothing else holds tokens.

    number : 0 is the first layer that owns a cache
    below, has_above : the layer below, from which codecs may predict, and whether those of the one above do
    reads : whether `update` returns all decoded tokens; False returns the new ones as they are, for an attention that
        reads `sides` instead
    """

    is_sliding = False

    def __init__(
        self, number: int, policy: CachePolicy, *, holds_blocks: bool = True, reads: bool = True, **window: int
    ) -> None:
        super().__init__(**window)
        self.number, self.policy, self.holds_blocks, self.reads = number, policy, holds_blocks, reads
        self.below: TurboLayer | None = None
        self.has_above = False
        self.sides: dict[str, CodedSide] = {}
        self.cumulative_length = 0

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Choose the codecs by the shapes of the first tokens, (B, J, T, D). Raises OptionError where none fits."""
        self.dtype, self.device = key_states.dtype, key_states.device
        for side, states in zip(SIDES, (key_states, value_states), strict=True):
            codec = self.policy.codec_for(self.number, side, states.shape[-1], states.shape[1])
            self.sides[side] = CodedSide(
                codec,
                self.policy.sinks,
                self.policy.residual,
                holds_blocks=self.holds_blocks,
                sources=self._sources(codec),
                is_source=self.has_above or self.policy.recipe.predicts(self.number, "values"),
            )
        self.is_initialized = True

    def _sources(self, codec: Coder | None) -> list[CodedSide]:
        """The sides that a codec predicts from, in its order. Raises OptionError for a layer that is not there."""
        found = None if codec is None else predicting(codec)
        if found is None:
            return []
        sides = []
        for is_below, side in (READ_FROM[name] for name in found[1].sources):
            layer = self.below if is_below else self
            if layer is None or side not in layer.sides:
                raise OptionError(f"{found[0].name} predicts from a layer below, and layer {self.number:03d} has none")
            sides.append(layer.sides[side])
        return sides

    def update(self, key_states: Any, value_states: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        """(keys, values) that the new tokens attend to, (B, J, T, D) in the model's dtype, the new ones among them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.reads:
            self._forget()
        for side, states in zip(SIDES, (key_states, value_states), strict=True):
            try:
                self.sides[side].append(states)
            except DataError as failure:
                failure.object = f"{side} of layer {self.number:03d}"
                raise
        self.cumulative_length += key_states.shape[-2]
        if not self.reads:
            return key_states, value_states
        keys, values = (self.sides[side].read() for side in SIDES)
        for layer in (self.below, None if self.has_above else self):
            for done in layer.sides.values() if layer is not None else ():
                done.release()
        self._forget()
        return keys, values

    def _forget(self) -> None:
        """Drop what no later token sees: nothing under full attention."""

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def reset(self) -> None:
        self.sides, self.is_initialized, self.cumulative_length = {}, False, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the latest tokens; a positive number means what it means in the transformers that is installed."""
        if _CROP_ONLY_REMOVES and tokens_to_remove > 0:
            raise OptionError(f"crop({tokens_to_remove}): give the number of tokens to remove as a negative number")
        length = self.cumulative_length
        names_removed = _CROP_ONLY_REMOVES or tokens_to_remove < 0
        removed = -tokens_to_remove if names_removed else length - tokens_to_remove
        self._remove(min(max(removed, 0), length))

    def _remove(self, count: int) -> None:
        if not count:
            return
        for side in self.sides.values():
            side.keep(0, side.n_tokens - count)
        self.cumulative_length -= count

    def reorder_cache(self, beam_idx: Any) -> None:
        self._each(lambda part: part.index_select(0, beam_idx.to(part.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda part: part.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Any) -> None:
        self._each(lambda part: part[indices, ...])

    def offload(self) -> None:
        self._each(lambda part: part.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        if self.is_initialized:
            self._each(lambda part: part.to(self.device, non_blocking=True))

    def _each(self, change: Any) -> None:
        for side in self.sides.values():
            side.each(change)


class TurboSlidingLayer(TurboLayer, transformers.cache_utils.DynamicSlidingWindowLayer):
    """The cache of a layer whose tokens see the last `sliding_window` tokens; older ones are dropped, sinks too."""

    is_sliding = True

    def _forget(self) -> None:
        if not getattr(self, "record_past", False):
            self._shrink()

    def _shrink(self) -> None:
        for side in self.sides.values():
            surplus = side.n_tokens - (self.sliding_window - 1)
            if surplus > 0:
                side.keep(surplus, side.n_tokens)

    def update(self, key_states: Any, value_states: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        keys, values = super().update(key_states, value_states, *arguments, **options)
        visible = self.sliding_window - 1 + key_states.shape[-2]
        return keys[..., -visible:, :], values[..., -visible:, :]

    def _remove(self, count: int) -> None:
        kept = self.sides["keys"].n_tokens if self.sides else 0
        is_lossless = kept == self.cumulative_length or kept - count >= self.sliding_window - 1
        if count and not is_lossless:
            raise OptionError(
                f"{count} tokens cannot be removed: a layer with a sliding window of {self.sliding_window} has dropped "
                "the tokens that would be visible again"
            )
        super()._remove(count)
        self._shrink()


def coded_layers(config: Any, policy: CachePolicy, *, holds_blocks: bool = True, reads: bool = True) -> list[Any]:
    """One cache layer for each layer of the model with this config, coded by `policy` where it holds keys and values.

    Layers without keys, of linear attention for example, keep transformers' own. Raises OptionError for layers that
    hold more than keys and values, and for a recipe that names a layer that is not there.
    """
    layers: list[Any] = []
    number, below = 0, None  # the layer below the next, if it owns a cache
    check_layer_types(config)
    stocks = _stock.DynamicCache(config=config).layers
    owners = [stock for stock in stocks if type(stock).__name__ not in _LAYERS_WITHOUT_KEYS]
    policy = policy.for_layers([getattr(stock, "sliding_window", 0) or 0 for stock in owners])
    for index, stock in enumerate(stocks):
        options = {"holds_blocks": holds_blocks, "reads": reads}
        if type(stock) is _stock.DynamicSlidingWindowLayer:
            layers.append(TurboSlidingLayer(number, policy, sliding_window=stock.sliding_window, **options))
        elif type(stock) is _stock.DynamicLayer:
            layers.append(TurboLayer(number, policy, **options))
        elif type(stock).__name__ in _LAYERS_WITHOUT_KEYS:
            layers.append(stock)
            continue
        else:
            raise OptionError(f"layer {index} has a cache of type {type(stock).__name__}, which cannot be coded")
        if below is not None and any(policy.recipe.predicts(number, side) for side in SIDES):
            layers[-1].below, below.has_above = below, True
        number, below = number + 1, layers[-1]
    return layers


def check_layer_types(config: Any) -> None:
    """Raise OptionError for kinds of layers that this transformers keeps elsewhere, or whose mask is no window."""
    known = {"full_attention", "sliding_attention", "linear_attention", "conv", "mlp", "moe"}
    kinds = set(getattr(config.get_text_config(decoder=True), "layer_types", None) or ())
    if not _KNOWS_OTHER_LAYERS:
        known -= {"linear_attention", "conv", "mlp", "moe"}
    odd = sorted(kinds - known)
    if odd:
        raise OptionError(f"the model has layers of type {', '.join(odd)}, whose cache is not known here")


class TurboCache(transformers.cache_utils.Cache):
    """A cache of packed blocks for `model.generate(..., past_key_values=TurboCache(model.config, k="turbo3"))`.

    config : of the model; k, v : codecs of keys and values, `exact` for none; recipe : codecs per layer, instead
    sinks, residual : first and latest tokens of a sequence that stay in 16 bits; None: as the recipe says
    Works with batches, beams, sliding windows and layers of linear attention. Left-padded sequences store what the
    model computes for the padding, as every cache does. A cache is made for one model, and refilled after `reset`.
    Raises OptionError for unknown codecs or layers whose cache cannot be coded.
    """

    def __init__(
        self,
        config: Any,
        *,
        k: str = "turbo3",
        v: str = "turbo3",
        recipe: Recipe | None = None,
        sinks: int | None = None,
        residual: int | None = None,
    ) -> None:
        from turbocode.policies import CachePolicy

        if recipe is None:
            policy = CachePolicy.of(k, v, sinks=sinks or 0, residual=residual or 0)
        else:
            policy = CachePolicy.of_recipe(recipe, sinks=sinks, residual=residual)
        super().__init__(layers=coded_layers(config, policy))

    @property
    def n_bytes(self) -> int:
        """Bytes of keys and values that are held, over all layers; codebooks and states of linear attention not."""
        return cache_bytes(self)

    @property
    def bits_per_value(self) -> float:
        """Bits a value, with the exact tokens counted. Raises OptionError while the cache is empty."""
        return bits_per_value(self)


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values in a cache made of coded layers, coded tokens counted as blocks."""
    return sum(side.n_bytes for layer in cache.layers for side in getattr(layer, "sides", {}).values())


def bits_per_value(cache: Any) -> float:
    """Bits a value of a cache made of coded layers, constants too. Raises OptionError while it is empty."""
    n_values = sum(side.n_values for layer in cache.layers for side in getattr(layer, "sides", {}).values())
    if not n_values:
        raise OptionError("the cache is empty, so it has no bits per value")
    constants = sum(side.constant_bits for layer in cache.layers for side in getattr(layer, "sides", {}).values())
    return (8 * cache_bytes(cache) + constants) / n_values
