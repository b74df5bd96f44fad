"""Damaged files end in a TurbocodeError or in unchanged content: never in a signal, a hang or other data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps.samples import arrays, metadata, write_dump, write_plain_dump, write_quantized

from turbocode.dumps import create_quantized, file_kind, open_dump, open_quantized
from turbocode.errors import DataError

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("damage_worker.py")


def damage(original: Path, kind: str, seed: int, count: int) -> dict[str, Any]:
    work = original.with_name("work")
    work.mkdir()
    ended = subprocess.run(
        [sys.executable, str(WORKER), str(original), str(work), kind, str(seed), str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, (ended.returncode, sorted(work.iterdir()), ended.stderr[-2000:])
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


def test_one_flipped_bit_in_every_byte_of_a_quantized_file(tmp_path: Path) -> None:
    path = tmp_path / "q.h5"
    about = metadata(n_layers=1, n_query_heads=1, n_kv_heads=1)
    with create_quantized(path, about, recipe={}, provenance={}, dump_sha256="0" * 64) as writer:
        layer = writer.add_layer("000", layer_index=0, n_seqs=1, n_tokens=4)
        for name in ("keys", "values"):
            side = layer.add_side(name, codec={"a": 1}, bytes_per_vector=34)
            side.write(0, 0, 0, np.arange(136, dtype=np.uint8).reshape(4, 34))
            side.finish({"nmse": 0.5})
    result = damage(path, "flips", 3, path.stat().st_size)
    assert result["bad"] == [] and result["total"] == path.stat().st_size
    # Bytes that may change unnoticed are padding; more of them would mean that the comparison sees nothing.
    assert result["ends"]["DataError"] > 0.8 * result["total"]


@pytest.mark.parametrize("kind", ["quantized", "dump"])
def test_mutations_of_our_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "original.h5"
    if kind == "quantized":
        write_quantized(path)
    else:
        write_dump(path, metadata(), arrays(metadata()))
    result = damage(path, "mutations", 11, 400)
    assert result["bad"] == [] and result["total"] == 400


def test_mutations_of_a_file_without_metadata_checksums(tmp_path: Path) -> None:
    path = tmp_path / "original.h5"
    write_plain_dump(path, libver=None)
    result = damage(path, "mutations", 5, 250)
    # Nothing in such a file can tell that a value is another; the reader calls it unverified.
    assert [line for line in result["bad"] if "other content" not in line] == []
    assert result["total"] == 250


def test_heap_that_sends_hdf5_round_in_circles(tmp_path: Path) -> None:
    path = tmp_path / "dump.h5"
    write_plain_dump(path)
    data = bytearray(path.read_bytes())
    heap = data.find(b"GCOL")
    assert heap > 0
    data[heap + 16 : heap + 4096] = bytes(4080)
    path.write_bytes(data)
    with pytest.raises(DataError, match="heap of its strings is damaged"):
        open_dump(path)


@pytest.mark.parametrize("kind", ["quantized", "dump"])
def test_truncation(tmp_path: Path, kind: str) -> None:
    original = tmp_path / "original.h5"
    if kind == "quantized":
        write_quantized(original)
    else:
        write_dump(original, metadata(), arrays(metadata()))
    data = original.read_bytes()
    cuts = {*range(0, 256), *range(256, len(data), 61), len(data) - 1}
    for cut in cuts:
        path = tmp_path / f"{cut}.h5"
        path.write_bytes(data[:cut])
        with pytest.raises(DataError):
            file_kind(path)
        path.unlink()


def test_damaged_block_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "q.h5"
    blocks = write_quantized(path)
    data = bytearray(path.read_bytes())
    data[data.find(blocks["001/values"][1, 0, :3].tobytes())] ^= 4
    path.write_bytes(data)
    with open_quantized(path) as file:
        side = file.layers[1].side("values")
        assert np.array_equal(side.read(0, 0), blocks["001/values"][0, 0])
        with pytest.raises(DataError, match="/layers/001/values/blocks: checksum does not match"):
            side.read(1, 0)
