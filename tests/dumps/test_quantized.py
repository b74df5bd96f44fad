"""Quantized files: round trip, seals, and what the strict reader refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from dumps.samples import N_TOKENS, metadata, write_quantized

from turbocode.dumps import create_quantized, file_kind, open_quantized
from turbocode.errors import DataError, OptionError, OutputError


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "q.h5"
    written = write_quantized(path)
    assert file_kind(path) == "quantized"
    with open_quantized(path, isolate=True) as file:
        assert (file.metadata, file.recipe, file.provenance) == (metadata(), {"k": "turbo3"}, {"seed": 1})
        assert file.dump_sha256 == "ab" * 32 and file.n_bytes == path.stat().st_size
        assert [layer.name for layer in file.layers] == ["000", "001"]
        for number, layer in enumerate(file.layers):
            assert (layer.layer_index, layer.window, layer.softcap, layer.n_tokens) == (number, 4, 0.0, N_TOKENS)
            for name in ("keys", "values"):
                side, blocks = layer.side(name), written[f"{layer.name}/{name}"]
                assert side.codec == {"format": "turbo3", "side": name}
                assert side.report == {"nmse": 0.03, "layer": number}
                assert side.bytes_per_vector == 10
                for seq, head in np.ndindex(blocks.shape[:2]):
                    assert np.array_equal(side.read(seq, head, 2, 9), blocks[seq, head, 2:9])
                read: list[int] = []
                digest = hashlib.sha256(blocks.tobytes()).hexdigest()
                assert side.stored_sha256 == side.compute_sha256(read.append) == digest
                assert sum(read) == blocks.nbytes
            with pytest.raises(OptionError):
                layer.side("queries")
            with pytest.raises(OptionError):
                layer.side("keys").read(0, 0, 0, N_TOKENS + 1)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    write_quantized(tmp_path / "a.h5")
    write_quantized(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_large_json_is_sealed(tmp_path: Path) -> None:
    path = tmp_path / "q.h5"
    text = "0123456789" * 9000
    with create_quantized(
        path, metadata(n_layers=1), recipe={"note": text}, provenance={}, dump_sha256="0" * 64
    ) as writer:
        layer = writer.add_layer("000", layer_index=0, n_seqs=1, n_tokens=1)
        for name in ("keys", "values"):
            side = layer.add_side(name, codec={}, bytes_per_vector=1)
            for head in range(2):
                side.write(0, head, 0, np.zeros((1, 1), dtype=np.uint8))
            side.finish({})
    with open_quantized(path) as file:
        assert file.recipe == {"note": text}
    data = bytearray(path.read_bytes())
    data[data.find(b"01234567890123456789") + 5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="'recipe' does not match its checksum"):
        open_quantized(path)


def test_unfinished_side_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="/layers/000/keys was not finished"),
        create_quantized(
            tmp_path / "q.h5", metadata(n_layers=1), recipe={}, provenance={}, dump_sha256="0" * 64
        ) as writer,
    ):
        layer = writer.add_layer("000", layer_index=0, n_seqs=1, n_tokens=4)
        with pytest.raises(OptionError, match="JSON"):
            layer.add_side("values", codec={"bad": float("nan")}, bytes_per_vector=2)
        side = layer.add_side("keys", codec={}, bytes_per_vector=2)
        with pytest.raises(OptionError, match="uint8"):
            side.write(0, 0, 0, np.zeros((4, 2)))
        with pytest.raises(OptionError):
            layer.add_side("keys", codec={}, bytes_per_vector=2)
    assert list(tmp_path.iterdir()) == []


def _set(path: str, name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file[path].attrs.__setitem__(name, value)


def _drop(path: str, name: str) -> Callable[[h5py.File], None]:
    return lambda file: file[path].attrs.__delitem__(name)


def _contiguous(file: h5py.File) -> None:
    data = file["layers/000/keys/blocks"][...]
    del file["layers/000/keys/blocks"]
    file["layers/000/keys/blocks"] = data


def _fewer_tokens(file: h5py.File) -> None:
    side = file["layers/000/values"]
    data, digest = side["blocks"][:, :, :5], side["blocks"].attrs["sha256"]
    del side["blocks"]
    side.create_dataset("blocks", data=data, chunks=(1, 1, 5, 10), fletcher32=True).attrs["sha256"] = digest


SPOILED: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "unfinished": (_drop("/", "complete"), "'complete' is missing"),
    "newer version": (_set("/", "format_version", 2), "format_version 2 is newer than 1"),
    "a dump": (_set("/", "format", "turbocode-kv-dump"), "expected 'turbocode-quantized'"),
    "no codec": (_drop("layers/000/keys", "codec"), "/layers/000/keys: attribute 'codec' is missing"),
    "changed codec": (_set("layers/000/keys", "codec", "{}"), "does not match its checksum"),
    "no report": (_drop("layers/001/values", "report"), "/layers/001/values: attribute 'report' is missing"),
    "no digest": (_drop("layers/000/keys/blocks", "sha256"), "'sha256' is missing"),
    "odd digest": (_set("/", "dump_sha256", "zz"), "64 hex digits"),
    "contiguous": (_contiguous, "no fletcher32"),
    "fewer tokens": (_fewer_tokens, "disagrees with that of the keys"),
    "other heads": (_set("/", "n_kv_heads", 4), r"expected \(sequences, 4, tokens, bytes\)"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_files_are_refused(tmp_path: Path, name: str) -> None:
    change, message = SPOILED[name]
    path = tmp_path / "q.h5"
    write_quantized(path)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        change(file)
    with pytest.raises(DataError, match=message):
        open_quantized(path)


def test_document_names_every_attribute(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "quantized-file.md").read_text()
    path = tmp_path / "q.h5"
    write_quantized(path)
    with h5py.File(path) as file:
        found = set(file.attrs)
        file.visititems(lambda name, item: found.update(item.attrs))
    digests = {"recipe_sha256", "provenance_sha256", "codec_sha256", "report_sha256"}
    assert digests < found
    for name in found - digests:
        assert f"`{name}`" in page, name
