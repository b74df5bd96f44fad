"""Codecs by name: which format, rotation, codebook and norm mode a name stands for."""

from __future__ import annotations

from collections.abc import Sequence

from turbocode.codebooks import Codebook
from turbocode.codebooks.catalog import load_codebook
from turbocode.codecs.codec import Codec
from turbocode.codecs.spec import ROTATED_SUFFIX, CodecSpec, parse_codec
from turbocode.formats import block_format
from turbocode.kernels.fwht import rotation_for

DEFAULT_NORM_MODE = "l2"
FORK_SUFFIX = "_0"  # of turbo2_0, turbo3_0 and turbo4_0, whose readers hold the Gaussian's centroids


def default_codebook(format_name: str, bits: int, group_size: int) -> str:
    """The shipped codebook that a format uses: the sphere's exact one, but the Gaussian's in the forks' formats."""
    return f"gaussian-{bits}" if format_name.endswith(FORK_SUFFIX) else f"sphere{group_size}-{bits}"


def make_codec(
    spec: str | CodecSpec, head_dim: int, *, codebooks: Sequence[Codebook] | Codebook | None = None
) -> Codec:
    """The codec that `spec` names, for vectors of head_dim values.

    codebooks : one, or one per KV head; by default the shipped one that the spec names or the format's default
    Raises OptionError for unknown names and a head_dim that the format cannot hold.
    """
    if isinstance(spec, str):
        spec = parse_codec(spec)
    layout = block_format(spec.format_name, head_dim)
    rotates = layout.has_codebook or spec.name.endswith(ROTATED_SUFFIX)
    kind = spec.rotation or ("signed" if rotates else "none")
    if isinstance(codebooks, Codebook):
        codebooks = (codebooks,)
    if codebooks is None:
        name = spec.codebook or default_codebook(layout.name, layout.bits, layout.group_size)
        codebooks = (load_codebook(name),) if layout.has_codebook else ()
    rotation = rotation_for(layout.group_size, kind)
    return Codec(spec.name, head_dim, layout, rotation, spec.norm or DEFAULT_NORM_MODE, tuple(codebooks))
