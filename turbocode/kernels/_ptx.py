"""PTX instructions as functions for kernels, each with its meaning in Python, which the simulator runs.

`instruction` makes one from a line of PTX (ISA 9.0). Global memory is read and written through addresses: uint64
numbers in compiled code, `_cuda.Address` objects in the simulator; both allow `address + bytes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from turbocode.kernels import _cuda
from turbocode.kernels._cuda import IS_SIMULATED, types

u16, u32, i32, u64, f32 = types.uint16, types.uint32, types.int32, types.uint64, types.float32
_CONSTRAINTS = {u16: "h", types.int16: "h", u32: "r", i32: "r", u64: "l", types.int64: "l", f32: "f"}


def instruction(
    ptx: str,
    returns: Any,
    takes: tuple[Any, ...],
    meaning: Callable[..., Any],
    *,
    touches_memory: bool = False,
    is_collective: bool = False,
) -> Any:
    """A device function that is one PTX statement; in the simulator `meaning`.

    ptx : operands are $0, $1, ...: outputs first, then inputs
    returns : None, a type, or a tuple of equal types
    touches_memory : never merged with another, dropped or moved across another that touches memory
    is_collective : all lanes of a warp run it together
    """
    if IS_SIMULATED:
        return meaning
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    outputs = () if returns is None else returns if isinstance(returns, tuple) else (returns,)
    result = (
        types.void if returns is None else types.UniTuple(returns[0], len(returns)) if outputs is returns else returns
    )
    constraints = ",".join(["=" + _CONSTRAINTS[t] for t in outputs] + [_CONSTRAINTS[t] for t in takes])
    if touches_memory:
        constraints += ",~{memory}" if constraints else "~{memory}"

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out = [context.get_value_type(t) for t in outputs]
        out_type = ir.VoidType() if not out else out[0] if len(out) == 1 else ir.LiteralStructType(out)
        function = ir.FunctionType(out_type, [context.get_value_type(t) for t in takes])
        statement = ir.InlineAsm(function, ptx, constraints, side_effect=touches_memory or is_collective)
        value = builder.call(statement, args, attrs=("convergent",) if is_collective else ())
        if returns is None:
            return context.get_dummy_value()
        if outputs is not returns:
            return value
        return context.make_tuple(builder, result, [builder.extract_value(value, i) for i in range(len(out))])

    # Numba asks for a typing function of exactly as many parameters.
    names = ", ".join(["typingctx", *(f"a{i}" for i in range(len(takes)))])
    scope: dict[str, Any] = {"answer": (result(*takes), generate)}
    exec(f"def typing({names}):\n    return answer", scope)
    found = intrinsic(scope["typing"])
    found.ptx = ptx, constraints, str(result), touches_memory, is_collective  # what it is, for _kernel_cache.py
    return found


def _bits(value: Any, dtype: type, of: type) -> Any:
    return np.array(value).astype(of).view(dtype)[()]


def _u32(value: Any) -> np.uint32:
    return np.uint32(int(value) & 0xFFFFFFFF)


# Bit patterns.
float_bits = instruction("mov.b32 $0, $1;", u32, (f32,), lambda x: _bits(x, np.uint32, np.float32))
float_from_bits = instruction("mov.b32 $0, $1;", f32, (u32,), lambda x: _bits(_u32(x), np.float32, np.uint32))


def _half(bits: Any) -> np.float32:
    return np.float32(np.uint16(int(bits) & 0xFFFF).view(np.float16))


def _to_half(value: Any) -> int:
    with np.errstate(over="ignore"):
        return int(np.float32(value).astype(np.float16).view(np.uint16))


# float16 and bfloat16, two to a register, the first in the low half.
low_half = instruction("{.reg .b16 l, h; mov.b32 {l, h}, $1; cvt.f32.f16 $0, l;}", f32, (u32,), lambda x: _half(int(x)))
high_half = instruction(
    "{.reg .b16 l, h; mov.b32 {l, h}, $1; cvt.f32.f16 $0, h;}", f32, (u32,), lambda x: _half(int(x) >> 16)
)
pack_halves = instruction(
    "cvt.rn.f16x2.f32 $0, $2, $1;", u32, (f32, f32), lambda low, high: _u32(_to_half(low) | _to_half(high) << 16)
)


def _to_bfloat(value: Any) -> int:
    bits = int(np.float32(value).view(np.uint32))
    if bits & 0x7FFFFFFF > 0x7F800000:
        return 0x7FFF
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF


pack_bfloats = instruction(
    "cvt.rn.bf16x2.f32 $0, $2, $1;", u32, (f32, f32), lambda low, high: _u32(_to_bfloat(low) | _to_bfloat(high) << 16)
)


# Arithmetic that the compiler neither fuses nor reorders.
def _rounded(operation: Callable[..., Any]) -> Callable[..., np.float32]:
    def compute(*args: Any) -> np.float32:
        with np.errstate(all="ignore"):
            return np.float32(operation(*(np.float32(a) for a in args)))

    return compute


add = instruction("add.rn.f32 $0, $1, $2;", f32, (f32, f32), _rounded(lambda a, b: a + b))
subtract = instruction("sub.rn.f32 $0, $1, $2;", f32, (f32, f32), _rounded(lambda a, b: a - b))
multiply = instruction("mul.rn.f32 $0, $1, $2;", f32, (f32, f32), _rounded(lambda a, b: a * b))


def _toward_zero(a: Any, b: Any) -> np.float32:
    exact = np.float64(np.float32(a)) + np.float64(np.float32(b))
    near = np.float32(exact)
    return np.nextafter(near, np.float32(0)) if abs(np.float64(near)) > abs(exact) else near


add_toward_zero = instruction("add.rz.f32 $0, $1, $2;", f32, (f32, f32), _toward_zero)
minimum = instruction("min.f32 $0, $1, $2;", f32, (f32, f32), _rounded(np.fmin))
divide = instruction("div.rn.f32 $0, $1, $2;", f32, (f32, f32), _rounded(lambda a, b: a / b))
square_root = instruction("sqrt.rn.f32 $0, $1;", f32, (f32,), _rounded(np.sqrt))
multiply_add = instruction(
    "fma.rn.f32 $0, $1, $2, $3;",
    f32,
    (f32, f32, f32),
    _rounded(lambda a, b, c: np.float64(a) * np.float64(b) + np.float64(c)),
)
multiply_add_saturated = instruction(
    "fma.rn.sat.f32 $0, $1, $2, $3;",
    f32,
    (f32, f32, f32),
    _rounded(lambda a, b, c: np.nan_to_num(np.clip(np.float64(a) * np.float64(b) + np.float64(c), 0.0, 1.0))),
)
# To about 22 bits, subnormal numbers being 0.
inverse_root = instruction("rsqrt.approx.ftz.f32 $0, $1;", f32, (f32,), _rounded(lambda a: 1 / np.sqrt(np.float64(a))))
reciprocal = instruction("rcp.approx.ftz.f32 $0, $1;", f32, (f32,), _rounded(lambda a: 1 / np.float64(a)))
truncate = instruction("cvt.rzi.f32.f32 $0, $1;", f32, (f32,), _rounded(np.trunc))
to_int = instruction(
    "cvt.rzi.s32.f32 $0, $1;", i32, (f32,), lambda x: np.int32(np.clip(np.nan_to_num(x), -(2.0**31), 2.0**31 - 1))
)
from_int = instruction("cvt.rn.f32.s32 $0, $1;", f32, (i32,), np.float32)


# Global memory.
def _load(dtype: type) -> Callable[[Any], Any]:
    return lambda address: address.read(dtype, 1)[0].item() if dtype is not np.float32 else address.read(dtype, 1)[0]


def _load_words(count: int) -> Callable[[Any], tuple[int, ...]]:
    return lambda address: tuple(address.read(np.uint32, count).tolist())


def _store(dtype: type) -> Callable[..., None]:
    return lambda address, *values: address.write(dtype, values)


load_u8 = instruction(
    "{.reg .u16 t; ld.global.u8 t, [$1]; cvt.u32.u16 $0, t;}", u32, (u64,), _load(np.uint8), touches_memory=True
)
load_u16 = instruction(
    "{.reg .u16 t; ld.global.u16 t, [$1]; cvt.u32.u16 $0, t;}", u32, (u64,), _load(np.uint16), touches_memory=True
)
load_u32 = instruction("ld.global.u32 $0, [$1];", u32, (u64,), _load(np.uint32), touches_memory=True)
load_f32 = instruction("ld.global.f32 $0, [$1];", f32, (u64,), _load(np.float32), touches_memory=True)
# Read once and left out of the first cache; the memory must not change while the kernel runs.
stream_u32x4 = instruction(
    "ld.global.nc.L1::no_allocate.v4.u32 {$0, $1, $2, $3}, [$4];",
    (u32,) * 4,
    (u64,),
    _load_words(4),
)
store_u8 = instruction(
    "{.reg .u16 t; cvt.u16.u32 t, $1; st.global.u8 [$0], t;}",
    None,
    (u64, u32),
    lambda a, v: a.write(np.uint8, (int(v) & 0xFF,)),
    touches_memory=True,
)
store_u16 = instruction(
    "{.reg .u16 t; cvt.u16.u32 t, $1; st.global.u16 [$0], t;}",
    None,
    (u64, u32),
    lambda a, v: a.write(np.uint16, (int(v) & 0xFFFF,)),
    touches_memory=True,
)
store_u32 = instruction("st.global.u32 [$0], $1;", None, (u64, u32), _store(np.uint32), touches_memory=True)
store_f32 = instruction("st.global.f32 [$0], $1;", None, (u64, f32), _store(np.float32), touches_memory=True)
store_u32x4 = instruction(
    "st.global.v4.u32 [$0], {$1, $2, $3, $4};", None, (u64, u32, u32, u32, u32), _store(np.uint32), touches_memory=True
)


# What the lanes of a warp tell each other. The simulator puts its own answer into `_cuda.collective`.
def collective_meaning(name: str) -> Callable[..., Any]:
    """The meaning of an instruction that the simulator settles for all lanes of a warp."""
    return lambda *args: _cuda.collective(name, args)


shuffle_xor = instruction(
    "shfl.sync.bfly.b32 $0, $1, $2, 0x1f, 0xffffffff;", u32, (u32, u32), collective_meaning("xor"), is_collective=True
)
shuffle_xor_f32 = instruction(
    "shfl.sync.bfly.b32 $0, $1, $2, 0x1f, 0xffffffff;", f32, (f32, u32), collective_meaning("xor"), is_collective=True
)
shuffle_index = instruction(
    "shfl.sync.idx.b32 $0, $1, $2, 0x1f, 0xffffffff;", u32, (u32, u32), collective_meaning("index"), is_collective=True
)
shuffle_index_f32 = instruction(
    "shfl.sync.idx.b32 $0, $1, $2, 0x1f, 0xffffffff;", f32, (f32, u32), collective_meaning("index"), is_collective=True
)
# Itself, in a way that the compiler cannot see through: it stays in its register instead of being worked out again.
anchored = instruction(
    "shfl.sync.bfly.b32 $0, $1, 0, 0x1f, 0xffffffff;", u32, (u32,), lambda value: value, is_collective=True
)
# A number that is the same in all lanes, so that the compiler knows: what depends on it does not divide the warp.
uniform = instruction(
    "shfl.sync.idx.b32 $0, $1, 0, 0x1f, 0xffffffff;", u32, (u32,), lambda value: value, is_collective=True
)
any_lane = instruction(
    "{.reg .pred p, q; setp.ne.u32 p, $1, 0; vote.sync.any.pred q, p, 0xffffffff; selp.u32 $0, 1, 0, q;}",
    u32,
    (u32,),
    collective_meaning("any"),
    is_collective=True,
)
lanes_where = instruction(
    "{.reg .pred p; setp.ne.u32 p, $1, 0; vote.sync.ballot.b32 $0, p, 0xffffffff;}",
    u32,
    (u32,),
    collective_meaning("ballot"),
    is_collective=True,
)
sync_warp = instruction(
    "bar.warp.sync 0xffffffff;", None, (), collective_meaning("sync"), touches_memory=True, is_collective=True
)


def _selected(pair: int, which: int) -> int:
    byte = pair >> 8 * (which & 7) & 0xFF
    return (0xFF if byte & 0x80 else 0) if which & 8 else byte


# Four of eight bytes; with 8 added to its number, the sign of a byte instead: 0 or 255.
select_bytes = instruction(
    "prmt.b32 $0, $1, $2, $3;",
    u32,
    (u32, u32, u32),
    lambda a, b, which: sum(_selected(int(a) | int(b) << 32, int(which) >> 4 * i & 15) << 8 * i for i in range(4)),
)
shift_right_signed = instruction(
    "shr.s32 $0, $1, $2;", u32, (u32, u32), lambda a, n: _u32(((int(a) ^ 1 << 31) - (1 << 31)) >> int(n)).item()
)
# The low word of the 64-bit number (high, low) shifted right by n.
funnel_shift_right = instruction(
    "shf.r.wrap.b32 $0, $1, $2, $3;",
    u32,
    (u32, u32, u32),
    lambda low, high, n: _u32((int(high) << 32 | int(low)) >> (int(n) & 31)).item(),
)
count_bits = instruction("popc.b32 $0, $1;", u32, (u32,), lambda a: int(a).bit_count())

# Shared memory, by the 32-bit addresses that `_cuda.shared_address` gives.
load_shared_u8 = instruction(
    "{.reg .u16 t; ld.shared.u8 t, [$1]; cvt.u32.u16 $0, t;}", u32, (u32,), _load(np.uint8), touches_memory=True
)
load_shared_u16 = instruction(
    "{.reg .u16 t; ld.shared.u16 t, [$1]; cvt.u32.u16 $0, t;}", u32, (u32,), _load(np.uint16), touches_memory=True
)
load_shared_u32 = instruction("ld.shared.u32 $0, [$1];", u32, (u32,), _load(np.uint32), touches_memory=True)
load_shared_f32 = instruction("ld.shared.f32 $0, [$1];", f32, (u32,), _load(np.float32), touches_memory=True)
store_shared_u8 = instruction(
    "{.reg .u16 t; cvt.u16.u32 t, $1; st.shared.u8 [$0], t;}",
    None,
    (u32, u32),
    lambda a, v: a.write(np.uint8, (int(v) & 0xFF,)),
    touches_memory=True,
)
store_shared_u16 = instruction(
    "{.reg .u16 t; cvt.u16.u32 t, $1; st.shared.u16 [$0], t;}",
    None,
    (u32, u32),
    lambda a, v: a.write(np.uint16, (int(v) & 0xFFFF,)),
    touches_memory=True,
)
store_shared_u32 = instruction("st.shared.u32 [$0], $1;", None, (u32, u32), _store(np.uint32), touches_memory=True)
store_shared_f32 = instruction("st.shared.f32 [$0], $1;", None, (u32, f32), _store(np.float32), touches_memory=True)
store_shared_u32x2 = instruction(
    "st.shared.v2.u32 [$0], {$1, $2};", None, (u32, u32, u32), _store(np.uint32), touches_memory=True
)
load_shared_f32x4 = instruction(
    "ld.shared.v4.f32 {$0, $1, $2, $3}, [$4];",
    (f32,) * 4,
    (u32,),
    lambda a: tuple(a.read(np.float32, 4)),
    touches_memory=True,
)
load_shared_u32x2 = instruction(
    "ld.shared.v2.u32 {$0, $1}, [$2];", (u32, u32), (u32,), _load_words(2), touches_memory=True
)
load_shared_u32x4 = instruction(
    "ld.shared.v4.u32 {$0, $1, $2, $3}, [$4];",
    (u32,) * 4,
    (u32,),
    _load_words(4),
    touches_memory=True,
)
store_shared_u32x4 = instruction(
    "st.shared.v4.u32 [$0], {$1, $2, $3, $4};", None, (u32, u32, u32, u32, u32), _store(np.uint32), touches_memory=True
)


# 2**x to about 22 bits; subnormal numbers are 0.
power_of_two = instruction("ex2.approx.ftz.f32 $0, $1;", f32, (f32,), _rounded(lambda a: np.exp2(np.float64(a))))
logarithm_of_two = instruction("lg2.approx.ftz.f32 $0, $1;", f32, (f32,), _rounded(lambda a: np.log2(np.float64(a))))


def _each_half(operation: Callable[..., Any]) -> Callable[..., Any]:
    def compute(*words: Any) -> np.uint32:
        halves = [[_half(int(word) >> shift) for word in words] for shift in (0, 16)]
        low, high = (_to_half(operation(*of)) for of in halves)
        return _u32(low | high << 16)

    return compute


subtract_halves = instruction("sub.rn.f16x2 $0, $1, $2;", u32, (u32, u32), _each_half(lambda a, b: a - b))
