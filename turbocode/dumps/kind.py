"""Tells a dump, a quantized file and a calibration file apart."""

from __future__ import annotations

import os

from turbocode.dumps.calibration import CALIBRATION_FORMAT
from turbocode.dumps.dump_schema import DUMP_FORMAT
from turbocode.dumps.guard import take_stock
from turbocode.dumps.quantized_schema import QUANTIZED_FORMAT
from turbocode.errors import DataError

_KINDS = {DUMP_FORMAT: "dump", QUANTIZED_FORMAT: "quantized", CALIBRATION_FORMAT: "calibration"}


def file_kind(path: str | os.PathLike[str]) -> str:
    """`dump`, `quantized` or `calibration`, from the root attribute `format` of a guarded file.

    Errors : NoInputError, DataError (also for an HDF5 file that is none of them), LockedError, DeviceError.
    """
    found = take_stock(path).label("/", "format")
    if found not in _KINDS:
        raise DataError(
            f"format is {found!r}; allowed are {' and '.join(_KINDS)}", file=path, object="/", hint="not a file of ours"
        )
    return _KINDS[found]
