"""A codec for each KV head of one layer's keys or values; blocks of one head may be longer than those of another.

Where blocks of all heads are kept together, in files and caches, a row holds those of one token, head after head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs.codec import Codec, codec_from_description
from turbocode.codecs.report import EncodeReport
from turbocode.codecs.transformed import TransformedCodec, chain_from_description, describe_chain
from turbocode.errors import DataError, OptionError
from turbocode.transforms import FittedChain, Predictor

PER_HEAD_VERSION = 1


@dataclass(frozen=True, eq=False)
class PerHeadCodec:
    """A Coder (codecs/coder.py) of coders, one for each KV head, all plain or all behind one chain of transforms.

    bytes_per_vector : of the longest; `widths` has those of each head
    Raises OptionError where they do not belong together.
    """

    coders: tuple[Codec | TransformedCodec, ...]

    def __post_init__(self) -> None:
        first = self.coders[0]
        for coder in self.coders[1:]:
            if coder.head_dim != first.head_dim or _chain(coder) is not _chain(first):
                raise OptionError(f"{coder.name} and {first.name} do not code heads of one side")
        chain = _chain(first)
        if chain is not None and chain.n_heads != len(self.coders):
            raise OptionError(f"transforms of {chain.n_heads} KV heads do not go with codecs of {len(self.coders)}")

    @cached_property
    def name(self) -> str:
        return "|".join(coder.name for coder in self.coders)

    @property
    def head_dim(self) -> int:
        return self.coders[0].head_dim

    @property
    def n_heads(self) -> int:
        return len(self.coders)

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes of a vector of each head."""
        return tuple(coder.bytes_per_vector for coder in self.coders)

    @property
    def bytes_per_vector(self) -> int:
        return max(self.widths)

    @property
    def constant_bits(self) -> float:
        return self.coders[0].constant_bits

    @property
    def bits_per_value(self) -> float:
        """Stored bits per value, the mean of the heads."""
        return 8 * sum(self.widths) / (self.n_heads * self.head_dim) + self.constant_bits

    @property
    def predictor(self) -> Predictor | None:
        """As TransformedCodec.predictor, of all heads."""
        first = self.coders[0]
        return first.predictor if isinstance(first, TransformedCodec) else None

    def with_prediction(self, prediction: NDArray[np.float32]) -> PerHeadCodec:
        """As TransformedCodec.with_prediction."""
        parts = [c.with_prediction(prediction) if isinstance(c, TransformedCodec) else c for c in self.coders]
        return PerHeadCodec(tuple(parts))

    def columns(self, head: int) -> slice:
        """Where in a row the blocks of a head are."""
        start = sum(self.widths[:head])
        return slice(start, start + self.widths[head])

    def for_head(self, head: int) -> Codec | TransformedCodec:
        return self.coders[head].for_head(head)

    def encode(self, values: NDArray[Any], head: int = 0) -> tuple[NDArray[np.uint8], EncodeReport]:
        return self.coders[head].encode(values, head)

    def decode(self, blocks: NDArray[np.uint8], head: int = 0, *, unrotate: bool = True) -> NDArray[np.float32]:
        return self.coders[head].decode(blocks, head, unrotate=unrotate)

    def rotate(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        return self.coders[head].rotate(vectors, head)

    def unrotate(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        return self.coders[head].unrotate(vectors, head)

    def logit_offset(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32] | None:
        return self.coders[head].logit_offset(vectors, head)

    def describe(self) -> dict[str, Any]:
        """A JSON object that with `arrays` gives the codec back."""
        return {
            "version": PER_HEAD_VERSION,
            "codec": self.name,
            "widths": list(self.widths),
            "heads": [_inner(coder).describe() for coder in self.coders],
            **({} if (chain := _chain(self.coders[0])) is None else describe_chain(chain)),
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self.coders[0].arrays()


def _chain(coder: Codec | TransformedCodec) -> FittedChain | None:
    return coder.chain if isinstance(coder, TransformedCodec) else None


def _inner(coder: Codec | TransformedCodec) -> Codec:
    return coder.codec if isinstance(coder, TransformedCodec) else coder


def per_head_from_description(
    description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], *, file: str | None = None
) -> PerHeadCodec:
    """What `describe` and `arrays` wrote. Raises DataError naming the entry that is missing or disagrees."""
    heads = description["heads"]
    if description.get("version") != PER_HEAD_VERSION or not isinstance(heads, list) or not heads:
        raise DataError(f"codec description: a list of heads of version {PER_HEAD_VERSION} is needed", file=file)
    codecs = [codec_from_description(entry, file=file) for entry in heads]
    chain = None
    if "transforms" in description:
        chain = chain_from_description(description, arrays, codecs[0].head_dim, file=file)
    try:
        found = PerHeadCodec(tuple(codec if chain is None else TransformedCodec(codec, chain) for codec in codecs))
    except OptionError as error:
        raise DataError(error.message, file=file) from None
    if list(found.widths) != description.get("widths"):
        raise DataError(f"codec description: widths are {list(found.widths)} bytes, not those stored", file=file)
    return found
