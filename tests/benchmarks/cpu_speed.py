"""The CPU speeds that the project promises, each beside its baseline, in one run.

    python tests/benchmarks/cpu_speed.py [-o docs/benchmarks/cpu.json]

Baselines: PyPI packages that are installed (turboquant-pro, turboquant-llm; where none is, the run says so), NumPy
float32 attention on the unpacked cache, and reading and checksumming a dump.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from turbocode.codecs import make_codec
from turbocode.conversion import quantize_dump
from turbocode.dumps import open_dump
from turbocode.dumps.synthesize import SynthesisSpec, synthesize
from turbocode.evaluation.attention_shapes import AttentionShape
from turbocode.evaluation.benchmark import benchmark_attention, timed
from turbocode.evaluation.environment import memory_limit
from turbocode.evaluation.machine import cpu_model, usable_cores
from turbocode.policies import Recipe

REPEATS = 9
HEAD_DIM = 128
ENCODE_VECTORS = 1 << 17
TRELLIS_VECTORS = 1 << 14
SLOWEST = ("trellis2_l12", "trellis3_l12")
PEER_VECTORS = 20_000
ATTENDED = ("turbo2", "turbo3", "turbo4", "trellis2", "trellis3", "q4_0_rot", "q8_0", "f16")
DATA = Path(__file__).parents[2] / "data" / "tiny-pride.h5"


def encode_rates() -> dict[str, float]:
    """Vectors per second of Codec.encode, float16 in, for the codecs with a codebook and the ggml formats."""
    values = np.random.default_rng(0).standard_normal((ENCODE_VECTORS, HEAD_DIM), dtype=np.float32).astype(np.float16)
    rates = {}
    for name in ("turbo2", "turbo3", "turbo4", "q4_0_rot", "q8_0"):
        codec = make_codec(name, HEAD_DIM)
        rates[name] = ENCODE_VECTORS / timed(lambda codec=codec: codec.encode(values), REPEATS)
    few = values[:TRELLIS_VECTORS]
    for name in ("turbo1_tcq", "turbo2_tcq", "turbo3_tcq", "trellis1", "trellis2", "trellis3", "trellis4", *SLOWEST):
        codec = make_codec(name, HEAD_DIM)
        rates[name] = TRELLIS_VECTORS / timed(lambda codec=codec: codec.encode(few), REPEATS)
    return rates


def peer_rates() -> dict[str, float]:
    """Vectors per second of 3-bit encoding by the PyPI packages that are installed, each by its own batched call."""
    values = np.random.default_rng(0).standard_normal((PEER_VECTORS, HEAD_DIM), dtype=np.float32)
    makers: dict[str, Callable[[Any], Callable[[], Any]]] = {
        "turboquant_pro": lambda module: _pro(module, values),
        "turboquant_llm": lambda module: _llm(module, values),
    }
    rates = {}
    for name, maker in makers.items():
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        rates[name] = PEER_VECTORS / timed(maker(module), 3)
    return rates


def _pro(module: Any, values: Any) -> Callable[[], Any]:
    quantizer = module.TurboQuantKV(head_dim=HEAD_DIM, n_heads=1, bits=3, use_gpu=False)
    tensor = values[None, None]
    return lambda: quantizer.compress(tensor, packed=True)


def _llm(module: Any, values: Any) -> Callable[[], Any]:
    compressor = module.TurboQuantCompressor(HEAD_DIM, module.TurboQuantConfig(bits_main=3, qjl_projection_dim=0))
    return lambda: compressor.compress(values)


def quantize_ratio(folder: Path) -> dict[str, float]:
    """Seconds to quantize a 1 GiB synthetic dump to turbo3, and to read it and take its SHA-256."""
    path, output = folder / "dump.h5", folder / "quantized.h5"
    spec = SynthesisSpec(
        n_layers=2, n_seqs=1, n_tokens=131072, n_query_heads=8, n_kv_heads=8, head_dim=HEAD_DIM, n_rows=0
    )
    synthesize(path, spec)
    with open_dump(path) as dump:

        def read() -> None:
            digest = hashlib.sha256()
            for layer in dump.layers:
                for side in ("keys", "values"):
                    for head in range(dump.metadata.n_kv_heads):
                        digest.update(layer.read(side, 0, head).tobytes())

        def quantize() -> None:
            quantize_dump(dump, output, Recipe(k="turbo3", v="turbo3"), max_memory=1 << 30, force=True)

        facts = {"bytes": path.stat().st_size, "read_and_sha256_s": timed(read, 3), "quantize_s": timed(quantize, 3)}
    return {**facts, "ratio": facts["quantize_s"] / facts["read_and_sha256_s"]}


def command_seconds(*words: str) -> float:
    """Median wall seconds of a turbocode command in a new process."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "turbocode_cli", *words], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {
            "machine": {"cpu": cpu_model(), "cores": usable_cores()},
            "encode_vectors_per_s": encode_rates(),
            "peer_encode_vectors_per_s": peer_rates(),
            "attention": benchmark_attention(
                AttentionShape(),
                [(name, name) for name in ATTENDED],
                repeats=REPEATS,
                max_memory=memory_limit() // 2,
            )["codecs"],
            "quantize": quantize_ratio(Path(folder)),
            "command_s": {"--help": command_seconds("--help"), "inspect": command_seconds("inspect", str(DATA))},
        }
    _show(result)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def _show(result: dict[str, Any]) -> None:
    print(f"{result['machine']['cpu']}, {result['machine']['cores']} cores")
    for name, rate in result["encode_vectors_per_s"].items():
        print(f"encode {name:24} {rate / 1e6:8.3f} M vectors/s")
    peers = result["peer_encode_vectors_per_s"]
    for name, rate in peers.items():
        times = [result["encode_vectors_per_s"][codec] / rate for codec in ("turbo3", "trellis3")]
        print(
            f"encode {name:24} {rate / 1e6:8.3f} M vectors/s: turbo3 is {times[0]:.1f}, trellis3 {times[1]:.2f} times "
            "as fast"
        )
    if not peers:
        print("encode: no peer package is installed")
    for row in result["attention"]:
        ours, theirs = row["attention_s"] * 1e3, row["numpy_float32_s"] * 1e3
        print(f"attend {row['k']:24} {ours:8.2f} ms, NumPy float32 {theirs:.2f} ms: {row['ratio']:.2f} times faster")
    facts = result["quantize"]
    print(
        f"quantize {facts['bytes'] / 2**20:.0f} MiB: {facts['quantize_s']:.2f} s, read and SHA-256 "
        f"{facts['read_and_sha256_s']:.2f} s: ratio {facts['ratio']:.2f}"
    )
    for name, seconds in result["command_s"].items():
        print(f"turbocode {name:21} {seconds:8.3f} s")


if __name__ == "__main__":
    main()
