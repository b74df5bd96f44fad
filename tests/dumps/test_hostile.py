"""Files that lead out of themselves, declare what they do not hold, or differ from the schema: all refused, fast."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from dumps.samples import write_plain_dump

from turbocode.dumps import file_kind, open_dump
from turbocode.errors import DataError, DeviceError, NoInputError

KEYS = "layers/000/keys"
SHAPE = (2, 2, 12, 8)


def _replace_keys(file: h5py.File, **how: object) -> None:
    del file[KEYS]
    file.create_dataset(KEYS, **how)


def _external_storage(file: h5py.File) -> None:
    secret = Path(file.filename).with_name("secret.bin")
    secret.write_bytes(bytes(768))
    _replace_keys(file, shape=SHAPE, dtype="<f2", external=[(os.fspath(secret), 0, 768)])


def _external_link(file: h5py.File) -> None:
    other = Path(file.filename).with_name("other.h5")
    write_plain_dump(other)
    del file[KEYS]
    file[KEYS] = h5py.ExternalLink(os.fspath(other), KEYS)


def _external_group(file: h5py.File) -> None:
    other = Path(file.filename).with_name("other.h5")
    write_plain_dump(other)
    del file["layers/000"]
    file["layers/000"] = h5py.ExternalLink(os.fspath(other), "layers/000")


def _soft_link(file: h5py.File) -> None:
    del file[KEYS]
    file[KEYS] = h5py.SoftLink("/layers/000/values")


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(SHAPE, dtype="<f2")
    layout[...] = h5py.VirtualSource("other.h5", "x", shape=SHAPE)
    del file[KEYS]
    file.create_virtual_dataset(KEYS, layout)


def _hard_link(file: h5py.File) -> None:
    del file[KEYS]
    file[KEYS] = file["layers/000/values"]


def _cycle(file: h5py.File) -> None:
    file["layers/000/again"] = file["layers"]


def _deep(file: h5py.File) -> None:
    file.create_group("layers/" + "/".join("d" * 20))


def _compound(file: h5py.File) -> None:
    _replace_keys(file, data=np.zeros(SHAPE, dtype=[("a", "<f2"), ("b", "<f2")]))


def _committed(file: h5py.File) -> None:
    file["type"] = np.dtype("<f2")


def _committed_dataset(file: h5py.File) -> None:
    file["type"] = np.dtype("<f2")
    named = file["type"]
    del file[KEYS]
    file.create_dataset(KEYS, shape=SHAPE, dtype=named)
    del file["type"]


def _unallocated(file: h5py.File) -> None:
    _replace_keys(file, shape=SHAPE, dtype="<f2", chunks=(1, 1, 6, 8), fletcher32=True)
    file[KEYS][0, 0, :6] = 1


def _unallocated_contiguous(file: h5py.File) -> None:
    _replace_keys(file, shape=SHAPE, dtype="<f2")


def _inflate_bomb(file: h5py.File) -> None:
    _replace_keys(file, shape=SHAPE, dtype="<f2", chunks=(1, 1, 12, 8), compression="gzip")
    for seq, head in np.ndindex(2, 2):
        file[KEYS].id.write_direct_chunk((seq, head, 0, 0), zlib.compress(bytes(1 << 23)))


def _small_inflate_bomb(file: h5py.File) -> None:
    _replace_keys(file, shape=SHAPE, dtype="<f2", chunks=(1, 1, 12, 8), compression="gzip")
    for seq, head in np.ndindex(2, 2):
        file[KEYS].id.write_direct_chunk((seq, head, 0, 0), zlib.compress(bytes(1 << 20)))


def _skipped_filter(file: h5py.File) -> None:
    _replace_keys(file, shape=SHAPE, dtype="<f2", chunks=(1, 1, 12, 8), fletcher32=True)
    for seq, head in np.ndindex(2, 2):
        file[KEYS].id.write_direct_chunk((seq, head, 0, 0), bytes(192), filter_mask=1)


def _unknown_filter(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1, 1, 12, 8))
    plist.set_filter(307, h5py.h5z.FLAG_OPTIONAL, ())
    del file[KEYS]
    h5py.h5d.create(file.id, KEYS.encode(), h5py.h5t.IEEE_F16LE, h5py.h5s.create_simple(SHAPE), plist)


def _sparse_huge(file: h5py.File) -> None:
    _replace_keys(file, shape=(2, 2, 1 << 45, 8), dtype="<f2", chunks=(1, 1, 1 << 20, 8), fletcher32=True)


def _many_groups(file: h5py.File) -> None:
    group = file.create_group("many")
    for number in range(9000):
        h5py.h5g.create(group.id, b"g%d" % number)


def _attribute(name: str, value: object, where: str = "/", **how: object) -> Callable[[h5py.File], None]:
    return lambda file: file[where].attrs.create(name, value, **how)


def _drop(where: str, name: str) -> Callable[[h5py.File], None]:
    return lambda file: file[where].attrs.__delitem__(name)


def _many_attributes(file: h5py.File) -> None:
    for number in range(65):
        file.attrs[f"a{number}"] = 1


def _keys(data: np.ndarray) -> Callable[[h5py.File], None]:
    return lambda file: _replace_keys(file, data=data)


def _delete(path: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(path)


def _positions(file: h5py.File) -> None:
    file["layers/000/query_positions"][1, 2] = 12


HOSTILE: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "external storage": (_external_storage, f"/{KEYS}: external storage is not allowed"),
    "external link": (_external_link, f"/{KEYS}: external link is not allowed"),
    "external group": (_external_group, "/layers/000: external link is not allowed"),
    "soft link": (_soft_link, f"/{KEYS}: soft link is not allowed"),
    "dangling soft link": (lambda f: f.__setitem__("x", h5py.SoftLink("/x")), "/x: soft link"),
    "virtual dataset": (_virtual, f"/{KEYS}: virtual dataset is not allowed"),
    "hard link": (_hard_link, "second link"),
    "hard-link cycle": (_cycle, "/layers/000/again: is a second link"),
    "depth": (_deep, "nested deeper than 16"),
    "string type": (lambda f: f.create_dataset("x", data=["a"]), "/x: string type is not allowed"),
    "vlen type": (lambda f: f.create_dataset("x", (1,), h5py.vlen_dtype("i4")), "/x: variable-length type"),
    "reference": (lambda f: f.create_dataset("x", (1,), h5py.ref_dtype), "/x: reference type"),
    "bool": (lambda f: f.create_dataset("x", data=[True]), "/x: enumeration type"),
    "compound": (_compound, f"/{KEYS}: compound type is not allowed"),
    "committed type": (_committed, "/type: committed type is not allowed"),
    "committed dataset type": (_committed_dataset, f"/{KEYS}: committed type is not allowed"),
    "scalar": (lambda f: f.create_dataset("x", data=1), "/x: must be an array"),
    "empty": (lambda f: f.create_dataset("x", data=h5py.Empty("f4")), "/x: must be an array"),
    "zero length": (lambda f: f.create_dataset("x", (0, 3), "<f4"), "/x: shape"),
    "rank": (lambda f: f.create_dataset("x", (1,) * 32, "<f4"), "/x: shape"),
    "chunks missing": (_unallocated, f"/{KEYS}: 1 of 8 chunks are written"),
    "contiguous missing": (_unallocated_contiguous, f"/{KEYS}: data were never written"),
    "inflate bomb": (_inflate_bomb, "stored size"),
    "small inflate bomb": (_small_inflate_bomb, "stored size|inflate"),
    "skipped filter": (_skipped_filter, "skips its filters"),
    "unknown filter": (_unknown_filter, "filter 307 is not allowed; allowed are deflate"),
    "sparse huge": (_sparse_huge, "declares"),
    "many groups": (_many_groups, "too many objects"),
    "name with newline": (lambda f: f.create_group("a\nb"), r"name 'a\\nb' is not allowed"),
    "name with backslash": (lambda f: f.create_group("a\\..\\x"), "is not allowed"),
    "long name": (lambda f: f.create_group("x" * 65), "is not allowed"),
    "array attribute": (_attribute("model", [1, 2]), "'model' must be a scalar"),
    "empty attribute": (_attribute("model", h5py.Empty("f4")), "'model' must be a scalar"),
    "bool attribute": (_attribute("complete", True), "'complete' must be a string, an integer"),
    "complex attribute": (_attribute("model", 1j), "'model' must be a string"),
    "huge attribute": (_attribute("model", np.bytes_(b"x" * (2 << 20))), "larger than"),
    "huge string attribute": (_attribute("model", "x" * (2 << 20)), "larger than|heap"),
    "attribute not UTF-8": (_attribute("model", np.bytes_(b"\xff\xfe")), "not valid UTF-8"),
    "attribute name": (_attribute("a b", 1), "attribute name 'a b' is not allowed"),
    "escape sequence": (_attribute("model", "\x1b[2J"), "printable"),
    "many attributes": (_many_attributes, "has 7[0-9] attributes"),
    "unfinished": (_drop("/", "complete"), "'complete' is missing"),
    "complete 0": (_attribute("complete", 0), "'complete' is 0"),
    "newer version": (_attribute("format_version", 2), "format_version 2 is newer than 1, the version known here"),
    "other format": (_attribute("format", "keras"), "format is 'keras'"),
    "no head_dim": (_drop("/", "head_dim"), "/: attribute 'head_dim' is missing"),
    "text for number": (_attribute("head_dim", "8"), "'head_dim' must be an integer"),
    "heads do not divide": (_attribute("n_query_heads", 5), "not a multiple"),
    "infinite scale": (_attribute("attention_scale", np.inf), "'attention_scale' is inf"),
    "nan scale": (_attribute("attention_scale", np.nan), "'attention_scale' is nan"),
    "no window": (_drop("layers/000", "window"), "/layers/000: attribute 'window' is missing"),
    "negative window": (_attribute("window", -1, "layers/000"), "'window' is -1"),
    "layers missing": (_attribute("n_layers", 2), "layer 001 is missing"),
    "layer name": (lambda f: f.move("layers/000", "layers/0"), "layer 000 is missing"),
    "layer is a dataset": (lambda f: f.create_dataset("layers/001", data=[1]), "'001' is not one of them"),
    "no layers": (_delete("layers"), "/layers: group is missing"),
    "no values": (_delete("layers/000/values"), "/layers/000/values: dataset is missing"),
    "no positions": (_delete("layers/000/query_positions"), "both"),
    "head_dim disagrees": (_attribute("head_dim", 16), f"/{KEYS}: shape is .* expected .*16"),
    "tokens disagree": (_keys(np.zeros((2, 2, 11, 8), "<f2")), "/layers/000/values: shape"),
    "rank disagrees": (_keys(np.zeros((2, 12, 8), "<f2")), "expected four axes"),
    "dtype disagrees": (_keys(np.zeros(SHAPE, "<f4")), f"/{KEYS}: type is float32; expected float16"),
    "position outside": (_positions, "position 12 at sequence 1, row 2 is outside 0 to 11"),
    "not finite": (_keys(np.full(SHAPE, np.nan, "<f2")), "not finite at sequence 0, head 0, token 0"),
}


def _read_all(path: Path) -> None:
    file_kind(path)
    with open_dump(path) as dump:
        dump.tokens()
        for layer in dump.layers:
            layer.query_positions()
            for kind in ("keys", "values", "queries"):
                layer.read(kind, 0, 0)
                layer.read(kind, 1, 1)


@pytest.mark.parametrize("libver", [("v110", "v110"), None], ids=["v110", "old"])
@pytest.mark.parametrize("name", HOSTILE)
def test_refused_with_one_line_in_a_second(tmp_path: Path, name: str, libver: object) -> None:
    change, message = HOSTILE[name]
    path = tmp_path / "dump.h5"
    if libver is None and name == "huge attribute":
        pytest.skip("the old format has no attributes above 64 KiB")
    write_plain_dump(path, change, libver)
    started = time.perf_counter()
    with pytest.raises(DataError, match=message) as caught:
        _read_all(path)
    assert time.perf_counter() - started < 1.0
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_permitted_filter_that_is_not_installed(tmp_path: Path) -> None:
    if h5py.h5z.filter_avail(32015):
        pytest.skip("zstd is installed here")

    def change(file: h5py.File) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 1, 12, 8))
        plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        del file[KEYS]
        h5py.h5d.create(file.id, KEYS.encode(), h5py.h5t.IEEE_F16LE, h5py.h5s.create_simple(SHAPE), plist)

    write_plain_dump(tmp_path / "dump.h5", change)
    with pytest.raises(DeviceError, match="zstd, which is not installed") as caught:
        open_dump(tmp_path / "dump.h5")
    assert caught.value.exit_code == 69 and "turbocode[filters]" in (caught.value.hint or "")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", ".", "missing", "missing/file"):
        with pytest.raises(NoInputError) as caught:
            open_dump(tmp_path / name)
        assert caught.value.exit_code == 66
    with pytest.raises(NoInputError):
        open_dump("/dev/zero")
    with pytest.raises(NoInputError):
        open_dump("nul\0byte")


@pytest.mark.parametrize("data", [b"", b"\x89HDF", b"PK\x03\x04" * 200, b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_what_is_not_hdf5(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "dump.h5"
    path.write_bytes(data)
    with pytest.raises(DataError):
        open_dump(path)


def test_file_with_user_block(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "dump.h5", "w", userblock_size=512) as file:
        file["x"] = 1
    with pytest.raises(DataError, match="no signature"):
        open_dump(tmp_path / "dump.h5")
