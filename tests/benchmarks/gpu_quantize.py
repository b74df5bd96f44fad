"""What bounds `quantize` of a large dump on a GPU: its time beside that of reading and checksumming alone.

    python tests/benchmarks/gpu_quantize.py --gib 4 --k turbo3 --v turbo3 [--device 0]

Prints one JSON object. The dump is synthetic, written to a temporary folder first; its pages are in the file cache.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click

from turbocode.conversion import quantize_dump
from turbocode.conversion.slabs import slab_tokens, slabs
from turbocode.dumps import SynthesisSpec, open_dump, synthesize
from turbocode.policies import Recipe


def read_all(dump: Any, max_memory: int) -> None:
    """Read every slab once, while a thread takes the checksum, as `quantize_dump` does."""
    thread = threading.Thread(target=dump.content_sha256)
    thread.start()
    for layer in dump.layers:
        size = slab_tokens(dump.metadata.head_dim, layer.chunk_tokens, max_memory)
        for side in ("keys", "values"):
            for seq in range(layer.n_seqs):
                for head in range(dump.metadata.n_kv_heads):
                    for start, stop in slabs(layer.n_tokens, size):
                        layer.read(side, seq, head, start, stop)
    thread.join()


@click.command()
@click.option("--gib", default=4.0)
@click.option("--k", default="turbo3")
@click.option("--v", default="turbo3")
@click.option("--device", default=0)
def main(gib: float, k: str, v: str, device: int) -> None:
    n_layers, heads, head_dim = 8, 8, 128
    tokens = int(gib * 2**30 / (2 * 2 * n_layers * heads * head_dim))
    max_memory = 8 << 30
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.h5"
        begin = time.perf_counter()
        spec = SynthesisSpec(
            n_layers=n_layers, n_tokens=tokens, n_query_heads=heads, n_kv_heads=heads, head_dim=head_dim, n_rows=0
        )
        synthesize(path, spec)
        found: dict[str, Any] = {"gib": path.stat().st_size / 2**30, "synthesize_s": time.perf_counter() - begin}
        for name, where in (("warm", device), ("cuda", device), ("cpu", None)):
            with open_dump(path) as dump:
                begin = time.perf_counter()
                recipe = Recipe(k=k, v=v)
                out = Path(folder) / "out.h5"
                quantize_dump(dump, out, recipe, max_memory=max_memory, device=where, force=True)
                found[f"quantize_{name}_s"] = time.perf_counter() - begin
        with open_dump(path) as dump:
            begin = time.perf_counter()
            read_all(dump, max_memory)
            found["read_and_checksum_s"] = time.perf_counter() - begin
        with open_dump(path) as dump:
            begin = time.perf_counter()
            dump.content_sha256()
            found["checksum_s"] = time.perf_counter() - begin
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
