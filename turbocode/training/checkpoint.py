"""Where a trellis training stands, kept in a file, so that an interrupted one goes on and ends in the same codebook."""

from __future__ import annotations

import json
import os
from typing import Any

from turbocode.dumps import write_text_atomically
from turbocode.errors import DataError, OptionError
from turbocode.text_input import read_text_input
from turbocode.training.trellis_codebook import TrainingState, TrellisTrainingSpec
from turbocode.training.trellis_data import GroupSource

SCHEMA = "turbocode-trellis-checkpoint"
SCHEMA_VERSION = 1
MAX_FILE_BYTES = 64 << 20


def write_checkpoint(
    path: str | os.PathLike[str], state: TrainingState, spec: TrellisTrainingSpec, source: GroupSource
) -> None:
    """Put the state in the place of what the file held."""
    document = {
        "format": SCHEMA,
        "format_version": SCHEMA_VERSION,
        "training": _identity(spec, source),
        "state": state.to_json(),
    }
    write_text_atomically(path, json.dumps(document, allow_nan=False) + "\n", force=True)


def read_checkpoint(path: str | os.PathLike[str], spec: TrellisTrainingSpec, source: GroupSource) -> TrainingState:
    """The state that `write_checkpoint` wrote for the same spec and source.

    Raises NoInputError, DataError (damaged), OptionError (of another training).
    """
    file = os.fspath(path)
    try:
        document = json.loads(read_text_input(path, max_bytes=MAX_FILE_BYTES))
    except (json.JSONDecodeError, RecursionError):
        raise DataError("not JSON: not a checkpoint of a training", file=file) from None
    if not isinstance(document, dict) or document.get("format") != SCHEMA:
        raise DataError(f"not a checkpoint: the key 'format' must be {SCHEMA!r}", file=file)
    if document.get("format_version") != SCHEMA_VERSION:
        raise DataError(f"checkpoint version {document.get('format_version')!r} is unknown; known is 1", file=file)
    if document.get("training") != _identity(spec, source):
        raise OptionError(
            "the checkpoint is of another training",
            file=file,
            hint="give the options and the dump it was begun with, or another --checkpoint",
        )
    try:
        state = TrainingState.from_json(document["state"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError("checkpoint: the key 'state' is damaged", file=file) from None
    if any(values is not None and len(values) != 1 << spec.states_log2 for values in (state.values, state.best)):
        raise DataError(f"checkpoint: values are not those of 2**{spec.states_log2} states", file=file)
    return state


def _identity(spec: TrellisTrainingSpec, source: GroupSource) -> dict[str, Any]:
    """What two trainings must share for one to go on where the other stopped; as JSON gives it back."""
    return {"command": spec.command(source), **source.facts}
