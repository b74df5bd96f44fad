"""One step of the Viterbi algorithm over all states for LANES groups at once, written as LLVM vector instructions.

A lane is a group, so that no value ever moves between lanes. States stay in place: the step overwrites the cost of the
2**k states that differ in the k oldest bits with those of the 2**k states that differ in the k newest. Which bits of a
place are the oldest therefore turns with every step: logical bit b of the state after t steps is bit (b + k t) mod L of
its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_LANES_F32, _LANES_I32 = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


def _i64(value: int) -> Any:
    return ir.Constant(_I64, value)


def _lanes(value: int) -> Any:
    return ir.Constant(_LANES_I32, [value] * LANES)


class _Step:
    """The body of the function that steps through all states, for k bits, being written with `builder`."""

    def __init__(self, function: Any, k: int, is_weighted: bool) -> None:
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.function, self.k, self.is_weighted = function, k, is_weighted
        self.size, self.unroll_log2 = 1 << k, UNROLL_LOG2[k]
        self.costs, self.table, samples, weights, self.words, *self.numbers = function.args
        self.sample = self.load(samples)
        self.weight = self.load(weights) if is_weighted else None

    def load(self, pointer: Any) -> Any:
        loaded = self.builder.load(self.builder.bitcast(pointer, _LANES_F32.as_pointer()))
        loaded.align = 4
        return loaded

    def splat(self, scalar: Any, lanes: Any) -> Any:
        nothing = ir.Constant(lanes, ir.Undefined)
        single = self.builder.insert_element(nothing, scalar, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(single, nothing, _lanes(0))

    def groups(self, base: Any, places: list[Any], slots: list[int], table_start: Any) -> Any:
        """Decisions of the written-out groups; places[j] : offset of predecessor j, slots[i] : offset of group i."""
        builder, decisions = self.builder, _lanes(0)
        for slot, slot_place in enumerate(slots):
            pointers = []
            for place in places:
                index = builder.add(builder.add(base, place), _i64(slot_place))
                pointers.append(builder.gep(self.costs, [builder.mul(index, _i64(LANES))]))
            best, choice = self.load(pointers[0]), _lanes(0)
            for j in range(1, self.size):
                cost = self.load(pointers[j])
                is_less = builder.fcmp_ordered("<", cost, best)
                best = builder.select(is_less, cost, best)
                choice = builder.select(is_less, _lanes(j << (self.k * slot)), choice)
            decisions = builder.or_(decisions, choice)
            for j in range(self.size):
                position = builder.add(table_start, _i64(slot * self.size + j))
                value = self.splat(builder.load(builder.gep(self.table, [position])), _LANES_F32)
                distance = builder.fsub(self.sample, value)
                square = builder.fmul(distance, distance)
                total = builder.fadd(best, builder.fmul(square, self.weight) if self.is_weighted else square)
                builder.store(total, builder.bitcast(pointers[j], _LANES_F32.as_pointer())).align = 4
        return decisions

    def sweep(self, place_group: Callable[[Any], Any], places: list[Any], slots: list[int]) -> None:
        """All groups, then return; place_group(n) : place of the first state of group n, n unrolled."""
        builder = self.builder
        word_count, block_count = self.numbers[2:]
        word = cgutils.alloca_once_value(builder, _lanes(0))
        with cgutils.for_range(builder, word_count) as over_words:
            builder.store(_lanes(0), word)
            with cgutils.for_range(builder, block_count) as over_blocks:
                block = builder.add(builder.mul(over_words.index, block_count), over_blocks.index)
                n = builder.shl(block, _i64(self.unroll_log2))
                decisions = self.groups(place_group(n), places, slots, builder.shl(n, _i64(self.k)))
                shift = builder.trunc(builder.mul(over_blocks.index, _i64(self.k << self.unroll_log2)), _I32)
                shifted = builder.shl(decisions, self.splat(shift, _LANES_I32))
                builder.store(builder.or_(builder.load(word), shifted), word)
            stored = builder.gep(self.words, [builder.mul(over_words.index, _i64(LANES))])
            builder.store(builder.load(word), builder.bitcast(stored, _LANES_I32.as_pointer())).align = 4
        builder.ret_void()

    # The oldest bits lie below the unrolled ones, among them, above them, or around the ends of the place: each case is
    # written out, so that within a body all distances are constants or one register.
    def low(self, a: int) -> None:
        builder, k = self.builder, self.k
        slots = [((slot >> a) << (a + k)) | (slot & ((1 << a) - 1)) for slot in range(1 << self.unroll_log2)]
        self.sweep(lambda n: builder.shl(n, _i64(k)), [_i64(j << a) for j in range(self.size)], slots)

    def high(self) -> None:
        builder, oldest = self.builder, self.numbers[1]
        mask = builder.sub(builder.shl(_i64(1), oldest), _i64(1))
        shift = builder.add(oldest, _i64(self.k))

        def place_group(n: Any) -> Any:
            return builder.or_(builder.shl(builder.lshr(n, oldest), shift), builder.and_(n, mask))

        places = [builder.shl(_i64(j), oldest) for j in range(self.size)]
        self.sweep(place_group, places, list(range(1 << self.unroll_log2)))

    def around(self, wrapped: int) -> None:
        builder, top = self.builder, self.k - wrapped
        shift = builder.sub(self.numbers[0], _i64(top))
        places = [builder.or_(builder.shl(_i64(j & ((1 << top) - 1)), shift), _i64(j >> top)) for j in range(self.size)]
        slots = [slot << wrapped for slot in range(1 << self.unroll_log2)]
        self.sweep(lambda n: builder.shl(n, _i64(wrapped)), places, slots)

    def write(self) -> None:
        """All cases of where the oldest bits lie."""
        builder = self.builder
        length, oldest = self.numbers[:2]
        for a in range(self.unroll_log2):
            with builder.if_then(builder.icmp_signed("==", oldest, _i64(a))):
                self.low(a)
        for wrapped in range(1, self.k):
            begins = builder.sub(length, _i64(self.k - wrapped))
            with builder.if_then(builder.icmp_signed("==", oldest, begins)):
                self.around(wrapped)
        self.high()


def _step_function(module: Any, k: int, is_weighted: bool) -> Any:
    """The function that steps through all states, written into an LLVM module once and never inlined."""
    name = f"turbocode_add_compare_select_{k}{'_weighted' if is_weighted else ''}"
    known = module.globals.get(name)
    if known is not None:
        return known
    floats = _F32.as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [floats] * 4 + [_I32.as_pointer()] + [_I64] * 4)
    function = ir.Function(module, signature, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    for pointer in function.args[:5]:
        pointer.add_attribute("noalias")
    _Step(function, k, is_weighted).write()
    return function


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
    is_weighted = not isinstance(weights, types.NoneType)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def data(i: int) -> Any:
            return context.make_array(signature.args[i])(context, builder, args[i]).data

        pointers = [data(i) for i in (0, 1, 2, 3 if is_weighted else 2, 4)]
        numbers = [builder.sext(arg, _I64) if arg.type != _I64 else arg for arg in args[6:10]]
        builder.call(_step_function(builder.module, k, is_weighted), [*pointers, *numbers])
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
