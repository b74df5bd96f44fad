"""A codec: rotation, codebook and block format as one object with two verbs, encode and decode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codebooks import AnyCodebook, codebook_from_json
from turbocode.codecs.report import EncodeReport
from turbocode.codecs.spec import GAIN_COUNTS, CodecSpec
from turbocode.errors import DataError, OptionError
from turbocode.formats import BlockFormat, block_format
from turbocode.kernels.fwht import Rotation, rotation_for
from turbocode.kernels.scalar import NORM_MODES, NormMode
from turbocode.kernels.trellis import VITERBI, Search, parse_search

if TYPE_CHECKING:
    from turbocode.kernels.group import EncodedGroups

DESCRIPTION_VERSION = 1


@dataclass(frozen=True, eq=False)
class Codec:
    """How vectors of head_dim values become blocks.

    name : the codec's public name
    head_dim : values in one key or value vector
    block_format : bytes of a block; its groups divide head_dim
    rotation : of one group
    norm_mode : what the stored norm is (formats with a codebook)
    codebooks : none for formats without one; one for all heads, or one per KV head
    search, n_gains : how the path of a trellis is looked for, and at how many scales of a group; readers need neither
    """

    name: str
    head_dim: int
    block_format: BlockFormat
    rotation: Rotation
    norm_mode: str
    codebooks: tuple[AnyCodebook, ...]
    search: Search = VITERBI
    n_gains: int = 1

    def __post_init__(self) -> None:
        if self.norm_mode not in NORM_MODES:
            raise OptionError(f"unknown norm mode {self.norm_mode!r}; allowed: {', '.join(NORM_MODES)}")
        if self.block_format.has_codebook != bool(self.codebooks):
            raise OptionError(f"{self.name}: {len(self.codebooks)} codebooks given for format {self.block_format.name}")
        for codebook in self.codebooks:
            self._check_trellis(codebook)
            if codebook.bits != self.block_format.bits:
                raise OptionError(
                    f"codebook {codebook.name} has {codebook.bits} bits; {self.name} needs {self.block_format.bits}",
                    hint=f"train one with: turbocode train-codebook --bits {self.block_format.bits}",
                )

    def _check_trellis(self, codebook: AnyCodebook) -> None:
        stored, wanted = getattr(codebook, "states_log2", 0), self.block_format.states_log2
        if stored == wanted:
            return
        kinds = [f"of a trellis of 2**{n} states" if n else "scalar" for n in (stored, wanted)]
        trellis = f"--trellis --states-log2 {wanted} " if wanted else ""
        raise OptionError(
            f"codebook {codebook.name} is {kinds[0]}; {self.name} needs one that is {kinds[1]}",
            hint=f"train one with: turbocode train-codebook {trellis}--bits {self.block_format.bits}",
        )

    @property
    def bytes_per_vector(self) -> int:
        return self.block_format.bytes_per_vector(self.head_dim)

    @property
    def bits_per_value(self) -> float:
        """Stored bits per value, everything counted."""
        return 8 * self.bytes_per_vector / self.head_dim

    @property
    def constant_bits(self) -> float:
        """Bits per value of what is stored once for a layer: none, codebooks come with the software."""
        return 0.0

    @property
    def n_heads(self) -> int:
        """KV heads that have a codebook of their own, 1 where all share one."""
        return max(1, len(self.codebooks))

    def for_head(self, head: int) -> Codec:
        """This codec with the codebook of one KV head."""
        return replace(self, codebooks=(self.codebooks[head],)) if len(self.codebooks) > 1 else self

    def tables(self, head: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(centroids, boundaries) of one KV head in float32, scaled for unit vectors of one group; zeros if none.

        A trellis has the values of its states as centroids, and no boundaries.
        """
        if not self.codebooks:
            return np.zeros(1, np.float32), np.zeros(0, np.float32)
        return self.codebooks[head if len(self.codebooks) > 1 else 0].for_group(self.block_format.group_size)

    def encode(self, values: NDArray[Any], head: int = 0) -> tuple[NDArray[np.uint8], EncodeReport]:
        """(blocks, report): uint8 (..., bytes_per_vector) from vectors (..., head_dim) of one KV head.

        float16 and float32 are taken as they are, other real dtypes as float32. A NaN or infinity is a DataError; zero
        vectors decode to exactly zero; norms under 2**-24 are stored as zero; what would pass 65504 is cut and counted.
        """
        values = np.asarray(values)
        if values.ndim == 0 or values.shape[-1] != self.head_dim:
            raise OptionError(
                f"{self.name} encodes vectors of {self.head_dim} values; the array has shape {values.shape}"
            )
        dtype = values.dtype if values.dtype in (np.float16, np.float32) else np.float32
        with np.errstate(over="ignore"):
            groups = np.ascontiguousarray(values, dtype=dtype).reshape(-1, self.block_format.group_size)
        encoded = self._encode_groups(groups, head)
        groups_per_vector = self.head_dim // self.block_format.group_size
        report, bad = EncodeReport.from_moments(encoded.moments, encoded.flags, groups_per_vector)
        if bad >= 0:
            where = tuple(int(i) for i in np.unravel_index(bad, values.shape[:-1]))
            raise DataError(f"vector {where} holds a NaN or an infinity; finite values are needed")
        return encoded.blocks.reshape(*values.shape[:-1], self.bytes_per_vector), report

    def _encode_groups(self, groups: NDArray[Any], head: int) -> EncodedGroups:
        centroids, boundaries = self.tables(head)
        mode = NormMode(NORM_MODES[self.norm_mode])
        if self.block_format.is_trellis:
            from turbocode.kernels.trellis import cpu as trellis

            return trellis.encode(groups, self.block_format, self.rotation, centroids, mode, self.search, self.n_gains)
        from turbocode.kernels.scalar import cpu as scalar

        return scalar.encode(groups, self.block_format, self.rotation, centroids, boundaries, mode)

    def decode(self, blocks: NDArray[np.uint8], head: int = 0, *, unrotate: bool = True) -> NDArray[np.float32]:
        """Vectors float32 (..., head_dim) from blocks uint8 (..., bytes_per_vector) of one KV head.

        unrotate=False leaves them in the rotated basis, where attention reads them.
        """
        from turbocode.kernels.scalar import cpu

        blocks = np.ascontiguousarray(blocks)
        if blocks.dtype != np.uint8 or blocks.ndim == 0 or blocks.shape[-1] != self.bytes_per_vector:
            raise OptionError(
                f"{self.name} decodes uint8 arrays of {self.bytes_per_vector} bytes a vector; "
                f"given is {blocks.dtype} of shape {blocks.shape}"
            )
        rotation = self.rotation if unrotate else rotation_for(self.block_format.group_size, "none")
        groups = blocks.reshape(-1, self.block_format.bytes_per_group)
        values = cpu.decode(groups, self.block_format, rotation, self.tables(head)[0])
        return values.reshape(*blocks.shape[:-1], self.head_dim)

    def rotate(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        """Queries float32 (..., head_dim) in the basis of the blocks, that of decode(..., unrotate=False)."""
        from turbocode.kernels.fwht import cpu

        groups = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1, self.block_format.group_size)
        return cpu.rotate(groups, self.rotation).reshape(np.shape(vectors))

    def unrotate(self, vectors: NDArray[Any], head: int = 0) -> NDArray[np.float32]:
        """Attention outputs float32 (..., head_dim) back in the model's basis; the inverse of `rotate`."""
        from turbocode.kernels.fwht import cpu

        groups = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1, self.block_format.group_size)
        return cpu.unrotate(groups, self.rotation).reshape(np.shape(vectors))

    def logit_offset(self, vectors: NDArray[Any], head: int = 0) -> None:
        """Logits over the blocks lack nothing."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Nothing: the description holds all of it."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The codec as a JSON object, codebooks included, that `codec_from_description` reads back without loss."""
        return {
            "codec": self.name,
            "version": DESCRIPTION_VERSION,
            "head_dim": self.head_dim,
            "format": self.block_format.describe(),
            "rotation": self.rotation.kind,
            "norm_mode": self.norm_mode,
            **({"search": str(self.search), "gains": self.n_gains} if self.block_format.is_trellis else {}),
            "codebooks": [codebook.to_json() for codebook in self.codebooks],
        }


def codec_from_description(description: Mapping[str, Any], *, file: str | None = None) -> Codec:
    """The codec that `Codec.describe` wrote. Raises DataError naming the entry that is missing or disagrees."""
    if not isinstance(description, Mapping):
        raise DataError("codec description: must be an object", file=file)
    try:
        version = description["version"]
        if version != DESCRIPTION_VERSION:
            raise DataError(
                f"codec description version {version!r} is unknown; known is {DESCRIPTION_VERSION}", file=file
            )
        stored = description["format"]
        head_dim = description["head_dim"]
        if type(head_dim) is not int or not isinstance(stored, dict) or not isinstance(description["codebooks"], list):
            raise DataError("codec description: head_dim, format or codebooks has the wrong type", file=file)
        layout = block_format(str(stored["name"]), head_dim)
        if stored != layout.describe():
            raise DataError(
                f"codec description: format {layout.name} is not laid out as this turbocode knows it", file=file
            )
        name = str(description["codec"])
        if CodecSpec(name).format_name != layout.name:
            raise DataError(f"codec description: codec {name} does not store format {layout.name}", file=file)
        return Codec(
            name,
            head_dim,
            layout,
            rotation_for(layout.group_size, str(description["rotation"])),
            str(description["norm_mode"]),
            tuple(codebook_from_json(codebook, file=file) for codebook in description["codebooks"]),
            parse_search(str(description["search"])) if layout.is_trellis else VITERBI,
            _gain_count(description["gains"]) if layout.is_trellis else 1,
        )
    except KeyError as error:
        raise DataError(f"codec description: key {error.args[0]!r} is missing", file=file) from None
    except OptionError as error:
        raise DataError(f"codec description: {error}", file=file) from None


def _gain_count(value: object) -> int:
    if type(value) is not int or not 1 <= value <= len(GAIN_COUNTS):
        raise OptionError(f"gains {value!r} is not one of {', '.join(GAIN_COUNTS)}")
    return value
