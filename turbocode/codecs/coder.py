"""What everything downstream knows of a codec, be it a plain one, one behind transforms or one of another kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs.codec import Codec, codec_from_description
from turbocode.codecs.multirate_codec import MULTIRATE, multirate_from_description
from turbocode.codecs.per_head import PerHeadCodec, per_head_from_description
from turbocode.codecs.report import EncodeReport
from turbocode.codecs.transformed import TransformedCodec, transformed_from_description
from turbocode.errors import DataError
from turbocode.transforms import Predictor


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
    if "heads" in description:
        return per_head_from_description(description, arrays, file=file)
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
    if isinstance(coder, PerHeadCodec):
        return all(has_packed_attention(one) for one in coder.coders)
    return not (isinstance(coder, TransformedCodec) and coder.is_read_decoded)


@runtime_checkable
class Predicting(Coder, Protocol):
    """A coder that may code what a prediction from other layers leaves; each call then needs `with_prediction`."""

    @property
    def predictor(self) -> Predictor | None: ...

    def with_prediction(self, prediction: NDArray[np.float32]) -> Coder: ...


def predicting(coder: Coder) -> tuple[Predicting, Predictor] | None:
    """The coder and what it needs predictions of, if it needs any."""
    found = coder.predictor if isinstance(coder, TransformedCodec | PerHeadCodec) else None
    return None if found is None else (coder, found)  # type: ignore[return-value]


def run_tokens(coder: Coder) -> int:
    """Tokens that it codes and decodes together: a call's first token is a multiple of it. 1 for each alone."""
    first = coder.coders[0] if isinstance(coder, PerHeadCodec) else coder
    return first.run_tokens if isinstance(first, TransformedCodec) else 1


def row_widths(coder: Coder) -> tuple[int, ...] | None:
    """Bytes of each head where blocks of all heads make one row of a token, None where every head has its own."""
    return coder.widths if isinstance(coder, PerHeadCodec) else None


def row_bytes(coder: Coder, n_heads: int) -> int:
    """Bytes of the blocks of one token of all heads."""
    return sum(row_widths(coder) or (n_heads * coder.bytes_per_vector,))


def head_blocks(coder: Coder, blocks: NDArray[np.uint8], head: int) -> NDArray[np.uint8]:
    """Blocks uint8 (B, T, bytes) of one head of (B, J, T, bytes), or of rows (B, 1, T, bytes of all heads)."""
    return blocks[:, 0, :, coder.columns(head)] if isinstance(coder, PerHeadCodec) else blocks[:, head]


def encode_heads(coder: Coder, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Blocks uint8 (B, J, T, bytes_per_vector) of float16 or float32 vectors (B, J, T, D), each head by its own.

    Of a coder with `row_widths` they are rows (B, 1, T, bytes of all heads). Raises DataError for a NaN or an infinity.
    """
    if coder.n_heads == 1:
        return coder.encode(values)[0]
    each = [coder.encode(values[:, head], head)[0] for head in range(values.shape[1])]
    return np.stack(each, axis=1) if row_widths(coder) is None else np.concatenate(each, axis=-1)[:, None]


def decode_heads(coder: Coder, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Vectors float32 (B, J, T, D) of what `encode_heads` gives."""
    if coder.n_heads == 1:
        return coder.decode(blocks)
    return np.stack([coder.decode(head_blocks(coder, blocks, head), head) for head in range(coder.n_heads)], axis=1)
