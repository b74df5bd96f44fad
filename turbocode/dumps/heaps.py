"""The heaps that hold variable-length strings, checked before HDF5 walks them.

They have no checksum, and on a free-space record of size 0 HDF5 2.0 never comes back. Only the space between the data
is searched: a heap hidden inside a dataset's own bytes takes malice, and `isolate` for that.
"""

from __future__ import annotations

from typing import BinaryIO

from turbocode.errors import DataError

_SIGNATURE = b"GCOL"
_VERSION = 1
_HEADER_BYTES = 16
_SMALLEST_HEAP = 4096
_PIECE_BYTES = 1 << 22


def check_heaps(stream: BinaryIO, file: str, gaps: list[tuple[int, int]]) -> None:
    """Returns nothing; DataError for a heap whose records do not add up.

    stream : the file; gaps : (start, stop) of the bytes that no dataset occupies
    """
    for start, stop in gaps:
        for piece_start in range(start, stop, _PIECE_BYTES):
            stream.seek(piece_start)
            # A signature may straddle two pieces.
            piece = stream.read(min(_PIECE_BYTES + len(_SIGNATURE) - 1, stop - piece_start))
            at = piece.find(_SIGNATURE)
            while at >= 0:
                _check_heap(stream, file, piece_start + at)
                at = piece.find(_SIGNATURE, at + 1)


def _check_heap(stream: BinaryIO, file: str, offset: int) -> None:
    damaged = DataError("heap of its strings is damaged", file=file, object="/")
    stream.seek(offset)
    header = stream.read(_HEADER_BYTES)
    # HDF5 itself refuses any other version, so such bytes are no heap.
    if len(header) < _HEADER_BYTES or header[4] != _VERSION:
        return
    size = int.from_bytes(header[8:16], "little")
    # A heap holds short strings; what is larger than one attribute may be has no business here.
    if not _SMALLEST_HEAP <= size <= _PIECE_BYTES:
        raise damaged
    body = stream.read(size - _HEADER_BYTES)
    if len(body) != size - _HEADER_BYTES:
        raise damaged
    at = 0
    while len(body) - at >= _HEADER_BYTES:
        index = int.from_bytes(body[at : at + 2], "little")
        length = int.from_bytes(body[at + 8 : at + 16], "little")
        # Record 0 is the free space and counts its own header; all others are padded to eight bytes.
        taken = length if index == 0 else _HEADER_BYTES + (length + 7) // 8 * 8
        if taken < _HEADER_BYTES or at + taken > len(body):
            raise damaged
        at += taken
