"""One step of the Viterbi algorithm over all states for LANES groups at once, written as LLVM vector instructions.

A lane is a group, so that no value ever moves between lanes. States stay in place: the step overwrites the cost of the
2**k states that differ in the k oldest bits with those of the 2**k states that differ in the k newest. Which bits of a
place are the oldest therefore turns with every step: logical bit b of the state after t steps is bit (b + k t) mod L of
its place.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

LANES = 8  # groups that are searched side by side: one AVX2 register of float32
# Indexed by bits: groups of 2**k states written out in the loop's body (as log2), and whose decisions share a word.
UNROLL_LOG2 = (0, 3, 2, 2, 1)
DECISIONS_PER_WORD = (0, 16, 16, 8, 8)
MIN_EXTRA_BITS = 3  # states_log2 is at least bits + this, so that the written-out groups exist

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_LANES_F32, _LANES_I32 = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


def _i64(value: int) -> Any:
    return ir.Constant(_I64, value)


def _lanes(value: int) -> Any:
    return ir.Constant(_LANES_I32, [value] * LANES)


@intrinsic
def add_compare_select(
    typingctx: Any,
    costs: Any,
    table: Any,
    samples: Any,
    weights: Any,
    words: Any,
    branches: Any,
    states_log2: Any,
    oldest: Any,
    n_words: Any,
    blocks_per_word: Any,
) -> Any:
    """Consume one sample of each lane: costs become min over predecessors + (sample - table value)^2.

    costs : float32 (2**L * LANES,); table : float32 (2**L,) in the order of the loop (visiting_order)
    samples : float32 (LANES,); weights : factors float32 (LANES,) of the squared distances, or None for one
    words : int32 (n_words * LANES,), set to the decisions: k bits a group of states
    branches : tuple of 2**k integers, of which only the length matters
    oldest : bit of a place where the oldest bits begin, (k t) mod L
    The sum is rounded after each operation; among equal costs the lowest predecessor wins.
    """
    k = len(branches).bit_length() - 1
    unroll_log2 = UNROLL_LOG2[k]
    size, unroll = 1 << k, 1 << unroll_log2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def data(i: int) -> Any:
            return context.make_array(signature.args[i])(context, builder, args[i]).data

        is_weighted = not isinstance(weights, types.NoneType)
        cost_data, table_data, sample_data, word_data = data(0), data(1), data(2), data(4)
        length, first_bit, word_count, block_count = (
            builder.sext(arg, _I64) if arg.type != _I64 else arg for arg in args[6:10]
        )

        def load(pointer: Any) -> Any:
            loaded = builder.load(builder.bitcast(pointer, _LANES_F32.as_pointer()))
            loaded.align = 4
            return loaded

        def splat(scalar: Any) -> Any:
            single = builder.insert_element(ir.Constant(_LANES_F32, ir.Undefined), scalar, ir.Constant(_I32, 0))
            return builder.shuffle_vector(single, ir.Constant(_LANES_F32, ir.Undefined), _lanes(0))

        sample = load(sample_data)
        weight = load(data(3)) if is_weighted else None

        def groups(base: Any, places: list[Any], slots: list[int], table_start: Any) -> Any:
            """The written-out groups; places[j] : offset of predecessor j, slots[i] : offset of group i."""
            decisions = _lanes(0)
            for slot, slot_place in enumerate(slots):
                pointers = []
                for place in places:
                    index = builder.add(builder.add(base, place), _i64(slot_place))
                    pointers.append(builder.gep(cost_data, [builder.mul(index, _i64(LANES))]))
                best, choice = load(pointers[0]), _lanes(0)
                for j in range(1, size):
                    cost = load(pointers[j])
                    is_less = builder.fcmp_ordered("<", cost, best)
                    best = builder.select(is_less, cost, best)
                    choice = builder.select(is_less, _lanes(j << (k * slot)), choice)
                decisions = builder.or_(decisions, choice)
                for j in range(size):
                    position = builder.add(table_start, _i64(slot * size + j))
                    distance = builder.fsub(sample, splat(builder.load(builder.gep(table_data, [position]))))
                    square = builder.fmul(distance, distance)
                    total = builder.fadd(best, builder.fmul(square, weight) if is_weighted else square)
                    builder.store(total, builder.bitcast(pointers[j], _LANES_F32.as_pointer())).align = 4
            return decisions

        def sweep(place_group: Any, places: list[Any], slots: list[int]) -> None:
            """All groups; place_group(n) : where the first predecessor of group n lies, n a multiple of `unroll`."""
            with cgutils.for_range(builder, word_count) as over_words:
                word = cgutils.alloca_once_value(builder, _lanes(0))
                builder.store(_lanes(0), word)
                with cgutils.for_range(builder, block_count) as over_blocks:
                    block = builder.add(builder.mul(over_words.index, block_count), over_blocks.index)
                    n = builder.shl(block, _i64(unroll_log2))
                    table_start = builder.shl(n, _i64(k))
                    decisions = groups(place_group(n), places, slots, table_start)
                    shift = builder.trunc(builder.mul(over_blocks.index, _i64(k * unroll)), _I32)
                    single = builder.insert_element(_lanes(0), shift, ir.Constant(_I32, 0))
                    shifts = builder.shuffle_vector(single, _lanes(0), _lanes(0))
                    builder.store(builder.or_(builder.load(word), builder.shl(decisions, shifts)), word)
                place = builder.gep(word_data, [builder.mul(over_words.index, _i64(LANES))])
                builder.store(builder.load(word), builder.bitcast(place, _LANES_I32.as_pointer())).align = 4

        # The oldest bits lie below the unrolled ones, among them, above them, or around the ends of the place: each case
        # is written out, so that within a body all distances are constants or one register.
        def low(a: int) -> None:
            slots = [((slot >> a) << (a + k)) | (slot & ((1 << a) - 1)) for slot in range(unroll)]
            sweep(lambda n: builder.shl(n, _i64(k)), [_i64(j << a) for j in range(size)], slots)

        def high() -> None:
            mask = builder.sub(builder.shl(_i64(1), first_bit), _i64(1))
            shift = builder.add(first_bit, _i64(k))

            def place_group(n: Any) -> Any:
                return builder.or_(builder.shl(builder.lshr(n, first_bit), shift), builder.and_(n, mask))

            sweep(place_group, [builder.shl(_i64(j), first_bit) for j in range(size)], list(range(unroll)))

        def around(wrapped: int) -> None:
            top, shift = k - wrapped, builder.sub(length, _i64(k - wrapped))
            places = [builder.or_(builder.shl(_i64(j & ((1 << top) - 1)), shift), _i64(j >> top)) for j in range(size)]
            sweep(lambda n: builder.shl(n, _i64(wrapped)), places, [slot << wrapped for slot in range(unroll)])

        after = builder.append_basic_block("searched")
        cases = [(_i64(a), low, a) for a in range(unroll_log2)]
        cases += [(builder.sub(length, _i64(k - wrapped)), around, wrapped) for wrapped in range(1, k)]
        for value, write, argument in cases:
            with builder.if_then(builder.icmp_signed("==", first_bit, value)):
                write(argument)
                builder.branch(after)
        high()
        builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    signature = types.void(
        costs, table, samples, weights, words, branches, states_log2, oldest, n_words, blocks_per_word
    )
    return signature, codegen


def group_place(group: NDArray[np.int64], bits: int, states_log2: int, oldest: int) -> NDArray[np.int64]:
    """Place of the first of the 2**bits states of each group, in the loop's order."""
    low_bits = oldest if oldest + bits <= states_log2 else 0
    shift = oldest + bits if oldest + bits <= states_log2 else oldest + bits - states_log2
    return ((group >> low_bits) << shift) | (group & ((1 << low_bits) - 1))


def visiting_order(bits: int, states_log2: int) -> NDArray[np.int64]:
    """The states (n_phases, 2**states_log2) whose table values the loop meets, for steps t = 0, 1, ... n_phases - 1."""
    mask, n_phases = (1 << states_log2) - 1, states_log2 // math.gcd(states_log2, bits)
    branch = np.arange(1 << bits)
    order = np.empty((n_phases, 1 << states_log2), np.int64)
    for phase in range(n_phases):
        oldest = bits * phase % states_log2
        offsets = np.zeros(1 << bits, np.int64)
        for bit in range(bits):
            offsets |= ((branch >> bit) & 1) << ((oldest + bit) % states_log2)
        first = group_place(np.arange(1 << (states_log2 - bits)), bits, states_log2, oldest)
        places = (first[:, None] + offsets).ravel()
        turned = bits * (phase + 1) % states_log2
        order[phase] = ((places >> turned) | (places << (states_log2 - turned))) & mask
    return order
