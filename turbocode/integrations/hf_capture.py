"""Takes a KV dump of a model over a text: what its attention reads, written layer by layer while it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps import DumpMetadata, DumpWriter, LayerWriter, create_dump
from turbocode.dumps.atomic import AnyPath
from turbocode.dumps.value_types import LOGICAL_BYTES
from turbocode.errors import DataError, OptionError
from turbocode.formats.sides import SIDES
from turbocode.integrations.hf_attention import AttentionCall, attention_by
from turbocode.integrations.hf_fisher import FisherMeter
from turbocode.integrations.hf_model import LanguageModel, LayerShape
from turbocode.integrations.hf_packages import transformers
from turbocode.integrations.hf_text import TextTokens, check_context

TOKENS_PER_ROW = 16  # of the shared dumps: 64 rows for 1,024 tokens, 128 for 2,048


@dataclass(frozen=True)
class CaptureSpec:
    """n_windows sequences of `context` tokens; n_rows queries a head (0: none); dtype: the dump's logical dtype.

    bos : the tokenizer's first-of-text token stands in the place of each window's first
    seed : of the rows' positions, and of the drawn tokens of the Fisher information
    fisher : measure the Fisher information of keys and values too, for three times the time (integrations/hf_fisher.py)
    """

    context: int
    n_windows: int = 1
    n_rows: int | None = None
    dtype: str = "float16"
    bos: bool = False
    seed: int = 0
    fisher: bool = False

    @property
    def rows(self) -> int:
        return max(1, self.context // TOKENS_PER_ROW) if self.n_rows is None else self.n_rows

    def positions(self) -> NDArray[np.int64]:
        """Positions of the query rows, int64 (n_rows,) ascending: a sample of the second half of the context."""
        later = np.arange(self.context // 2, self.context)
        if self.rows > len(later):
            raise OptionError(f"{self.rows} query rows are asked for; the second half of the context has {len(later)}")
        return np.sort(np.random.default_rng(self.seed).choice(later, self.rows, replace=False))


def capture_dump(
    model: LanguageModel,
    text: TextTokens,
    output: AnyPath,
    spec: CaptureSpec,
    *,
    force: bool = False,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write the dump to `output`; its facts as a JSON object.

    The dump holds keys, values and queries as attention reads them, after RoPE. One window is in memory at a time.
    advance : called with the number of tokens just run, per layer
    Raises OptionError for a model whose layers differ in shape or whose context is too short, DataError for a text
    that is too short or values that float16 cannot hold, OutputError and StorageError; the output appears whole or not
    at all.
    """
    check_context(model, spec.context)
    tokens, positions = text.windows(spec.n_windows, spec.context, bos=spec.bos), spec.positions()
    layers = model.layers
    sinks = [shape.layer_index for shape in layers if shape.has_sinks]
    if sinks and len(positions):
        raise OptionError(
            f"the softmax of layer {sinks[0]} counts a learned sink, for which a dump has no place",
            hint="--rows 0 leaves the queries out, and with them every comparison of attention",
        )
    metadata = _metadata(model, text, spec.dtype)
    vectors = spec.context * 2 * metadata.n_kv_heads + len(positions) * metadata.n_query_heads
    n_bytes = len(layers) * spec.n_windows * vectors * metadata.head_dim * LOGICAL_BYTES[spec.dtype]
    with create_dump(output, metadata, force=force, inputs=[text.path], expected_bytes=n_bytes) as writer:
        writer.write_tokens(tokens.astype(np.int32))
        writers = _add_layers(writer, layers, spec, positions)
        meter = FisherMeter(model, spec.seed) if spec.fisher else None
        for seq, window in enumerate(tokens):
            recorder = _Recorder(writers, seq, positions, advance)
            cache = transformers.DynamicCache(config=model.config)
            with attention_by(model.model, recorder):
                model.hidden(window, cache, first=spec.context - 1)
            recorder.check()
            if meter is not None:
                meter.add(window)
        if meter is not None:
            for layer_index, layer in writers.items():
                for side in SIDES:
                    layer.write_fisher(side, meter.metric(layer_index, side))
    return {
        "output": output,
        "model": model.label,
        "text": text.name,
        "tokenizer": text.tokenizer,
        "n_bytes": Path(output).stat().st_size,
        "n_seqs": spec.n_windows,
        "n_tokens": spec.context,
        "n_rows": len(positions),
        "head_dim": metadata.head_dim,
        "dtype": spec.dtype,
        "fisher": spec.fisher,
        "layers": [
            {
                "layer": f"{number:03d}",
                "layer_index": shape.layer_index,
                "window": shape.window,
                "softcap": shape.softcap,
            }
            for number, shape in enumerate(layers)
        ],
    }


def _metadata(model: LanguageModel, text: TextTokens, dtype: str) -> DumpMetadata:
    """Root attributes of the dump. Raises OptionError where the layers differ, for which the format has no place."""
    first = model.layers[0]
    for shape in model.layers:
        if shape.key_dim != shape.value_dim:
            raise OptionError(
                f"layer {shape.layer_index} has keys of {shape.key_dim} and values of {shape.value_dim} values; "
                "a dump holds vectors of one size"
            )
        for name in ("n_query_heads", "n_kv_heads", "key_dim", "scale"):
            if getattr(shape, name) != getattr(first, name):
                raise OptionError(
                    f"layer {shape.layer_index} has {name} {getattr(shape, name)}, layer {first.layer_index} has "
                    f"{getattr(first, name)}; a dump holds one for all layers"
                )
    return DumpMetadata(
        logical_dtype=dtype,
        n_layers=len(model.layers),
        n_query_heads=first.n_query_heads,
        n_kv_heads=first.n_kv_heads,
        head_dim=first.key_dim,
        attention_scale=first.scale,
        rope_theta=model.rope_theta,
        model=model.label,
        source=text.name,
        sha256=hashlib.sha256(Path(text.path).read_bytes()).hexdigest(),
    )


def _add_layers(
    writer: DumpWriter, layers: tuple[LayerShape, ...], spec: CaptureSpec, positions: NDArray[np.int64]
) -> dict[int, LayerWriter]:
    writers = {}
    for number, shape in enumerate(layers):
        writers[shape.layer_index] = writer.add_layer(
            f"{number:03d}",
            layer_index=shape.layer_index,
            n_seqs=spec.n_windows,
            n_tokens=spec.context,
            n_rows=len(positions),
            window=shape.window,
            softcap=shape.softcap,
        )
        if len(positions):
            writers[shape.layer_index].write_positions(np.tile(positions, (spec.n_windows, 1)))
    return writers


class _Recorder:
    """Writes what each attention call of one window reads, and lets the model go on."""

    def __init__(
        self,
        writers: dict[int, LayerWriter],
        seq: int,
        positions: NDArray[np.int64],
        advance: Callable[[int], None] | None,
    ) -> None:
        self._writers, self._seq, self._positions, self._advance = writers, seq, positions, advance
        self._written: set[int] = set()

    def __call__(self, call: AttentionCall) -> tuple[Any, Any]:
        layer = self._writers.get(call.layer_index)
        if layer is not None:
            kinds = {"keys": call.keys, "values": call.values}
            if len(self._positions):
                kinds["queries"] = call.queries[:, :, self._positions]
            for kind, tensor in kinds.items():
                for head, vectors in enumerate(tensor[0].float().cpu().numpy()):
                    layer.write(kind, self._seq, head, 0, vectors)
            self._written.add(call.layer_index)
            if self._advance:
                self._advance(call.keys.shape[2])
        return call.plain()

    def check(self) -> None:
        """Raise DataError if a layer was not called."""
        missing = sorted(set(self._writers) - self._written)
        if missing:
            raise DataError(f"layer {missing[0]} of the model did not attend to anything in window {self._seq}")
