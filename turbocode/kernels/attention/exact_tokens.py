"""Kernels that keep the first and the latest tokens of a cache in float16 and hand runs of them on to the encoder.

A sequence's exact tokens lie side by side: its first `sinks` tokens, then the tail, the tokens behind the packed ones.
How many tokens a sequence has, and how many of them are packed, stands in GPU memory and is changed there, so that a
captured graph of a step goes on working. A block handles one KV head of one sequence.
"""

from __future__ import annotations

import functools
from typing import Any

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import cuda, kernel, types
from turbocode.kernels.fwht.lanes import BFLOAT16, FLOAT16, FLOAT32, VALUE_BYTES

THREADS = 128
N_PLACE_ARGS, N_TAKE_ARGS, N_SETTLE_ARGS = 13, 13, 13
# What `settle` does, added up.
COUNT, MOVE, PLAN, ROWS = 1, 2, 4, 8
NEVER = 1 << 30  # a start beyond every cache: the encoder writes nothing

int32, uint32, uint64 = types.int32, types.uint32, types.uint64
_HALF_BYTES = 2


@functools.cache
def place_kernel(source_type: int) -> Any:
    """The kernel that copies new tokens to where exact ones lie, as float16. Types are of fwht/lanes.py. Arguments:

    source (n_seqs, n_heads, n_tokens, head_dim), target float16 (n_seqs, n_heads, capacity, head_dim); lengths, packed,
    counts : int32 (n_seqs,), tokens before, tokens that are packed, new tokens (0: n_tokens of each); counts; strides
    of the source in bytes. A token that is packed, or lies beyond the capacity, is left out.
    """
    size = VALUE_BYTES[source_type]

    @kernel(launch_bounds=(THREADS, 4))
    def place(
        source: Any, target: Any, lengths: Any, packed: Any, counts: Any, n_heads: Any, n_tokens: Any, head_dim: Any,
        capacity: Any, sinks: Any, source_seq: Any, source_head: Any, source_token: Any,
    ) -> None:  # fmt: skip
        block, thread, d = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x), uint32(head_dim)
        seq = uint32(block // uint32(n_heads))
        head = uint32(block - uint32(seq * uint32(n_heads)))
        length = int32(_ptx.load_u32(lengths + uint64(seq) * uint64(4)))
        n_packed = int32(_ptx.load_u32(packed + uint64(seq) * uint64(4)))
        count = int32(n_tokens)
        if counts != uint64(0):
            count = min(int32(_ptx.load_u32(counts + uint64(seq) * uint64(4))), count)
        first_tail = int32(int32(sinks) + n_packed)
        early = min(max(int32(int32(sinks) - length), int32(0)), count)  # new tokens among the sinks
        late = max(min(max(int32(first_tail - length), int32(0)), count), early)  # the first one behind the packed
        n = uint64(int32(early + int32(count - late))) * head_dim
        i = uint64(thread)
        while i < n:
            number = uint32(i // head_dim)
            channel = uint32(i - uint64(number) * head_dim)
            token = int32(number)
            slot = int32(length + token)
            if token >= early:
                token = int32(int32(token + late) - early)
                slot = int32(int32(length + token) - n_packed)
            if slot < int32(capacity):
                row = uint64(seq) * source_seq + uint64(head) * source_head + uint64(token) * source_token
                address = source + (row + uint64(channel) * uint64(size))
                if source_type == FLOAT16:
                    stored = _ptx.load_u16(address)
                elif source_type == BFLOAT16:
                    stored = _ptx.pack_halves(
                        _ptx.float_from_bits(uint32(_ptx.load_u16(address) << uint32(16))), types.float32(0)
                    )
                else:
                    stored = _ptx.pack_halves(_ptx.load_f32(address), types.float32(0))
                place = (uint64(block) * capacity + uint64(slot)) * uint64(d) + uint64(channel)
                _ptx.store_u16(target + place * uint64(_HALF_BYTES), uint32(stored & uint32(0xFFFF)))
            i = i + uint64(THREADS)

    assert source_type in (FLOAT16, BFLOAT16, FLOAT32)
    return place


@functools.cache
def take_kernel() -> Any:
    """The kernel that takes the oldest run of the tail out, where the tail is longer than recent + run. Arguments:

    exact float16 (n_seqs, n_heads, capacity, head_dim), staged float16 (n_seqs, n_heads, run, head_dim); lengths,
    packed as above; starts int32 (n_seqs,) : becomes where the run goes among the packed tokens, NEVER if none does
    """

    @kernel(launch_bounds=(THREADS, 4))
    def take(
        exact: Any, staged: Any, lengths: Any, packed: Any, starts: Any, n_heads: Any, head_dim: Any, capacity: Any,
        sinks: Any, recent: Any, run: Any, never: Any, is_first_side: Any,
    ) -> None:  # fmt: skip
        block, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
        seq = uint32(block // uint32(n_heads))
        length = int32(_ptx.load_u32(lengths + uint64(seq) * uint64(4)))
        n_packed = int32(_ptx.load_u32(packed + uint64(seq) * uint64(4)))
        tail = int32(int32(length - int32(sinks)) - n_packed)
        is_due = tail >= int32(recent + run)
        if is_first_side != uint64(0) and thread == uint32(0) and block == uint32(seq * uint32(n_heads)):
            _ptx.store_u32(starts + uint64(seq) * uint64(4), uint32(n_packed) if is_due else uint32(never))
        if is_due:
            words = uint64(head_dim) // uint64(2)  # of two values
            row_words = uint64(run) * words
            begin = exact + (uint64(block) * capacity + sinks) * words * uint64(4)
            target = staged + uint64(block) * row_words * uint64(4)
            i = uint64(thread)
            while i < row_words:
                _ptx.store_u32(target + i * uint64(4), _ptx.load_u32(begin + i * uint64(4)))
                i = i + uint64(THREADS)
            left = uint64(int32(tail - int32(run))) * words
            base = uint64(0)
            cuda.syncthreads()
            while base < left:  # in order, since the places overlap
                i = base + uint64(thread)
                word = uint32(0)
                if i < left:
                    word = _ptx.load_u32(begin + (row_words + i) * uint64(4))
                cuda.syncthreads()
                if i < left:
                    _ptx.store_u32(begin + i * uint64(4), word)
                cuda.syncthreads()
                base = base + uint64(THREADS)

    return take


@functools.cache
def settle_kernel() -> Any:
    """The kernel of one block that brings the numbers of all sequences up to date, as `what` says. Arguments:

    lengths, packed, starts, counts as above; PLAN : packed becomes the whole runs of an empty cache's new tokens that
    are neither sinks nor recent; COUNT : lengths grow; MOVE : packed grows where a run was taken out
    ROWS : int32 (n_seqs, n_rows) of the latest n_rows tokens: the last packed and the last exact token that each sees
    """

    @kernel(launch_bounds=(THREADS, 1))
    def settle(
        lengths: Any, packed: Any, starts: Any, counts: Any, rows_packed: Any, rows_exact: Any, n_seqs: Any,
        n_tokens: Any, n_rows: Any, sinks: Any, recent: Any, run: Any, what: Any,
    ) -> None:  # fmt: skip
        seq, todo = uint32(cuda.threadIdx.x), uint32(what)
        while uint64(seq) < n_seqs:
            offset = uint64(seq) * uint64(4)
            length = int32(_ptx.load_u32(lengths + offset))
            n_packed = int32(_ptx.load_u32(packed + offset))
            if (todo & uint32(COUNT)) != uint32(0):
                count = int32(n_tokens)
                if counts != uint64(0):
                    count = min(int32(_ptx.load_u32(counts + offset)), count)
                length = int32(length + count)
                _ptx.store_u32(lengths + offset, uint32(length))
            if (todo & uint32(PLAN)) != uint32(0):
                count = int32(n_tokens)
                if counts != uint64(0):
                    count = min(int32(_ptx.load_u32(counts + offset)), count)
                spare = max(int32(int32(count - int32(sinks)) - int32(recent)), int32(0))
                n_packed = int32(spare - int32(spare % int32(run)))
                _ptx.store_u32(packed + offset, uint32(n_packed))
            if (todo & uint32(MOVE)) != uint32(0) and _ptx.load_u32(starts + offset) != uint32(NEVER):
                n_packed = int32(n_packed + int32(run))
                _ptx.store_u32(packed + offset, uint32(n_packed))
            if (todo & uint32(ROWS)) != uint32(0):
                row = uint32(0)
                while row < uint32(n_rows):
                    last = int32(int32(length - int32(n_rows)) + int32(row))
                    behind = int32(last - int32(sinks))  # among the tokens that are no sinks
                    seen = max(min(behind, int32(n_packed - int32(1))), int32(-1))
                    exact = max(last, int32(-1))
                    if behind >= n_packed:
                        exact = max(int32(last - n_packed), int32(-1))
                    elif behind >= int32(0):
                        exact = int32(int32(sinks) - int32(1))
                    place = (uint64(seq) * n_rows + uint64(row)) * uint64(4)
                    _ptx.store_u32(rows_packed + place, uint32(seen))
                    _ptx.store_u32(rows_exact + place, uint32(exact))
                    row = uint32(row + uint32(1))
            seq = uint32(seq + uint32(THREADS))

    return settle
