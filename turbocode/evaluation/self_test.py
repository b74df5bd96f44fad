"""A self-test of about a second: every format codes Gaussian groups as well as theory, or a measurement, says."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from turbocode.codecs import STANDARD_CODECS, make_codec
from turbocode.kernels.scalar import reference as scalar
from turbocode.kernels.trellis import reference as trellis

HEAD_DIM = 128
N_VECTORS = 256
SEED = 1
# NMSE on N(0,1): Max 1960's optimal quantizers with the stored norm; ggml's formats and trellises as measured on 65,536
# groups (docs/benchmarks/rate-distortion.md); 10 % for the sample.
EXPECTED_NMSE = {
    "turbo2": 0.1175,
    "turbo3": 0.0345,
    "turbo4": 0.0095,
    "turbo2_0": 0.1175,
    "turbo3_0": 0.0345,
    "turbo4_0": 0.0095,
    "q8_0": 2.9e-5,
    "q4_0": 0.0074,
    "q8_0_rot": 2.9e-5,
    "q4_0_rot": 0.0074,
    "f16": 5e-8,
    "turbo1_tcq": 0.262,
    "turbo2_tcq": 0.0714,
    "turbo3_tcq": 0.0186,
    "trellis1": 0.278,
    "trellis2": 0.0748,
    "trellis3": 0.0195,
    "trellis4": 0.00496,
}
NMSE_SLACK = 1.1
DECODE_TOLERANCE = 1e-5  # largest difference to the float64 reference, for values of about 1


def run_self_test() -> dict[str, Any]:
    """A JSON object: `ok`, `seconds`, `threading_layer` and a row for each codec with its NMSE and what is wrong."""
    start = time.perf_counter()
    vectors = np.random.default_rng(SEED).standard_normal((N_VECTORS, HEAD_DIM), dtype=np.float32)
    codecs = [_test_codec(name, vectors) for name in STANDARD_CODECS]
    return {
        "ok": all(row["problem"] is None for row in codecs),
        "seconds": time.perf_counter() - start,
        "threading_layer": _threading_layer(),
        "codecs": codecs,
    }


def _test_codec(name: str, vectors: np.ndarray[Any, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"codec": name, "bits_per_value": None, "nmse": None, "problem": None}
    try:
        codec = make_codec(name, HEAD_DIM)
        blocks, report = codec.encode(vectors)
        decoded = codec.decode(blocks)
    except Exception as failure:  # a broken compiler or library shows itself here, whatever it raises
        return {**row, "problem": f"{type(failure).__name__}: {failure}"}
    layout = codec.block_format
    groups = blocks.reshape(-1, layout.bytes_per_group).view(layout.dtype)
    if layout.is_trellis:
        exact = trellis.decode(groups[:, 0], layout, codec.rotation, codec.tables()[0]).reshape(vectors.shape)
    else:
        exact = scalar.decode(groups, layout, codec.rotation, codec.tables()[0]).reshape(vectors.shape)
    error = decoded.astype(np.float64) - vectors
    nmse = float((error * error).sum() / (vectors.astype(np.float64) ** 2).sum())
    row.update(bits_per_value=codec.bits_per_value, nmse=nmse)
    if not nmse <= NMSE_SLACK * EXPECTED_NMSE[name]:
        row["problem"] = f"NMSE {nmse:.3g} is above {NMSE_SLACK * EXPECTED_NMSE[name]:.3g}"
    elif not np.abs(decoded - exact).max() <= DECODE_TOLERANCE:
        row["problem"] = "decoded values differ from the reference"
    elif not abs(report.nmse - nmse) <= 1e-3 * nmse + 1e-9:
        row["problem"] = f"reported NMSE {report.nmse:.3g} is not the measured {nmse:.3g}"
    return row


def _threading_layer() -> str | None:
    """The name Numba gives to its pool of threads, None before any was used."""
    try:
        name: str = sys.modules["numba"].threading_layer()
    except (KeyError, ValueError):
        return None
    return name
