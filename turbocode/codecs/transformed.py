"""A codec behind a chain of transforms: vectors pass the chain, are coded, and come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs.codec import Codec, codec_from_description
from turbocode.codecs.report import EncodeReport
from turbocode.errors import DataError, OptionError
from turbocode.formats.array_digest import array_sha256
from turbocode.transforms import FittedChain, FittedTransform, Predictor

TRANSFORMED_VERSION = 1


@dataclass(frozen=True, eq=False)
class TransformedCodec:
    """codec : what the transformed vectors are coded with; chain : fitted for one layer's keys or values.

    head : the KV head whose map is used whatever head a call names; None: the one it names
    prediction : float32 (J, ..., D), what is taken away from the vectors of each KV head and added to what they decode
        to, of the shape of what the next call is given; needed where the chain predicts (`with_prediction`)
    Raises OptionError where codec and chain do not fit.
    """

    codec: Codec
    chain: FittedChain
    head: int | None = None
    prediction: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.codec.head_dim != self.chain.head_dim:
            raise OptionError(
                f"transforms were fitted to vectors of {self.chain.head_dim} values; these have {self.codec.head_dim}"
            )

    @property
    def name(self) -> str:
        return "+".join([*self.chain.names, self.codec.name])

    @property
    def head_dim(self) -> int:
        return self.codec.head_dim

    @property
    def n_heads(self) -> int:
        return self.chain.n_heads if self.head is None else 1

    @property
    def bytes_per_vector(self) -> int:
        return self.kept_bytes + self.codec.bytes_per_vector

    @property
    def kept_bytes(self) -> int:
        """Bytes that the last transform keeps of every token, which stand before its block; 0 for most."""
        return self.chain.token_map.n_bytes if self.chain.token_map else 0

    @property
    def run_tokens(self) -> int:
        """Tokens that are coded and decoded together, 1 for each alone; see transforms/per_token.py."""
        return self.chain.token_map.run if self.chain.token_map else 1

    @property
    def predictor(self) -> Predictor | None:
        """What predicts vectors from other layers; the codec then codes the rest."""
        return self.chain.predictor

    @property
    def is_read_decoded(self) -> bool:
        """Whether blocks alone do not tell what attention needs, so that they are decoded before."""
        return bool(self.kept_bytes) or self.predictor is not None

    @property
    def constant_bits(self) -> float:
        return self.chain.bits_per_value

    @property
    def bits_per_value(self) -> float:
        """Stored bits per value: the blocks, and the transforms' arrays shared by 32,768 tokens."""
        return 8 * self.bytes_per_vector / self.head_dim + self.constant_bits

    def for_head(self, head: int) -> TransformedCodec:
        return TransformedCodec(self.codec.for_head(head), self.chain, head, self.prediction)

    def with_prediction(self, prediction: NDArray[np.float32]) -> TransformedCodec:
        """The codec of the tokens that predictor.predict was told the positions of."""
        return replace(self, prediction=prediction)

    def encode(self, values: NDArray[Any], head: int = 0) -> tuple[NDArray[np.uint8], EncodeReport]:
        """(blocks, report) as Codec.encode; the report compares `values` with what their blocks decode to.

        Where tokens are coded in runs, the last axis but one is that of the tokens, and the first begins a run.
        """
        values = np.asarray(values)
        if values.ndim == 0 or values.shape[-1] != self.head_dim:
            raise OptionError(
                f"{self.name} encodes vectors of {self.head_dim} values; the array has shape {values.shape}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            rest = values if self.predictor is None else values - self._predicted(head, values.shape)
            coded = self.chain.head_map.code(rest, self._head(head))
        if self.chain.token_map is not None:
            finite = np.isfinite(coded).all()  # else the codec says where
            split = self.chain.token_map.split if finite else lambda x, _: (x, np.zeros((len(x), 0), np.uint8))
            pairs = [split(x.astype(np.float64), self._head(head)) for x in self._sequences(coded)]
            coded = np.stack([pair[0] for pair in pairs]).reshape(values.shape).astype(np.float32)
            kept = np.stack([pair[1] for pair in pairs])
        blocks, cost = self.codec.encode(coded, head)
        if self.chain.token_map is not None:
            blocks = np.concatenate([kept.reshape(*values.shape[:-1], kept.shape[-1]), blocks], axis=-1)
        report, _ = EncodeReport.of_vectors(values, self.decode(blocks, head))
        report.saturated_vectors = cost.saturated_vectors
        return blocks, report

    def decode(self, blocks: NDArray[np.uint8], head: int = 0, *, unrotate: bool = True) -> NDArray[np.float32]:
        """Vectors float32 (..., head_dim); unrotate=False leaves them as attention reads them."""
        if self.is_read_decoded and not unrotate:
            raise OptionError(f"{self.name} decodes to the model's basis only")
        if self.chain.token_map is not None:
            found = self._decode_with_kept(np.asarray(blocks), head)
        else:
            coded = self.codec.decode(blocks, head, unrotate=unrotate)
            found = self.chain.head_map.restore(coded, self._head(head)) if unrotate else coded
        return found if self.predictor is None else found + self._predicted(head, found.shape)

    def _predicted(self, head: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if self.prediction is None:
            raise OptionError(
                f"{self.name} codes what the layer below does not tell, and is read with that layer only: "
                "in quantized files, measure, attend compare, evaluate and TurboCache"
            )
        return self.prediction[self._head(head)].reshape(shape)

    def _decode_with_kept(self, blocks: NDArray[np.uint8], head: int) -> NDArray[np.float32]:
        assert self.chain.token_map is not None
        if blocks.dtype != np.uint8 or blocks.shape[-1:] != (self.bytes_per_vector,):
            raise OptionError(
                f"{self.name} decodes uint8 arrays of {self.bytes_per_vector} bytes a vector; "
                f"given is {blocks.dtype} of shape {blocks.shape}"
            )
        coded = self.codec.decode(blocks[..., self.kept_bytes :], head)
        pairs = zip(self._sequences(coded), self._sequences(blocks[..., : self.kept_bytes]), strict=True)
        joined = np.stack([self.chain.token_map.join(x, kept, self._head(head)) for x, kept in pairs])
        return self.chain.head_map.restore(joined.reshape(coded.shape), self._head(head))

    def _sequences(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows (..., T, n) as (sequences, T, n), or as one sequence where each token is coded alone."""
        n_tokens = rows.shape[-2] if self.run_tokens > 1 and rows.ndim > 1 else rows.size // rows.shape[-1]
        return rows.reshape(-1, n_tokens, rows.shape[-1]) if rows.size else rows.reshape(1, -1, rows.shape[-1])

    def rotate(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        """Queries in the basis of the key blocks of a KV head; their logits lack `logit_offset`."""
        return self.codec.rotate(self.to_queries(vectors, head))

    def unrotate(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        """Attention outputs over the value blocks of a KV head in the model's basis."""
        return self.to_outputs(self.codec.unrotate(vectors), head)

    def to_queries(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        """Queries for keys as the inner codec decodes them."""
        return self.chain.head_map.queries(vectors, self._head(head))

    def to_outputs(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        """Outputs in the model's basis of attention over values as the inner codec decodes them."""
        return self.chain.head_map.restore(vectors, self._head(head))

    def logit_offset(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32] | None:
        """What logits of queries (..., head_dim) over the key blocks lack, float32 (...); None for nothing."""
        return self.chain.head_map.logit_offset(vectors, self._head(head))

    def _head(self, head: int) -> int:
        return head if self.head is None else self.head

    def describe(self) -> dict[str, Any]:
        """A JSON object that with `arrays` gives the codec back."""
        return {"version": TRANSFORMED_VERSION, **describe_chain(self.chain), "inner": self.codec.describe()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The chain's arrays by the names they have in a file."""
        return {
            _array_name(number, step.name, name): array
            for number, step in enumerate(self.chain.steps)
            for name, array in step.arrays.items()
        }


def describe_chain(chain: FittedChain) -> dict[str, Any]:
    """Entries of a JSON object that with a codec's arrays give the chain back."""
    steps = [
        {
            "name": step.name,
            "about": step.about,
            "arrays": {name: array_sha256(array) for name, array in step.arrays.items()},
        }
        for step in chain.steps
    ]
    return {"n_heads": chain.n_heads, "transforms": steps}


def _array_name(number: int, transform: str, name: str) -> str:
    return f"{number}.{transform}.{name}"


def transformed_from_description(
    description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], *, file: str | None = None
) -> TransformedCodec:
    """What `describe` and `arrays` wrote. Raises DataError naming the entry that is missing or disagrees."""
    try:
        if description["version"] != TRANSFORMED_VERSION:
            raise DataError(f"codec description version {description['version']!r} is unknown", file=file)
        codec = codec_from_description(description["inner"], file=file)
        return TransformedCodec(codec, chain_from_description(description, arrays, codec.head_dim, file=file))
    except KeyError as error:
        raise DataError(f"codec description: key {error.args[0]!r} is missing", file=file) from None


def chain_from_description(
    description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], head_dim: int, *, file: str | None = None
) -> FittedChain:
    """The chain that `describe_chain` wrote. Raises DataError naming the entry that is missing or disagrees."""
    try:
        n_heads, listed = description["n_heads"], description["transforms"]
        if type(n_heads) is not int or not isinstance(listed, list):
            raise DataError("codec description: n_heads or transforms has the wrong type", file=file)
        steps = []
        for number, entry in enumerate(listed):
            found = {}
            for name, digest in dict(entry["arrays"]).items():
                where = _array_name(number, entry["name"], name)
                if where not in arrays or array_sha256(arrays[where]) != digest:
                    raise DataError(f"codec description: array {where} is missing or another one", file=file)
                found[str(name)] = arrays[where]
            steps.append(FittedTransform(str(entry["name"]), dict(entry["about"]), found))
        return FittedChain(tuple(steps), n_heads, head_dim)
    except KeyError as error:
        raise DataError(f"codec description: key {error.args[0]!r} is missing", file=file) from None
    except (TypeError, ValueError):
        raise DataError("codec description: transforms are not laid out as known here", file=file) from None
    except DataError as error:
        raise (error if error.file else DataError(error.message, file=file)) from None
