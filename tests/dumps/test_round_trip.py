"""What is written is what is read: every dtype, any step, any layout that a sound writer uses."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from dumps.samples import N_ROWS, N_TOKENS, TOKENS, arrays, metadata, write_dump, write_plain_dump

from turbocode.dumps import create_dump, file_kind, open_dump
from turbocode.errors import DataError, OptionError, OutputError

SHIPPED = Path(__file__).parents[2] / "data" / "tiny-pride.h5"
SOUND_LAYOUTS = {
    "v110": ({}, "checksummed"),
    "resizable": ({"chunks": (1, 1, 5, 8), "fletcher32": True, "maxshape": (None, None, None, 8)}, "checksummed"),
    "deflate": ({"chunks": (1, 1, 5, 8), "fletcher32": True, "compression": "gzip", "shuffle": True}, "checksummed"),
    "no-checksum": ({"chunks": (1, 1, 5, 8)}, "unverified"),
    "contiguous": ({"chunks": None}, "unverified"),
    "old-superblock": ({"libver": None, "chunks": (1, 1, 6, 8), "fletcher32": True}, "unverified"),
}


@pytest.mark.parametrize("logical_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("step", [1, 5, 12])
def test_every_dtype_comes_back(tmp_path: Path, logical_dtype: str, step: int) -> None:
    about = metadata(logical_dtype=logical_dtype)
    layers = arrays(about)
    if logical_dtype == "bfloat16":
        for data in layers:
            for kind in ("keys", "values", "queries"):
                data[kind] = (data[kind].view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    path = tmp_path / "dump.h5"
    write_dump(path, about, layers, step)
    assert file_kind(path) == "dump"
    with open_dump(path) as dump:
        assert (dump.metadata, dump.integrity, dump.n_bytes) == (about, "checksummed", path.stat().st_size)
        assert np.array_equal(dump.tokens(), TOKENS)
        for number, (layer, data) in enumerate(zip(dump.layers, layers, strict=True)):
            assert (layer.name, layer.layer_index) == (f"{number:03d}", 2 * number)
            assert (layer.window, layer.softcap, layer.n_rows) == (number, 0.5 * number, N_ROWS)
            assert np.array_equal(layer.query_positions(), data["query_positions"])
            for kind in ("keys", "values", "queries"):
                for seq, head in np.ndindex(data[kind].shape[:2]):
                    got = layer.read(kind, seq, head)
                    assert got.dtype == (np.float16 if logical_dtype == "float16" else np.float32)
                    assert got.flags.c_contiguous and got.dtype.isnative
                    assert np.array_equal(got.astype(np.float32), data[kind][seq, head])
            assert np.array_equal(layer.read("keys", 1, 1, 3, 8), layer.read("keys", 1, 1)[3:8])


@pytest.mark.parametrize("name", SOUND_LAYOUTS)
def test_sound_layouts_are_accepted_with_one_digest(tmp_path: Path, name: str) -> None:
    storage, integrity = SOUND_LAYOUTS[name]
    write_plain_dump(tmp_path / "reference.h5")
    write_plain_dump(tmp_path / "other.h5", **storage)
    with open_dump(tmp_path / "reference.h5") as reference, open_dump(tmp_path / "other.h5") as other:
        assert other.integrity == integrity
        assert other.content_sha256() == reference.content_sha256()


def test_digest_depends_on_content_alone(tmp_path: Path) -> None:
    about, seen = metadata(), set()
    for number, change in enumerate(["none", "value", "attribute"]):
        layers = arrays(about)
        if change == "value":
            layers[1]["values"][1, 1, 11, 7] += 1
        path = tmp_path / f"{number}.h5"
        write_dump(path, metadata(model="other") if change == "attribute" else about, layers)
        read: list[int] = []
        with open_dump(path) as dump:
            seen.add(dump.content_sha256(read.append))
            tail = dump.content_sha256()
        assert tail in seen and sum(read) > 0
    assert len(seen) == 3


@pytest.mark.parametrize("stored", ["opaque", "native", "big-endian"])
def test_foreign_number_types(tmp_path: Path, stored: str) -> None:
    values = np.arange(2 * 2 * 12 * 8, dtype=np.float32).reshape(2, 2, 12, 8) % 64

    def change(file: h5py.File) -> None:
        layer = file["layers/000"]
        for kind in ("keys", "values", "queries"):
            del layer[kind]
        del layer["query_positions"]
        bits = (values.view(np.uint32) >> 16).astype("<u2")
        for kind in ("keys", "values"):
            if stored == "big-endian":
                layer.create_dataset(kind, data=values.astype(">f2"), chunks=(1, 1, 6, 8))
                continue
            file.attrs["logical_dtype"] = "bfloat16"
            if stored == "opaque":
                layer.create_dataset(kind, data=bits.view("V2"), chunks=(1, 1, 6, 8))
                continue
            native = h5py.h5t.IEEE_F32LE.copy()
            native.set_fields(15, 7, 8, 0, 7)
            native.set_precision(16)
            native.set_size(2)
            native.set_ebias(127)
            made = h5py.h5d.create(layer.id, kind.encode(), native, h5py.h5s.create_simple(values.shape))
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, bits, native)

    path = tmp_path / "dump.h5"
    write_plain_dump(path, change)
    with open_dump(path) as dump:
        assert dump.layers[0].n_rows == 0 and dump.layers[0].query_positions().shape == (2, 0)
        for seq, head in np.ndindex(2, 2):
            assert np.array_equal(dump.layers[0].read("keys", seq, head).astype(np.float32), values[seq, head])
        with pytest.raises(DataError, match="no queries"):
            dump.layers[0].read("queries", 0, 0)


def test_shipped_dump() -> None:
    with open_dump(SHIPPED, isolate=True) as dump:
        assert dump.integrity == "checksummed" and len(dump.layers) == dump.metadata.n_layers == 4
        tokens = dump.tokens()
        assert tokens is not None and tokens.shape == (1, 1024)
        with h5py.File(SHIPPED) as file:
            for layer in dump.layers:
                expected = file[f"layers/{layer.name}/keys"][0, 1, 100:200]
                assert np.array_equal(layer.read("keys", 0, 1, 100, 200), expected)


def test_nonfinite_is_named_or_replaced(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file["layers/000/keys"][1, 0, 7, 3] = np.nan
        file["layers/000/keys"][1, 0, 9, 0] = -np.inf

    path = tmp_path / "dump.h5"
    write_plain_dump(path, change)
    with open_dump(path) as dump:
        assert np.isfinite(dump.layers[0].read("keys", 1, 0, 0, 7)).all()
        with pytest.raises(DataError, match=r"/layers/000/keys: .*sequence 1, head 0, token 7") as caught:
            dump.layers[0].read("keys", 1, 0)
        assert caught.value.exit_code == 65
    with open_dump(path, nonfinite="zero") as dump:
        keys = dump.layers[0].read("keys", 1, 0)
        assert np.isfinite(keys).all() and keys[7, 3] == 0 and keys[9, 0] == 0
        assert dump.nonfinite_replaced == 2
    with pytest.raises(OptionError, match="nonfinite"):
        open_dump(path, nonfinite="ignore")


@pytest.mark.parametrize(
    "arguments", [("key", 0, 0), ("keys", 2, 0), ("keys", 0, 2), ("keys", 0, 0, 5, 5), ("keys", 0, 0, 0, 13)]
)
def test_reading_what_is_not_there(tmp_path: Path, arguments: tuple[str, int, int]) -> None:
    write_plain_dump(tmp_path / "dump.h5")
    with open_dump(tmp_path / "dump.h5") as dump, pytest.raises(OptionError):
        dump.layers[0].read(*arguments)


def test_writer_refuses_disorder(tmp_path: Path) -> None:
    about = metadata(n_layers=1)
    ones = np.ones((3, 8), dtype=np.float32)
    path = tmp_path / "dump.h5"
    with pytest.raises(OutputError, match="rows were written"), create_dump(path, about) as writer:
        layer = writer.add_layer("000", layer_index=0, n_seqs=1, n_tokens=N_TOKENS)
        layer.write("keys", 0, 0, 0, ones)
        for kind, head, start, values in (
            ("keys", 0, 0, ones),
            ("keys", 1, 0, ones),
            ("keys", 0, 4, ones),
            ("keys", 0, 3, ones[:, :5]),
            ("queries", 0, 0, ones),
        ):
            with pytest.raises(OptionError):
                layer.write(kind, 0, head, start, values)
        with pytest.raises(DataError, match="not finite as float16"):
            layer.write("keys", 0, 0, 3, ones * 1e6)
        with pytest.raises(OptionError, match="announces 1 layers"):
            writer.add_layer("001", layer_index=0, n_seqs=1, n_tokens=N_TOKENS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [{"logical_dtype": "float64"}, {"head_dim": 0}, {"n_kv_heads": 3}, {"attention_scale": float("nan")},
     {"rope_theta": -1.0}, {"model": "two\nlines"}],
)  # fmt: skip
def test_metadata_out_of_range(change: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        metadata(**change)


FISHER = {
    "sound": (None, ""),
    "one side": (lambda file: file.pop("layers/000/values_fisher"), "must both be there"),
    "shape": (lambda file: _replace(file, np.ones((2, 8, 7))), r"shape is \(2, 8, 7\); expected \(2, 8, 8\)"),
    "nan": (lambda file: _replace(file, np.full((2, 8, 8), np.nan)), "finite, symmetric and of positive trace"),
    "not symmetric": (lambda file: _replace(file, np.triu(np.ones((2, 8, 8)))), "symmetric"),
    "zero": (lambda file: _replace(file, np.zeros((2, 8, 8))), "positive trace"),
}


def _replace(file: h5py.File, values: np.ndarray) -> None:
    del file["layers/000/keys_fisher"]
    file["layers/000/keys_fisher"] = values.astype("<f4")


@pytest.mark.parametrize("name", FISHER)
def test_fisher_information(tmp_path: Path, name: str) -> None:
    spoil, message = FISHER[name]

    def change(file: h5py.File) -> None:
        for side in ("keys", "values"):
            file[f"layers/000/{side}_fisher"] = np.stack([np.eye(8), 2 * np.eye(8)]).astype("<f4")
        if spoil is not None:
            spoil(file)

    write_plain_dump(tmp_path / "dump.h5", change)
    if spoil is None:
        with open_dump(tmp_path / "dump.h5") as dump:
            found = dump.layers[0].read_fisher("values")
            assert dump.layers[0].has_fisher and found is not None and np.array_equal(found[1], 2 * np.eye(8))
        return
    with pytest.raises(DataError, match=message), open_dump(tmp_path / "dump.h5") as dump:
        dump.layers[0].read_fisher("keys")
