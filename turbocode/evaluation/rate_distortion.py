"""How far codecs stay above the rate-distortion bound of a Gaussian, 4**-bits."""

from __future__ import annotations

import math
from typing import Any

from turbocode.codebooks import AnyCodebook, load_codebook, trellis_codebook_name
from turbocode.formats import FORMAT_NAMES, block_format
from turbocode.training.entropy_coded import entropy_coded_nmse

BITS = (1, 2, 3, 4)


def distance_to_shannon(own: AnyCodebook | None = None) -> list[dict[str, Any]]:
    """Rows {family, bits, nmse, shannon_gap_db}: scalar, entropy-coded scalar, shipped trellises by L, `own`.

    NMSE is at gain 1 on groups of a Gaussian: as trained for scalar codebooks, held out for trellises. The norm and the
    prefix of a block are not counted.
    """
    rows = [_row("scalar", bits, load_codebook(f"gaussian-{bits}").nmse) for bits in BITS]
    rows += [_row("entropy-coded scalar", bits, entropy_coded_nmse(bits)) for bits in BITS]
    shipped = [layout for layout in map(block_format, FORMAT_NAMES) if layout.is_tail_biting]
    for states_log2 in sorted({layout.states_log2 for layout in shipped}):
        for layout in shipped:
            if layout.states_log2 == states_log2:
                name = trellis_codebook_name(layout.bits, states_log2, is_tail_biting=True)
                rows.append(_row(f"trellis, L = {states_log2}", layout.bits, load_codebook(name).nmse))
    if own is not None:
        rows.append(_row("this codebook", own.bits, own.nmse))
    return rows


def _row(family: str, bits: int, nmse: float) -> dict[str, Any]:
    return {"family": family, "bits": bits, "nmse": nmse, "shannon_gap_db": 10.0 * math.log10(nmse * 4.0**bits)}
