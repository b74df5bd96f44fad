"""Takes stock of an HDF5 file without following anything that leads out of it.

HDF5 has no switch against external links, external storage and virtual datasets, and crashes on some damaged chunk
tables, so every object is reached one component at a time over hard links and checked before its data are touched.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from turbocode.dumps.hdf5 import h5py, open_file, reading, superblock_version
from turbocode.dumps.heaps import check_heaps
from turbocode.dumps.inventory import DatasetFacts, Inventory, Scalar
from turbocode.dumps.storage import Extents, check_storage
from turbocode.dumps.value_types import recognise
from turbocode.errors import DataError

NAME = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
MAX_DEPTH = 16
# A thousand layers (three digits) of a group and up to seven datasets each.
MAX_OBJECTS = 8192
MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE_BYTES = 1 << 20

_CLASS_NAMES = {
    h5py.h5t.STRING: "string",
    h5py.h5t.COMPOUND: "compound",
    h5py.h5t.ENUM: "enumeration",
    h5py.h5t.VLEN: "variable-length",
    h5py.h5t.ARRAY: "array",
    h5py.h5t.REFERENCE: "reference",
    h5py.h5t.OPAQUE: "opaque",
    h5py.h5t.BITFIELD: "bit-field",
    h5py.h5t.TIME: "time",
}


def take_stock(path: str | os.PathLike[str]) -> Inventory:
    """Inventory of a file whose every object, attribute and chunk has been found harmless.

    Errors : NoInputError, DataError (names the object), LockedError, DeviceError (a filter that is not installed).
    """
    superblock = superblock_version(path)
    with open_file(path) as file:
        return stock_of(file, os.fspath(path), superblock)


def stock_of(file: h5py.File, path: str, superblock: int) -> Inventory:
    """Inventory of an open file; see `take_stock`."""
    return _Walk(file, path, superblock).run()


class _Walk:
    def __init__(self, file: h5py.File, path: str, superblock: int) -> None:
        self.file, self.path, self.superblock = file, path, superblock
        with reading(path):
            # The size HDF5 sees, so that both can never speak of different files.
            self.size = int(file.id.get_filesize())
        self.extents = Extents(path, self.size)
        self.seen: set[int] = set()
        self.attributes: dict[str, dict[str, Scalar]] = {}
        self.groups: set[str] = set()
        self.owners: list[tuple[Any, str]] = []
        self.datasets: dict[str, DatasetFacts] = {}

    def run(self) -> Inventory:
        with reading(self.path, "/"):
            root = h5py.h5o.open(self.file.id, b"/")
            self.seen.add(h5py.h5o.get_info(root).addr)
        self._group(root, "/", 1)
        gaps = self.extents.gaps()
        # Strings are read last: where they may lie is only known when all data are.
        with reading(self.path, "/"), Path(self.path).open("rb") as stream:
            check_heaps(stream, self.path, gaps)
        for owner, where in self.owners:
            self._attributes(owner, where)
        return Inventory(
            self.path, self.size, self.superblock, self.attributes, frozenset(self.groups), dict(self.datasets)
        )

    def _refuse(self, where: str, message: str) -> None:
        raise DataError(message, file=self.path, object=where)

    def _group(self, group: Any, where: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            self._refuse(where, f"groups are nested deeper than {MAX_DEPTH}")
        self.groups.add(where)
        names: list[bytes] = []
        with reading(self.path, where):
            count = group.get_num_objs()
            if len(self.seen) + count > MAX_OBJECTS:
                self._refuse(where, f"holds too many objects; a file may have {MAX_OBJECTS}")
            group.links.iterate(lambda name: names.append(bytes(name)))
        self.owners.append((group, where))
        for name in sorted(names):
            if not NAME.fullmatch(name) or name in (b".", b".."):
                shown = name[:64].decode("ascii", "backslashreplace")
                self._refuse(where, f"name {shown!r} is not allowed; use 1 to 64 of A-Z a-z 0-9 _ . -")
            self._member(group, name, where.rstrip("/") + "/" + name.decode("ascii"), depth)

    def _member(self, group: Any, name: bytes, where: str, depth: int) -> None:
        with reading(self.path, where):
            link = group.links.get_info(name)
            if link.type == h5py.h5l.TYPE_EXTERNAL:
                self._refuse(where, "external link is not allowed (points at another file)")
            if link.type != h5py.h5l.TYPE_HARD:
                self._refuse(where, "soft link is not allowed; only hard links are")
            info = h5py.h5o.get_info(group, name)
            if info.addr in self.seen:
                self._refuse(where, "is a second link to an object that has another name")
            self.seen.add(info.addr)
            if info.type not in (h5py.h5o.TYPE_GROUP, h5py.h5o.TYPE_DATASET):
                self._refuse(where, "committed type is not allowed; only groups and datasets are")
            member = h5py.h5o.open(group, name)
        if isinstance(member, h5py.h5g.GroupID):
            self._group(member, where, depth + 1)
        else:
            self._dataset(member, where)

    def _dataset(self, dataset: Any, where: str) -> None:
        with reading(self.path, where):
            type_id = dataset.get_type()
            if type_id.committed():
                self._refuse(where, "committed type is not allowed; store plain numbers")
            value_type = recognise(type_id)
            if value_type is None:
                name = _CLASS_NAMES.get(type_id.get_class(), "unusual number")
                self._refuse(where, f"{name} type is not allowed; store plain integers or IEEE floats")
        assert value_type is not None
        self.datasets[where] = check_storage(dataset, value_type, self.extents, where)
        self.owners.append((dataset, where))

    def _attributes(self, owner: Any, where: str) -> None:
        with reading(self.path, where):
            count = h5py.h5a.get_num_attrs(owner)
            if count > MAX_ATTRIBUTES:
                self._refuse(where, f"has {count} attributes; allowed are {MAX_ATTRIBUTES}")
            found: dict[str, Scalar] = {}
            for index in range(count):
                name, value = self._attribute(owner, index, where)
                found[name] = value
        self.attributes[where] = found

    def _attribute(self, owner: Any, index: int, where: str) -> tuple[str, Scalar]:
        attribute = h5py.h5a.open(owner, index=index)
        raw_name = attribute.name
        if not NAME.fullmatch(raw_name):
            shown = raw_name[:64].decode("ascii", "backslashreplace")
            self._refuse(where, f"attribute name {shown!r} is not allowed; use 1 to 64 of A-Z a-z 0-9 _ . -")
        name = raw_name.decode("ascii")
        type_id = attribute.get_type()
        is_text = type_id.get_class() == h5py.h5t.STRING and not type_id.committed()
        if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
            self._refuse(where, f"attribute {name!r} must be a scalar")
        if not is_text and (recognise(type_id) is None or type_id.get_class() == h5py.h5t.OPAQUE):
            self._refuse(where, f"attribute {name!r} must be a string, an integer or a float")
        if attribute.get_storage_size() > MAX_ATTRIBUTE_BYTES:
            self._refuse(where, f"attribute {name!r} is larger than {MAX_ATTRIBUTE_BYTES} bytes")
        value = h5py.AttributeManager(_Handle(owner))[name]
        if not is_text:
            return name, value.item()
        try:
            data = value if isinstance(value, bytes) else value.encode("utf-8")
            text = data.decode("utf-8")
        except UnicodeError:
            self._refuse(where, f"attribute {name!r} is not valid UTF-8")
        if len(data) > MAX_ATTRIBUTE_BYTES:
            self._refuse(where, f"attribute {name!r} is larger than {MAX_ATTRIBUTE_BYTES} bytes")
        return name, text


class _Handle:
    """The one field that h5py's attribute access needs, so that no high-level object (which follows links) is made."""

    def __init__(self, identifier: Any) -> None:
        self.id = identifier
