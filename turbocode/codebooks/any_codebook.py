"""Either kind of codebook: both have name, bits, nmse, provenance, for_group, to_json and dumps."""

from __future__ import annotations

from turbocode.codebooks.codebook import SCHEMA, Codebook
from turbocode.codebooks.trellis_codebook import TRELLIS_SCHEMA, TrellisCodebook
from turbocode.errors import DataError

AnyCodebook = Codebook | TrellisCodebook


def codebook_from_json(document: object, *, file: str | None = None) -> AnyCodebook:
    """The codebook of a JSON object, of the kind that its key `format` says. Raises DataError naming what is wrong."""
    kind = document.get("format") if isinstance(document, dict) else None
    if kind == TRELLIS_SCHEMA:
        return TrellisCodebook.from_json(document, file=file)
    if kind == SCHEMA:
        return Codebook.from_json(document, file=file)
    raise DataError(f"not a codebook: the key 'format' must be {SCHEMA!r} or {TRELLIS_SCHEMA!r}", file=file)
