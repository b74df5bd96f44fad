"""The factor on decoded values that brings a head's attention outputs nearest to the exact ones."""

from __future__ import annotations

import numpy as np

from turbocode.codecs import Coder
from turbocode.dumps import Dump, DumpLayer
from turbocode.errors import OptionError
from turbocode.kernels.attention import reference
from turbocode.transforms.head_map import Floats

ROWS_AT_ONCE = 64


def value_gains(dump: Dump, layer: DumpLayer, coder: Coder, *, shift: Floats | None, stop: int | None = None) -> Floats:
    """<o, o'> / |o'|^2 of each KV head, float64 (J,): o exact outputs, o' with values decoded by `coder`.

    shift : (J, D) taken from both, a mean that is added after the gain; stop : only rows at positions below it
    Raises OptionError for a dump without queries there.
    """
    metadata = dump.metadata
    positions = layer.query_positions()
    group = metadata.n_query_heads // metadata.n_kv_heads
    limit = layer.n_tokens if stop is None else stop
    if not layer.n_rows or not (positions < limit).any():
        raise OptionError("gain by a codec needs queries", hint="capture the dump with --rows")
    product, square = np.zeros(metadata.n_kv_heads), np.zeros(metadata.n_kv_heads)
    for seq in range(layer.n_seqs):
        rows = np.flatnonzero(positions[seq] < limit)
        for head in range(metadata.n_kv_heads):
            keys, values = (layer.read(side, seq, head, 0, min(limit, layer.n_tokens)) for side in ("keys", "values"))
            decoded = coder.decode(coder.encode(values, head)[0], head)
            both = np.stack([values.astype(np.float64), decoded.astype(np.float64)])
            if shift is not None:
                both -= shift[head]
            for query_head in range(head * group, (head + 1) * group):
                queries = layer.read("queries", seq, query_head)
                for start in range(0, len(rows), ROWS_AT_ONCE):
                    chosen = rows[start : start + ROWS_AT_ONCE]
                    scores = reference.logits(
                        queries[chosen][None, None],
                        keys[None, None],
                        positions[seq, chosen][None],
                        metadata.attention_scale,
                        layer.window,
                        layer.softcap,
                    )[0, 0]
                    p = np.exp(scores - scores.max(axis=1, keepdims=True))
                    exact, coded = (p / p.sum(axis=1, keepdims=True)) @ both
                    product[head] += float((exact * coded).sum())
                    square[head] += float((coded * coded).sum())
    return np.divide(product, square, out=np.ones_like(product), where=square > 0)
