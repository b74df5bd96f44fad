"""Small files for the tests of turbocode.dumps: sound ones through our writer, odd ones through plain h5py."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HDF5_PLUGIN_PRELOAD"] = "::"

import h5py
import numpy as np

from turbocode.dumps import DumpMetadata, create_dump, create_quantized

N_SEQS, N_TOKENS, N_ROWS = 2, 12, 3


def metadata(**changes: Any) -> DumpMetadata:
    fields: dict[str, Any] = {
        "logical_dtype": "float16",
        "n_layers": 2,
        "n_query_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
        "attention_scale": 8**-0.5,
        "rope_theta": 10000.0,
        "model": "a model",
    }
    return DumpMetadata(**{**fields, **changes})


def arrays(about: DumpMetadata, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Per layer: keys, values, queries as float32 (n_seqs, heads, n, head_dim), and query_positions."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(about.n_layers):
        layer: dict[str, np.ndarray] = {
            kind: rng.standard_normal((N_SEQS, heads, length, about.head_dim)).astype(np.float16).astype(np.float32)
            for kind, heads, length in (
                ("keys", about.n_kv_heads, N_TOKENS),
                ("values", about.n_kv_heads, N_TOKENS),
                ("queries", about.n_query_heads, N_ROWS),
            )
        }
        layer["query_positions"] = np.sort(rng.integers(0, N_TOKENS, (N_SEQS, N_ROWS)), axis=1)
        layers.append(layer)
    return layers


TOKENS = np.arange(N_SEQS * N_TOKENS, dtype=np.int32).reshape(N_SEQS, N_TOKENS)


def write_dump(path: Path, about: DumpMetadata, layers: list[dict[str, np.ndarray]], step: int = 5) -> None:
    """Write with turbocode's writer, `step` tokens at a time."""
    with create_dump(path, about) as writer:
        writer.write_tokens(TOKENS)
        for number, data in enumerate(layers):
            layer = writer.add_layer(
                f"{number:03d}",
                layer_index=2 * number,
                n_seqs=N_SEQS,
                n_tokens=N_TOKENS,
                n_rows=N_ROWS,
                window=number,
                softcap=0.5 * number,
            )
            for kind in ("keys", "values", "queries"):
                for seq, head in np.ndindex(data[kind].shape[:2]):
                    for start in range(0, data[kind].shape[2], step):
                        layer.write(kind, seq, head, start, data[kind][seq, head, start : start + step])
            layer.write_positions(data["query_positions"])


def write_plain_dump(
    path: Path,
    change: Callable[[h5py.File], None] | None = None,
    libver: Any = ("v110", "v110"),
    **storage: Any,
) -> None:
    """Write a sound one-layer dump with plain h5py, then let `change` spoil it."""
    about = metadata(n_layers=1)
    data = arrays(about)[0]
    if not storage:
        storage = {"chunks": (1, 1, 6, 8), "fletcher32": True}
    with h5py.File(path, "w", libver=libver) as file:
        file.attrs.update(
            {
                "format": "turbocode-kv-dump",
                "format_version": 1,
                "logical_dtype": "float16",
                "n_layers": 1,
                "n_query_heads": 4,
                "n_kv_heads": 2,
                "head_dim": 8,
                "attention_scale": 8**-0.5,
                "rope_theta": 0.0,
                "complete": 1,
            }
        )
        layer = file.create_group("layers/000")
        layer.attrs.update({"layer_index": 0, "window": 0, "softcap": 0.0})
        for kind in ("keys", "values"):
            layer.create_dataset(kind, data=data[kind].astype("<f2"), **storage)
        layer.create_dataset(
            "queries",
            data=data["queries"].astype("<f2"),
            **{**storage, "chunks": None} if storage.get("chunks") is None else {**storage, "chunks": (1, 1, 3, 8)},
        )
        layer["query_positions"] = data["query_positions"].astype("<i8")
        file["tokens"] = TOKENS
        if change is not None:
            change(file)


def write_quantized(
    path: Path, *, force: bool = False, seed: int = 1, n_tokens: int = N_TOKENS
) -> dict[str, np.ndarray]:
    """Write a small quantized file; returns its blocks by `layer/side`."""
    about = metadata()
    rng = np.random.default_rng(seed)
    written = {}
    with create_quantized(
        path, about, recipe={"k": "turbo3"}, provenance={"seed": seed}, dump_sha256="ab" * 32, force=force
    ) as writer:
        for number in range(about.n_layers):
            layer = writer.add_layer(f"{number:03d}", layer_index=number, n_seqs=N_SEQS, n_tokens=n_tokens, window=4)
            for side in ("keys", "values"):
                blocks = rng.integers(0, 256, (N_SEQS, about.n_kv_heads, n_tokens, 10), dtype=np.uint8)
                out = layer.add_side(side, codec={"format": "turbo3", "side": side}, bytes_per_vector=10)
                for seq, head in np.ndindex(blocks.shape[:2]):
                    out.write(seq, head, 0, blocks[seq, head])
                out.finish({"nmse": 0.03, "layer": number})
                written[f"{number:03d}/{side}"] = blocks
    return written
