"""Codecs by name: which format, rotation, codebook and norm mode a name stands for."""

from __future__ import annotations

from collections.abc import Sequence

from turbocode.codebooks import AnyCodebook, Codebook, TrellisCodebook, trellis_codebook_name
from turbocode.codebooks.catalog import load_codebook
from turbocode.codecs.codec import Codec
from turbocode.codecs.spec import ROTATED_SUFFIX, CodecSpec, parse_codec
from turbocode.errors import OptionError
from turbocode.formats import BlockFormat, block_format
from turbocode.kernels.fwht import rotation_for
from turbocode.kernels.trellis import VITERBI, parse_search

DEFAULT_NORM_MODE = "l2"
TRELLIS_NORM_MODE = "mse"  # l2 costs a trellis 1 to 8 % of squared error, the more the fewer bits
FORK_SUFFIX = "_0"  # of turbo2_0, turbo3_0 and turbo4_0, whose readers hold the Gaussian's centroids


def default_codebook(layout: BlockFormat) -> str:
    """The shipped codebook that a format uses: the sphere's exact one, but the Gaussian's in the forks' formats."""
    if layout.is_trellis:
        return trellis_codebook_name(layout.bits, layout.states_log2, is_tail_biting=layout.is_tail_biting)
    is_fork = layout.name.endswith(FORK_SUFFIX)
    return f"gaussian-{layout.bits}" if is_fork else f"sphere{layout.group_size}-{layout.bits}"


def make_codec(
    spec: str | CodecSpec, head_dim: int, *, codebooks: Sequence[AnyCodebook] | AnyCodebook | None = None
) -> Codec:
    """The codec that `spec` names, for vectors of head_dim values.

    codebooks : one, or one per KV head; by default the shipped one that the spec names or the format's default
    Raises OptionError for unknown names and a head_dim that the format cannot hold.
    """
    if isinstance(spec, str):
        spec = parse_codec(spec)
    if spec.is_calibrated:
        raise OptionError(
            f"{spec.name} is calibrated for the layers of a model: it needs a recipe with a calibration file",
            hint="turbocode tune writes both",
        )
    layout = block_format(spec.format_name, head_dim)
    rotates = layout.has_codebook or spec.name.endswith(ROTATED_SUFFIX)
    kind = spec.rotation or ("signed" if rotates else "none")
    if isinstance(codebooks, Codebook | TrellisCodebook):
        codebooks = (codebooks,)
    if codebooks is None:
        name = spec.codebook or default_codebook(layout)
        codebooks = (load_codebook(name),) if layout.has_codebook else ()
    rotation = rotation_for(layout.group_size, kind)
    norm_mode = spec.norm or (TRELLIS_NORM_MODE if layout.is_trellis else DEFAULT_NORM_MODE)
    search = parse_search(spec.search) if spec.search else VITERBI
    return Codec(spec.name, head_dim, layout, rotation, norm_mode, tuple(codebooks), search, int(spec.gains or 1))
