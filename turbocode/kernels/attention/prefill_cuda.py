"""Attention of a long prompt over its packed cache on a GPU, arrays in GPU memory in and out."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from turbocode.errors import OptionError
from turbocode.formats import BlockFormat
from turbocode.kernels import _launch
from turbocode.kernels._cuda import shared_limits
from turbocode.kernels._launch import DeviceArray, device_array, stream_handle
from turbocode.kernels.attention.eight_values import is_known, lookup_of_pairs
from turbocode.kernels.attention.gpu_arrays import LOG2_E, Side, check_arrays, float_bits, open_arrays
from turbocode.kernels.attention.lookup import lookup_words, table_scale
from turbocode.kernels.attention.pages import LEAST_TOKENS
from turbocode.kernels.attention.prefill_kernel import N_ARGS, prefill_kernel
from turbocode.kernels.attention.prefill_variant import WARP, PrefillVariant, prefill_layout
from turbocode.kernels.attention.word_copy import WORD
from turbocode.kernels.fwht.cuda import rotate, unrotate

RESERVED = 1 << 10  # bytes of shared memory that the driver takes of each block
MOST_COPIES = 1 << 15  # bytes of a table beyond which more copies of it are not worth their room
MAX_HEAD_DIM = 256


class PrefillShape(NamedTuple):
    """How a kernel is laid out: tokens of a tile, warps of a block, blocks of a multiprocessor."""

    tile: int
    n_warps: int
    blocks_at_once: int


# Sums and scores of a row take head_dim / 2 + tile / 2 registers of a lane. The first that fits the shared memory.
SHAPES = (PrefillShape(64, 8, 2), PrefillShape(32, 8, 2), PrefillShape(32, 4, 2), PrefillShape(32, 4, 1))
WIDE_SHAPES = (PrefillShape(32, 8, 1), PrefillShape(32, 4, 1), PrefillShape(16, 4, 1))
WIDE = 128  # head_dim from which on sums alone take more than half of 128 registers


def is_known_side(form: BlockFormat, head_dim: int) -> bool:
    """Whether the kernel takes vectors of head_dim values in blocks of a format."""
    return is_known(form) and head_dim % 16 == 0 and head_dim <= MAX_HEAD_DIM


class PrefillAttention:
    """Attention of a prompt over a cache of one pair of formats; see codecs/gpu_prefill.py.

    shape : the layout of the kernel, chosen from the device by default
    """

    def __init__(self, keys: Side, values: Side, head_dim: int, shape: PrefillShape | None = None) -> None:
        self.keys, self.values, self.head_dim, self.shape = keys, values, head_dim, shape
        for side in (keys, values):
            if not is_known_side(side.block_format, head_dim):
                raise OptionError(
                    f"{side.block_format.name} with head_dim {head_dim} has no prefill kernel; allowed are head_dim "
                    f"16, 32, ... to {MAX_HEAD_DIM} in groups whose blocks begin at even bytes",
                    hint="use kernels of decode attention for a few rows at a time: GpuAttention",
                )
        self._words = [
            lookup_words(side.block_format, side.centroids, lookup_of_pairs(side.block_format, 0))
            for side in (keys, values)
        ]
        self._scales = [table_scale(side.block_format, side.centroids) for side in (keys, values)]
        self._on_device: dict[int, list[DeviceArray]] = {}

    def __call__(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        last_token: Any = None,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        first_token: int = 0,
        pages: Any = None,
        gains: Any = None,
        out: Any = None,
        lse: Any = None,
        stream: Any = None,
    ) -> tuple[Any, Any]:
        out, lse, arrays = open_arrays(queries, keys, values, last_token, out, lse, pages, gains)
        n_seqs, n_heads, n_rows = check_arrays(arrays, self.keys, self.values, self.head_dim)
        q, k, _, last, target, _, _, _ = arrays
        if window < 0 or softcap < 0 or first_token < 0 or scale <= 0:
            raise OptionError(
                f"window {window}, softcap {softcap}, first_token {first_token}, scale {scale}: "
                "allowed are numbers from 0 on, a scale above 0"
            )
        if last is None and pages is not None:
            raise OptionError("pages do not say how many tokens a sequence has; give last_token")
        if last is None and n_rows > k.shape[2]:
            raise OptionError(f"{n_rows} rows are more than the cache's {k.shape[2]} tokens; give last_token")
        if 0 in (n_seqs, n_heads, n_rows):
            return out, lse
        handle = stream_handle(stream, q.stream)
        rotated, wanted = self._is_direct(q, self.keys), self._is_direct(target, self.values)
        room = None if rotated and wanted else _launch.empty(q, q.shape, "float16")
        source = q if rotated else device_array(room)
        if not rotated:
            rotate(queries, self.keys.rotation, out=room, stream=handle)
        # A block reads its queries before it writes its outputs, and nobody else reads them.
        result = target if wanted else device_array(room)
        self._launch(arrays, source, result, scale, window, softcap, first_token, handle)
        if not wanted:
            unrotate(room, self.values.rotation, out=out, stream=handle)
        return out, lse

    @staticmethod
    def _is_direct(array: DeviceArray, side: Side) -> bool:
        """Whether the kernel can read or write the array itself: float16 in the basis of the blocks."""
        gaps = [s for s, n in zip(array.strides[:-1], array.shape[:-1], strict=True) if n > 1]
        is_aligned = not any(gap % WORD for gap in gaps) and _launch.number_of(array.pointer) % WORD == 0
        return side.rotation.is_identity and array.dtype == "float16" and is_aligned

    def _launch(
        self,
        arrays: list[Any],
        source: DeviceArray,
        target: DeviceArray,
        scale: float,
        window: int,
        softcap: float,
        first_token: int,
        stream: int,
    ) -> None:
        q, k, v, last, _, lse, pages, gains = arrays
        n_seqs, n_heads, n_rows, _ = q.shape
        n_kv_heads, n_tokens = k.shape[1:3]
        is_paged, page_tokens = pages is not None, k.shape[2]
        if is_paged:
            n_tokens = pages.shape[1] * page_tokens
        per_head = n_heads // n_kv_heads
        starts = [_launch.number_of(side.pointer) for side in (k, v)]
        gaps = [s for side in (k, v) for s, n in zip(side.strides[:2], side.shape[:2], strict=True) if n > 1]
        is_late = any(number % WORD for number in (*starts, *gaps))
        if any(number % 2 for number in (*starts, *gaps)):
            raise OptionError(f"blocks begin at strides {gaps}; allowed are even numbers of bytes")
        if is_paged and (is_late or page_tokens % LEAST_TOKENS or page_tokens & (page_tokens - 1)):
            raise OptionError(
                f"pages of {page_tokens} tokens whose rows begin at strides {gaps}: allowed are 16, 32, 64, ... tokens "
                "and multiples of 16 bytes"
            )
        variant = self._variant(q.device, is_late, softcap > 0, is_paged)
        tables = self._on_device.get(q.device)
        if tables is None:
            tables = self._on_device[q.device] = [_launch.upload(words, q.device) for words in self._words]
        factor = (scale / softcap if softcap else scale * LOG2_E) / self._scales[0]
        args = (
            *(source.pointer, target.pointer, lse.pointer, k.pointer, v.pointer),
            *(tables[0].pointer, tables[1].pointer, 0 if last is None else last.pointer),
            *(0 if gains is None else gains.pointer, pages.pointer if is_paged else 0),
            *(n_seqs, n_kv_heads, per_head, n_rows, n_tokens, first_token, max(n_tokens - n_rows, 0), window),
            *source.strides[:3],
            *target.strides[:3],
            *(*k.strides[:2], *v.strides[:2]),
            *(4 * words.shape[1] if len(words) > 1 else 0 for words in self._words),
            *(float_bits(factor), float_bits(softcap * LOG2_E), float_bits(1 / self._scales[1])),
            *(int(last is not None), int(gains is not None)),
            *((pages.strides[0] // 4, page_tokens.bit_length() - 1) if is_paged else (0, 0)),
        )
        assert len(args) == N_ARGS
        grid = -(-per_head * n_rows // variant.rows) * n_kv_heads * n_seqs
        size = prefill_layout(variant).size
        _launch.launch(prefill_kernel(variant), grid, WARP * variant.n_warps, q.device, stream, args, shared_bytes=size)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - as many as there are devices and options, for as long as it lives
    def _variant(self, device: int, is_late: bool, has_softcap: bool, is_paged: bool) -> PrefillVariant:
        """The variant with the layout and the copies of tables that the device's shared memory holds."""
        forms = self.keys.block_format, self.values.block_format
        per_block, per_multiprocessor = shared_limits(device)
        is_same = self._words[0].shape == self._words[1].shape and bool((self._words[0] == self._words[1]).all())
        shapes = (self.shape,) if self.shape else WIDE_SHAPES if self.head_dim > WIDE else SHAPES
        for shape in shapes:
            most = MOST_COPIES
            while True:
                found = PrefillVariant(
                    *forms,
                    self.head_dim,
                    lookup_of_pairs(forms[0], most),
                    lookup_of_pairs(forms[1], most),
                    is_same,
                    shape.tile,
                    shape.n_warps,
                    shape.blocks_at_once,
                    is_late,
                    has_softcap,
                    is_paged,
                )
                room = min(per_block, per_multiprocessor // shape.blocks_at_once - RESERVED)
                if prefill_layout(found).size <= room:
                    return found
                if most == 0:
                    break
                most = most // 2 if most > 1024 else 0
        raise OptionError(
            f"{forms[0].name} and {forms[1].name} need {prefill_layout(found).size} bytes of shared memory; this GPU "
            f"has {per_block} a block"
        )
