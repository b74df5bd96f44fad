"""verify finds what was changed: blocks, digests, codecs, figures, the dump; it does not stop at the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbocode.codecs import EncodeReport, make_codec
from turbocode.dumps import SynthesisSpec, create_quantized, open_dump, synthesize
from turbocode.dumps.hdf5 import h5py
from turbocode.errors import DataError, OptionError, QualityError
from turbocode.evaluation.verification import verification_error, verify_file

SPEC = SynthesisSpec(n_layers=2, n_seqs=2, n_tokens=20, n_kv_heads=2, head_dim=64, n_rows=4)
CODECS = {"keys": "turbo3", "values": "q8_0_rot"}


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    synthesize(tmp_path / "dump.h5", SPEC)
    return tmp_path / "dump.h5"


def quantized(
    dump_path: Path,
    change_report: Callable[[dict[str, Any]], dict[str, Any]] = lambda report: report,
    change_codec: Callable[[dict[str, Any]], dict[str, Any]] = lambda codec: codec,
    change_blocks: Callable[[np.ndarray], np.ndarray] = lambda blocks: blocks,
) -> Path:
    """The dump encoded, with the keys of layer 001 changed as told."""
    path = dump_path.with_name("quantized.h5")
    with (
        open_dump(dump_path) as dump,
        create_quantized(
            path, dump.metadata, recipe={}, provenance={}, dump_sha256=dump.content_sha256(), force=True
        ) as writer,
    ):
        for source in dump.layers:
            layer = writer.add_layer(
                source.name, layer_index=0, n_seqs=source.n_seqs, n_tokens=source.n_tokens, window=0
            )
            for side, name in CODECS.items():
                is_changed = (source.name, side) == ("001", "keys")
                codec, total = make_codec(name, SPEC.head_dim), EncodeReport()
                described = change_codec(codec.describe()) if is_changed else codec.describe()
                out = layer.add_side(side, codec=described, bytes_per_vector=codec.bytes_per_vector)
                for seq, head in np.ndindex(SPEC.n_seqs, SPEC.n_kv_heads):
                    blocks, report = codec.encode(source.read(side, seq, head), head)
                    total.add(report)
                    out.write(seq, head, 0, change_blocks(blocks) if is_changed else blocks)
                out.finish(change_report(total.to_json()) if is_changed else total.to_json())
    return path


def test_a_sound_dump(dump: Path) -> None:
    result = verify_file(dump)
    assert result["ok"] and result["kind"] == "dump" and verification_error(result) is None
    with open_dump(dump) as opened:
        assert result["checks"]["content_sha256"] == opened.content_sha256()
    assert result["checks"]["vectors_read"] == 2 * 2 * (2 * 2 * 20 + 8 * 4)


def test_a_sound_quantized_file(dump: Path) -> None:
    path = quantized(dump)
    alone, compared = verify_file(path), verify_file(path, against=dump)
    assert alone["ok"] and compared["ok"]
    assert alone["checks"] == {"sha256_compared": 4, "vectors_decoded": 2 * 2 * 2 * 2 * 20, "figures_compared": 0}
    assert compared["checks"]["figures_compared"] == 4


def test_a_dump_with_a_value_that_is_not_finite(dump: Path) -> None:
    with h5py.File(dump, "r+") as file:
        file["layers/000/values"][1, 0, 3, 2] = np.nan
        file["layers/001/queries"][0, 5, 1, 0] = np.inf
    result = verify_file(dump)
    assert [row["object"] for row in result["findings"]] == ["/layers/000/values", "/layers/001/queries"]
    assert all("not finite" in row["problem"] for row in result["findings"])
    assert isinstance(verification_error(result), DataError)


def test_damaged_bytes_are_found_and_the_rest_is_checked(dump: Path) -> None:
    with h5py.File(dump, "r") as file:
        chunk = file["layers/000/keys"].id.get_chunk_info(0)
    data = bytearray(dump.read_bytes())
    data[chunk.byte_offset + 11] ^= 1
    dump.write_bytes(data)
    result = verify_file(dump)
    assert [row["object"] for row in result["findings"]] == ["/layers/000/keys"]
    assert result["damaged"] == 1 and isinstance(verification_error(result), DataError)
    assert result["checks"]["content_sha256"] is None


def test_blocks_that_were_exchanged(dump: Path) -> None:
    path = quantized(dump)
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = next(name for name in names if name.startswith("layers/001/keys"))
        blocks = file[name][...]
        file[name][...] = blocks[:, :, ::-1]
    result = verify_file(path)
    assert [row["problem"] for row in result["findings"]] == ["sha256 of the blocks differs from the stored one"]
    error = verification_error(result)
    assert isinstance(error, QualityError) and error.exit_code == 3 and error.object == "/layers/001/keys"
    assert len(verify_file(path, against=dump)["findings"]) == 2


def test_a_stored_figure_that_cannot_be_repeated(dump: Path) -> None:
    path = quantized(dump, change_report=lambda report: {**report, "nmse": report["nmse"] * 0.99})
    assert verify_file(path)["ok"]
    result = verify_file(path, against=dump)
    assert len(result["findings"]) == 1 and "NMSE" in result["findings"][0]["problem"]


def test_blocks_that_decode_to_infinity(dump: Path) -> None:
    def infinite(blocks: np.ndarray) -> np.ndarray:
        blocks = blocks.copy()
        blocks[0, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
        return blocks

    result = verify_file(quantized(dump, change_blocks=infinite))
    assert len(result["findings"]) == 1 and "not finite" in result["findings"][0]["problem"]


def test_a_codec_that_does_not_fit_its_blocks(dump: Path) -> None:
    other = make_codec("turbo4", SPEC.head_dim).describe()
    result = verify_file(quantized(dump, change_codec=lambda codec: other))
    assert len(result["findings"]) == 1 and "do not fit" in result["findings"][0]["problem"]


def test_a_codec_that_nobody_knows(dump: Path) -> None:
    result = verify_file(quantized(dump, change_codec=lambda codec: {**codec, "version": 99}))
    assert len(result["findings"]) == 1 and result["findings"][0]["object"] == "/layers/001/keys"
    assert isinstance(verification_error(result), DataError)


def test_another_dump(dump: Path) -> None:
    path = quantized(dump)
    synthesize(dump.with_name("other.h5"), SynthesisSpec(**{**SPEC.__dict__, "seed": 1}))
    result = verify_file(path, against=dump.with_name("other.h5"))
    assert len(result["findings"]) == 1 and "another dump" in result["findings"][0]["problem"]


def test_a_dump_is_not_compared(dump: Path) -> None:
    with pytest.raises(OptionError, match="--against"):
        verify_file(dump, against=dump)
