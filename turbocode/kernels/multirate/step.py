"""One step of the Viterbi algorithm at any rate for LANES vectors at once, written as LLVM vector instructions.

A lane is a vector. Costs are read from one array and written to another, since the states that a step joins lie side by
side in the first and a constant apart in the second, whatever the rates before were.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from turbocode.formats.multirate_format import MAX_RATE, MULTIRATE_STATES_LOG2

LANES = 8  # vectors that are searched side by side: one register of float32
N_STATES = 1 << MULTIRATE_STATES_LOG2
# Indexed by rate, as log2: groups of states whose decisions share a word of 32 bits.
GROUPS_PER_WORD_LOG2 = np.array([0, 4, 4, 3, 3, 2, 2, 2, 2])
MAX_WORDS = 32  # a step's decisions take at most so many words a lane
_WRITTEN_OUT_LOG2 = 3  # at most 2**3 states are written out in a loop's body

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_LANES_F32, _LANES_I32 = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


def _i64(value: int) -> Any:
    return ir.Constant(_I64, value)


class _Rate:
    """The code for one rate, being written with `builder` into the step's function."""

    def __init__(self, builder: Any, k: int, arguments: Any) -> None:
        self.builder, self.k = builder, k
        self.before, self.after, self.table, sample, weight, self.words = arguments
        self.sample, self.weight = self.load(sample), self.splat(builder.load(weight), _LANES_F32)
        self.n_groups = N_STATES >> k
        self.block = min(1 << k, 1 << _WRITTEN_OUT_LOG2)

    def load(self, pointer: Any) -> Any:
        loaded = self.builder.load(self.builder.bitcast(pointer, _LANES_F32.as_pointer()))
        loaded.align = 4
        return loaded

    def splat(self, scalar: Any, lanes: Any) -> Any:
        nothing = ir.Constant(lanes, ir.Undefined)
        single = self.builder.insert_element(nothing, scalar, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(single, nothing, ir.Constant(_LANES_I32, [0] * LANES))

    def cost_at(self, costs: Any, state: Any) -> Any:
        return self.builder.gep(costs, [self.builder.mul(state, _i64(LANES))])

    def least(self, costs: list[Any], numbers: list[Any]) -> tuple[Any, Any]:
        """(least cost, its number) of neighbours pair by pair; the lower one wins where they are equal."""
        builder = self.builder
        while len(costs) > 1:
            pairs = range(0, len(costs), 2)
            is_less = [builder.fcmp_ordered("<", costs[i + 1], costs[i]) for i in pairs]
            numbers = [builder.select(less, numbers[i + 1], numbers[i]) for less, i in zip(is_less, pairs, strict=True)]
            costs = [builder.select(less, costs[i + 1], costs[i]) for less, i in zip(is_less, pairs, strict=True)]
        return costs[0], numbers[0]

    def arrive(self, group: Any) -> tuple[Any, Any]:
        """(least cost, branch) over the predecessors of a group, which lie side by side."""
        builder = self.builder
        first = builder.shl(group, _i64(self.k))
        numbers = [ir.Constant(_LANES_I32, [i] * LANES) for i in range(self.block)]

        def block_at(start: Any) -> tuple[Any, Any]:
            states = [builder.add(first, builder.add(start, _i64(i))) for i in range(self.block)]
            return self.least([self.load(self.cost_at(self.before, state)) for state in states], numbers)

        cost, branch = block_at(_i64(0))
        if self.block == 1 << self.k:
            return cost, branch
        best, choice = cgutils.alloca_once_value(builder, cost), cgutils.alloca_once_value(builder, branch)
        with cgutils.for_range(builder, _i64((1 << self.k) // self.block - 1)) as more:
            start = builder.mul(builder.add(more.index, _i64(1)), _i64(self.block))
            cost, branch = block_at(start)
            branch = builder.add(branch, self.splat(builder.trunc(start, _I32), _LANES_I32))
            known = builder.load(best)
            is_less = builder.fcmp_ordered("<", cost, known)
            builder.store(builder.select(is_less, cost, known), best)
            builder.store(builder.select(is_less, branch, builder.load(choice)), choice)
        return builder.load(best), builder.load(choice)

    def leave(self, group: Any, arrived: Any) -> None:
        """Write the costs of the states that the group's branches lead to."""
        builder = self.builder

        def state_at(branch: Any) -> None:
            state = builder.add(group, builder.mul(branch, _i64(self.n_groups)))
            value = self.splat(builder.load(builder.gep(self.table, [state])), _LANES_F32)
            distance = builder.fsub(self.sample, value)
            square = builder.fmul(builder.fmul(distance, distance), self.weight)
            place = builder.bitcast(self.cost_at(self.after, state), _LANES_F32.as_pointer())
            builder.store(builder.fadd(arrived, square), place).align = 4

        if self.block == 1 << self.k:
            for branch in range(self.block):
                state_at(_i64(branch))
            return
        with cgutils.for_range(builder, _i64((1 << self.k) // self.block)) as more:
            start = builder.mul(more.index, _i64(self.block))
            for i in range(self.block):
                state_at(builder.add(start, _i64(i)))

    def write(self) -> None:
        """The loop over all groups, word by word of decisions."""
        builder = self.builder
        shared = int(GROUPS_PER_WORD_LOG2[self.k])
        word = cgutils.alloca_once_value(builder, ir.Constant(_LANES_I32, [0] * LANES))
        with cgutils.for_range(builder, _i64(self.n_groups >> shared)) as over_words:
            first = builder.shl(over_words.index, _i64(shared))
            builder.store(ir.Constant(_LANES_I32, [0] * LANES), word)
            with cgutils.for_range(builder, _i64(1 << shared)) as over_slots:
                group = builder.add(first, over_slots.index)
                arrived, branch = self.arrive(group)
                self.leave(group, arrived)
                shift = builder.trunc(builder.mul(over_slots.index, _i64(self.k)), _I32)
                shifted = builder.shl(branch, self.splat(shift, _LANES_I32))
                builder.store(builder.or_(builder.load(word), shifted), word)
            place = builder.gep(self.words, [builder.mul(over_words.index, _i64(LANES))])
            builder.store(builder.load(word), builder.bitcast(place, _LANES_I32.as_pointer())).align = 4
        builder.ret_void()


def _step_function(module: Any) -> Any:
    """The step's function, written into an LLVM module once and never inlined."""
    name = "turbocode_multirate_step"
    known = module.globals.get(name)
    if known is not None:
        return known
    floats = _F32.as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [floats] * 5 + [_I32.as_pointer(), _I64]), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    for pointer in function.args[:6]:
        pointer.add_attribute("noalias")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    nothing = function.append_basic_block("no_rate")
    switch = builder.switch(function.args[6], nothing)
    ir.IRBuilder(nothing).ret_void()
    for k in range(1, MAX_RATE + 1):
        block = function.append_basic_block(f"rate_{k}")
        switch.add_case(_i64(k), block)
        _Rate(ir.IRBuilder(block), k, function.args[:6]).write()
    return function


@intrinsic
def multirate_step(
    typingctx: Any, before: Any, after: Any, table: Any, samples: Any, weight: Any, words: Any, rate: Any
) -> Any:
    """Consume one sample of each lane: after = min over predecessors of before + (sample - table value)^2 * weight.

    before, after : costs float32 (2**10 * LANES,); table : float32 (2**10,) of the rate
    samples : float32 (LANES,); weight : float32 (1,)
    words : int32 (MAX_WORDS * LANES,), set to the decisions, `rate` bits a group of states
    Each operation is rounded; among equal costs the lowest predecessor wins.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = [context.make_array(signature.args[i])(context, builder, args[i]).data for i in range(6)]
        number = builder.sext(args[6], _I64) if args[6].type != _I64 else args[6]
        builder.call(_step_function(builder.module), [*pointers, number])
        return context.get_dummy_value()

    return types.void(before, after, table, samples, weight, words, rate), codegen
