"""What everything downstream knows of a codec, be it a plain one, one behind transforms or one of another kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs.codec import Codec, codec_from_description
from turbocode.codecs.multirate_codec import MULTIRATE, multirate_from_description
from turbocode.codecs.report import EncodeReport
from turbocode.codecs.transformed import TransformedCodec, transformed_from_description
from turbocode.errors import DataError


@runtime_checkable
class Coder(Protocol):
    """Vectors of one layer's keys or values into blocks and back.

    name, head_dim, bytes_per_vector : as in Codec
    bits_per_value : of blocks and of constants, these shared by 32,768 tokens; constant_bits : of the constants alone
    n_heads : KV heads that it tells apart, 1 for none; `head` is below it or ignored
    """

    @property
    def name(self) -> str: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def bytes_per_vector(self) -> int: ...
    @property
    def bits_per_value(self) -> float: ...
    @property
    def constant_bits(self) -> float: ...

    def for_head(self, head: int) -> Coder:
        """The coder of one KV head, which answers to every `head`."""
        ...

    def encode(self, values: NDArray[Any], head: int = 0) -> tuple[NDArray[np.uint8], EncodeReport]: ...

    def decode(self, blocks: NDArray[np.uint8], head: int = 0, *, unrotate: bool = True) -> NDArray[np.float32]: ...

    def rotate(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        """Queries in the basis in which attention reads the key blocks."""
        ...

    def unrotate(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        """Attention outputs over value blocks in the model's basis."""
        ...

    def logit_offset(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32] | None:
        """What logits of these queries over the key blocks lack, before the scale; None for nothing."""
        ...

    def describe(self) -> dict[str, Any]: ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the description refers to by name and SHA-256."""
        ...


def coder_from_description(
    description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], *, file: str | None = None
) -> Coder:
    """The coder that `describe` and `arrays` wrote. Raises DataError naming what is missing or disagrees."""
    if not isinstance(description, Mapping):
        raise DataError("codec description: must be an object", file=file)
    if "transforms" in description:
        return transformed_from_description(description, arrays, file=file)
    if description.get("codec") == MULTIRATE:
        return multirate_from_description(description, arrays, file=file)
    return codec_from_description(description, file=file)


def plain_codec(coder: Coder) -> Codec | None:
    """The codec whose blocks these are, None for a coder with blocks of its own kind."""
    if isinstance(coder, TransformedCodec) and coder.is_read_decoded:
        return None
    inner = coder.codec if isinstance(coder, TransformedCodec) else coder
    return inner if isinstance(inner, Codec) else None


def has_packed_attention(coder: Coder) -> bool:
    """Whether attention reads its blocks as they are: not where a transform keeps bytes of every token, or predicts."""
    return not (isinstance(coder, TransformedCodec) and coder.is_read_decoded)


def predicting(coder: Coder) -> TransformedCodec | None:
    """The coder, if it codes what a prediction from other layers leaves: each call needs its `predicting`."""
    return coder if isinstance(coder, TransformedCodec) and coder.predictor is not None else None


def run_tokens(coder: Coder) -> int:
    """Tokens that it codes and decodes together: a call's first token is a multiple of it. 1 for each alone."""
    return coder.run_tokens if isinstance(coder, TransformedCodec) else 1


def encode_heads(coder: Coder, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Blocks uint8 (B, J, T, bytes_per_vector) of float16 or float32 vectors (B, J, T, D), each head by its own.

    Raises DataError for a NaN or an infinity.
    """
    if coder.n_heads == 1:
        return coder.encode(values)[0]
    return np.stack([coder.encode(values[:, head], head)[0] for head in range(values.shape[1])], axis=1)


def decode_heads(coder: Coder, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Vectors float32 (B, J, T, D) of blocks (B, J, T, bytes_per_vector)."""
    if coder.n_heads == 1:
        return coder.decode(blocks)
    return np.stack([coder.decode(blocks[:, head], head) for head in range(blocks.shape[1])], axis=1)
