"""A codec fitted to one layer's keys or values: a basis for each head, one schedule of rates, the multi-rate trellis.

J KV heads, D head_dim. A vector x is coded as y = A (x - mean), whose channels are ordered in runs of eight and have
standard deviations sigma; A is stored as 8-bit numbers with a scale for each row and column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codebooks.multirate_codebook import multirate_codebook
from turbocode.codecs.report import EncodeReport
from turbocode.errors import DataError, OptionError
from turbocode.formats.array_digest import array_sha256
from turbocode.formats.multirate_format import MAX_RATE, MULTIRATE_STATES_LOG2, RUN_CHANNELS, MultirateFormat
from turbocode.kernels.multirate import LAWS, GainScale, MultirateSide
from turbocode.kernels.multirate.basis import basis_matrix, inverse_matrix, quantize_basis
from turbocode.kernels.multirate.gpu_table import gpu_table
from turbocode.transforms import CONSTANT_TOKENS

MULTIRATE = "multirate"
MULTIRATE_CODEC_VERSION = 1
_CODEBOOK = "codebook"  # the array that files hold beside those of the calibration
LIMIT, CODED_LIMIT = np.float32(2.0**60), np.float32(2.0**50)  # beyond them values are cut, so that no sum overflows
_LARGEST_GAIN = 255
_LARGEST_STRETCH, _LARGEST_NUMBER = 2.0, 1e38
_DTYPES = {
    "basis": np.int8,
    "row_scale": np.float32,
    "column_scale": np.float32,
    "mean": np.float32,
    "sigma": np.float32,
    "rates": np.uint8,
}


@dataclass(frozen=True, eq=False)
class MultirateCodec:
    """A Coder (codecs/coder.py) of one layer's keys or values.

    block_format : the schedule; law : `whitened` or `energy`, the first guess of a gain; gains : meaning of its byte
    basis : int8 (J, D, D), a row for each channel; row_scale, column_scale : float32 (J, D)
    mean, sigma : float32 (J, D); tables : float32 (9, 1024), values of the states at each rate
    searches : most paths that are tried for a vector, 1 to 4; readers do not need it
    stretch : factors of what channels decode to, one for each rate from 0 on, positive. A trellis's values are means of
        what they stand for, so that at a rate which leaves the share e of a channel's energy as error all tokens shrink
        alike, by 1 - e; attention adds such errors up. 1 / (1 - e) undoes it for a little more squared error.
    Raises OptionError where they do not fit, DataError where a basis has no inverse.
    """

    block_format: MultirateFormat
    law: str
    gains: GainScale
    basis: NDArray[np.int8]
    row_scale: NDArray[np.float32]
    column_scale: NDArray[np.float32]
    mean: NDArray[np.float32]
    sigma: NDArray[np.float32]
    tables: NDArray[np.float32]
    searches: int = 1
    stretch: tuple[float, ...] = (1.0,) * (MAX_RATE + 1)

    name = MULTIRATE

    def __post_init__(self) -> None:
        heads, d = self.basis.shape[0], self.head_dim
        shapes = {"basis": (heads, d, d), **dict.fromkeys(("row_scale", "column_scale", "mean", "sigma"), (heads, d))}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != _DTYPES[name]:
                raise OptionError(
                    f"multirate {name} is {array.dtype} {array.shape}; {np.dtype(_DTYPES[name])} {shape} is needed"
                )
            if not np.isfinite(array).all():
                raise OptionError(f"multirate {name} holds a NaN or an infinity")
        if len(self.stretch) != MAX_RATE + 1 or not all(0 < factor <= _LARGEST_STRETCH for factor in self.stretch):
            raise OptionError(f"multirate stretch must be {MAX_RATE + 1} numbers above 0 and up to {_LARGEST_STRETCH}")
        if self.law not in LAWS:
            raise OptionError(f"unknown law {self.law!r}; allowed: {', '.join(LAWS)}")
        assert self._heads is not None  # made now, so that what does not fit is found when a file is read

    @cached_property
    def _heads(self) -> tuple[HeadConstants, ...]:
        return tuple(HeadConstants.of(self, head) for head in range(len(self.basis)))

    @property
    def head_dim(self) -> int:
        return self.block_format.head_dim

    @property
    def n_heads(self) -> int:
        return len(self.basis)

    @property
    def bytes_per_vector(self) -> int:
        return self.block_format.bytes_per_block

    @property
    def constant_bits(self) -> float:
        """Bits per value of the calibration's arrays and the gains' two numbers, shared by 32,768 tokens.

        The codebook is not among them: it comes with the software, and files hold it to be read by later ones.
        """
        n_bytes = sum(array.nbytes for array in self._calibrated().values()) + 8
        return 8 * n_bytes / (CONSTANT_TOKENS * self.basis.shape[0] * self.head_dim)

    @property
    def bits_per_value(self) -> float:
        """Stored bits per value: the blocks, and the constants shared by 32,768 tokens."""
        return self.block_format.bits_per_value + self.constant_bits

    def for_head(self, head: int) -> MultirateCodec:
        """The codec of one KV head, which answers to every `head`."""
        one = {name: getattr(self, name)[head : head + 1] for name in _DTYPES if name != "rates"}
        return replace(self, **one)

    def head_constants(self, head: int) -> HeadConstants:
        """What coding the vectors of one KV head takes."""
        return self._heads[head if self.n_heads > 1 else 0]

    def encode(self, values: NDArray[Any], head: int = 0) -> tuple[NDArray[np.uint8], EncodeReport]:
        """(blocks, report): uint8 (..., bytes_per_vector) from vectors (..., head_dim) of one KV head.

        A NaN or infinity is a DataError; zero vectors are coded like others, as the mean is taken off. Vectors that
        need a larger gain than there is are cut and counted.
        """
        from turbocode.kernels.multirate import cpu

        values = np.asarray(values)
        if values.ndim == 0 or values.shape[-1] != self.head_dim:
            raise OptionError(
                f"{self.name} encodes vectors of {self.head_dim} values; the array has shape {values.shape}"
            )
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, self.head_dim)
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(bad):
            where = tuple(int(i) for i in np.unravel_index(int(bad[0]), values.shape[:-1]))
            raise DataError(f"vector {where} holds a NaN or an infinity; finite values are needed")
        chosen = self.head_constants(head)
        y = cpu.affine(np.clip(x, -LIMIT, LIMIT), chosen.mean, chosen.columns, np.zeros_like(chosen.mean))
        blocks = cpu.encode(np.clip(y, -CODED_LIMIT, CODED_LIMIT), chosen.side, self.searches)
        report, _ = EncodeReport.of_vectors(x, self.decode(blocks, head))
        report.saturated_vectors = int((blocks[:, 0] == _LARGEST_GAIN).sum())
        return blocks.reshape(*values.shape[:-1], self.bytes_per_vector), report

    def decode(self, blocks: NDArray[np.uint8], head: int = 0, *, unrotate: bool = True) -> NDArray[np.float32]:
        """Vectors float32 (..., head_dim) from blocks uint8 (..., bytes_per_vector) of one KV head.

        unrotate=False leaves them as attention reads them: in the basis, without sigma.
        """
        from turbocode.kernels.multirate import cpu

        blocks = np.ascontiguousarray(blocks)
        if blocks.dtype != np.uint8 or blocks.ndim == 0 or blocks.shape[-1] != self.bytes_per_vector:
            raise OptionError(
                f"{self.name} decodes uint8 arrays of {self.bytes_per_vector} bytes a vector; "
                f"given is {blocks.dtype} of shape {blocks.shape}"
            )
        chosen = self.head_constants(head)
        values = cpu.decode(blocks.reshape(-1, self.bytes_per_vector), chosen.side, is_scaled=unrotate)
        if unrotate:
            values = cpu.affine(values, np.zeros_like(chosen.mean), chosen.back, chosen.mean)
        return values.reshape(*blocks.shape[:-1], self.head_dim)

    def rotate(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        """Queries for logits over the key blocks of a KV head, which lack `logit_offset`: sigma A^-T q."""
        chosen = self.head_constants(head)
        return np.asarray((np.asarray(vectors, np.float32) @ chosen.back.T) * chosen.side.sigma, np.float32)

    def unrotate(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        """Attention outputs over the value blocks of a KV head in the model's basis: A^-1 sigma o + mean."""
        chosen = self.head_constants(head)
        scaled = np.asarray(vectors, np.float32) * chosen.side.sigma
        return np.asarray(scaled @ chosen.back + chosen.mean, np.float32)

    def logit_offset(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        """<q, mean>, float32 (...): what logits of queries (..., head_dim) over the key blocks lack."""
        mean = self.head_constants(head).mean.astype(np.float64)
        return (np.asarray(vectors, np.float64) @ mean).astype(np.float32)

    def packed_tables(self) -> NDArray[np.float32]:
        """float32 (n_heads, 9 * 1024 + 256): the tables and the gains, as attention over packed blocks takes them."""
        one = np.concatenate((self.tables.ravel(), self.gains.gains))
        return np.tile(one, (self.n_heads, 1))

    def gpu_table(self) -> NDArray[np.float32]:
        """float32 (1, words): what GPU kernels read the blocks with, the same for all heads."""
        return gpu_table(self.block_format, self.tables, self.gains.gains)[None]

    def _calibrated(self) -> dict[str, NDArray[Any]]:
        arrays = {name: getattr(self, name) for name in _DTYPES if name != "rates"}
        return {**arrays, "rates": np.array([self.block_format.rates], np.uint8)}

    def calibration_entry(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """(about, arrays) of a calibration file, from which `multirate_from_calibration` makes the codec."""
        about = {
            "version": MULTIRATE_CODEC_VERSION,
            "law": self.law,
            "gain_base": self.gains.base,
            "gain_ratio": self.gains.ratio,
            "searches": self.searches,
            "stretch": list(self.stretch),
            "codebook_sha256": array_sha256(self.tables),
        }
        return about, self._calibrated()

    def describe(self) -> dict[str, Any]:
        """A JSON object that with `arrays` gives the codec back."""
        about, _ = self.calibration_entry()
        digests = {name: array_sha256(array) for name, array in self.arrays().items()}
        return {
            **about,
            "codec": self.name,
            "n_heads": self.n_heads,
            "head_dim": self.head_dim,
            "format": self.block_format.describe(),
            "arrays": digests,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The calibration's arrays and the codebook, so that a file can be read alone."""
        return {**self._calibrated(), _CODEBOOK: self.tables[None]}


@dataclass(frozen=True, eq=False)
class HeadConstants:
    """One head ready for work. columns : A^T, back : A^-T with its rows stretched, float32 (D, D); mean (D,)."""

    side: MultirateSide
    columns: NDArray[np.float32]
    back: NDArray[np.float32]
    mean: NDArray[np.float32]

    @classmethod
    def of(cls, codec: MultirateCodec, head: int) -> HeadConstants:
        matrix = basis_matrix(codec.basis[head], codec.row_scale[head], codec.column_scale[head])
        side = MultirateSide(codec.block_format, codec.sigma[head], codec.gains, LAWS[codec.law], codec.tables)
        columns, back = (np.ascontiguousarray(each.T) for each in (matrix, inverse_matrix(matrix)))
        factors = np.array(codec.stretch, np.float32)[np.repeat(codec.block_format.rates, RUN_CHANNELS)]
        return cls(side, columns, back * factors[:, None], codec.mean[head])


def multirate_codec(
    basis: NDArray[Any],
    mean: NDArray[Any],
    sigma: NDArray[Any],
    rates: Sequence[int] | NDArray[np.integer],
    law: str,
    *,
    gains: GainScale | None = None,
    searches: int = 3,
    is_unbiased: bool = True,
) -> MultirateCodec:
    """The codec of a basis (J, D, D), a row for each channel in the order of the schedule, with the shipped codebook.

    mean, sigma : (J, D), of the vectors and of the channels of basis @ (x - mean)
    rates : bits a channel of each run of 8 channels, 0 to 8; law : `whitened` or `energy`
    is_unbiased : stretch what is decoded so that its error does not shrink every token alike
    Raises OptionError where they do not fit.
    """
    quants, rows, columns = quantize_basis(np.asarray(basis, np.float64))
    shift, scale = (np.ascontiguousarray(array, dtype=np.float32) for array in (mean, sigma))
    form, codebook = MultirateFormat.of(rates), multirate_codebook()
    stretch = (1.0, *(1.0 / (1.0 - nmse) if is_unbiased else 1.0 for nmse in codebook.nmse))
    return MultirateCodec(
        form, law, gains or GainScale(), quants, rows, columns, shift, scale, codebook.tables, searches, stretch
    )


def multirate_from_calibration(
    about: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    n_kv_heads: int,
    head_dim: int,
    *,
    file: str | None = None,
) -> MultirateCodec:
    """The codec of an entry that `calibration_entry` made. Raises DataError naming what is missing or does not fit."""
    codebook = multirate_codebook()
    if about.get("codebook_sha256") != array_sha256(codebook.tables):
        raise DataError("multirate: was calibrated for another codebook than the shipped one", file=file)
    codec = _made(about, arrays, codebook.tables, file)
    if (codec.n_heads, codec.head_dim) != (n_kv_heads, head_dim):
        raise DataError(
            f"multirate: constants of {codec.n_heads} heads of {codec.head_dim} values; "
            f"these are {n_kv_heads} of {head_dim}",
            file=file,
        )
    return codec


def multirate_from_description(
    description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], *, file: str | None = None
) -> MultirateCodec:
    """What `describe` and `arrays` wrote. Raises DataError naming the entry that is missing or disagrees."""
    digests = description.get("arrays")
    if not isinstance(digests, Mapping):
        raise DataError("codec description: key 'arrays' is missing", file=file)
    for name in (*_DTYPES, _CODEBOOK):
        if name not in arrays or array_sha256(arrays[name]) != digests.get(name):
            raise DataError(f"codec description: array {name} is missing or another one", file=file)
    tables = arrays[_CODEBOOK]
    if tables.dtype != np.float32 or tables.shape != (1, MAX_RATE + 1, 1 << MULTIRATE_STATES_LOG2):
        raise DataError(f"codec description: array {_CODEBOOK} is {tables.dtype} {tables.shape}", file=file)
    codec = _made(description, arrays, tables[0], file)
    if description.get("format") != codec.block_format.describe() or description.get("n_heads") != codec.n_heads:
        raise DataError("codec description: format multirate is not laid out as this turbocode knows it", file=file)
    return codec


def _made(
    about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], tables: NDArray[Any], file: str | None
) -> MultirateCodec:
    """The codec of facts and arrays from outside. Raises DataError."""
    try:
        if about["version"] != MULTIRATE_CODEC_VERSION:
            raise DataError(f"multirate version {about['version']!r} is unknown; known is 1", file=file)
        given = {name: arrays[name] for name in _DTYPES}
        base, ratio, searches = about["gain_base"], about["gain_ratio"], about["searches"]
        stretch = about.get("stretch", [1.0] * (MAX_RATE + 1))
        if not isinstance(stretch, list) or not all(_is_number(number) for number in (base, ratio, *stretch)):
            raise DataError("multirate: gain_base, gain_ratio and those of stretch must be numbers", file=file)
        if type(searches) is not int or not 1 <= searches <= 4:
            raise DataError(f"multirate: searches {searches!r} is not 1 to 4", file=file)
        rates = given.pop("rates")
        if rates.ndim != 2 or len(rates) != 1 or rates.dtype != np.uint8 or given["basis"].ndim != 3:
            raise DataError("multirate: array rates or basis has the wrong shape", file=file)
        law, gains = str(about["law"]), GainScale(base, ratio)
        return MultirateCodec(
            MultirateFormat.of(rates[0]), law, gains, **given, tables=tables, searches=searches, stretch=tuple(stretch)
        )
    except KeyError as error:
        raise DataError(f"multirate: {error.args[0]!r} is missing", file=file) from None
    except OptionError as error:
        raise DataError(f"multirate: {error}", file=file) from None
    except DataError as error:
        raise (error if error.file else DataError(error.message, file=file)) from None


def _is_number(value: object) -> bool:
    """Whether JSON gave a number that float32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER
