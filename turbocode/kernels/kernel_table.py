"""The kernels of the GPU by name: how each is made, and what its machine code must be like.

Tests compile every entry for `ARCHITECTURES` without a GPU and check it, and that docs/gpu.md names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from turbocode.formats import MultirateFormat, block_format
from turbocode.formats.multirate_format import RUN_CHANNELS
from turbocode.kernels.attention import exact_tokens
from turbocode.kernels.attention.attend_kernel import N_ARGS as N_ATTEND_ARGS
from turbocode.kernels.attention.attend_kernel import attend_kernel
from turbocode.kernels.attention.attend_variant import AttendVariant
from turbocode.kernels.attention.cuda import Shape, replace_shape
from turbocode.kernels.attention.eight_values import lookup_of_pairs
from turbocode.kernels.attention.lookup import IN_REGISTERS, NO_TABLE, lookup_for
from turbocode.kernels.attention.merge_kernel import N_ARGS as N_MERGE_ARGS
from turbocode.kernels.attention.merge_kernel import merge_kernel
from turbocode.kernels.attention.plain_kernel import N_ARGS as N_PLAIN_ARGS
from turbocode.kernels.attention.plain_kernel import PlainVariant, plain_kernel
from turbocode.kernels.attention.prefill_cuda import PrefillShape
from turbocode.kernels.attention.prefill_kernel import N_ARGS as N_PREFILL_ARGS
from turbocode.kernels.attention.prefill_kernel import prefill_kernel
from turbocode.kernels.attention.prefill_variant import PrefillVariant
from turbocode.kernels.fwht import rotation_for
from turbocode.kernels.fwht.lanes import BFLOAT16, FLOAT16, FLOAT32
from turbocode.kernels.fwht.rotate_kernel import N_ARGS as N_ROTATE_ARGS
from turbocode.kernels.fwht.rotate_kernel import rotate_kernel, rotate_shared_kernel
from turbocode.kernels.scalar import (
    decode_lanes,
    decode_shared,
    decode_tensor,
    encode_ggml,
    encode_lanes,
    encode_shared,
    encode_tensor,
)
from turbocode.kernels.scalar.decode_lanes import DecodeVariant, Placement
from turbocode.kernels.scalar.encode_lanes import EncodeVariant
from turbocode.kernels.scalar.norm_mode import NormMode
from turbocode.kernels.trellis import encode_kernel as trellis_encode
from turbocode.kernels.trellis import encode_tensor as trellis_encode_tensor
from turbocode.kernels.trellis.search_kernel import N_ARGS as N_SEARCH_ARGS
from turbocode.kernels.trellis.search_kernel import search_kernel
from turbocode.kernels.trellis.search_lanes import lane_search
from turbocode.kernels.trellis.trellis import Trellis

ARCHITECTURES = ((8, 0), (9, 0), (12, 0))
STATIC_SHARED = 48 * 1024  # that a kernel may declare on any GPU
TRELLIS_SHARED = 8 * 1024  # that a group may take while it is searched
_WIDE_LOAD, _WIDE_STORE, _EXCHANGE, _TENSOR = r"LDG\.E\..*128", r"STG\.E\..*128", r"SHFL", r"HMMA"
_SHARED_LOAD, _ASYNCHRONOUS_COPY = r"LDS\.128", r"LDGSTS\.E.*128"
_TYPES = {"fp16": FLOAT16, "bf16": BFLOAT16, "fp32": FLOAT32}


@dataclass(frozen=True)
class KernelEntry:
    """name : of the kernel, its format and its type

    make : compiles nothing, gives the decorated function; n_args : its arguments, all uint64
    max_registers : of a thread; opcodes : patterns of machine instructions that must occur
    max_shared : static shared memory of a block, bytes
    architectures : that have its instructions
    """

    name: str
    make: Callable[[], Any]
    n_args: int
    max_registers: int
    opcodes: tuple[str, ...] = ()
    max_shared: int = STATIC_SHARED
    architectures: tuple[tuple[int, int], ...] = ARCHITECTURES


def _encode_variant(
    name: str, head_dim: int, value_type: int, is_measured: bool = False, is_strided: bool = False
) -> Any:
    form = block_format(name, head_dim)
    kind = "signed" if form.has_codebook else "none"
    mode = NormMode.MSE if form.is_trellis else NormMode.L2
    rotation = rotation_for(form.group_size, kind)
    return EncodeVariant(form, rotation, mode, value_type, is_measured, is_strided, is_strided)


def _decode_variant(name: str, head_dim: int, value_type: int, placement: Placement = Placement.SHARED) -> Any:
    form = block_format(name, head_dim)
    rotation = rotation_for(form.group_size, "signed" if form.has_codebook else "none")
    return DecodeVariant(form, rotation, value_type, False, False, placement)


def _rotations() -> Iterator[KernelEntry]:
    for type_name, value_type in _TYPES.items():
        for g in (16, 32, 64, 128):
            rotation = rotation_for(g)
            yield KernelEntry(
                f"rotate {g} {type_name}",
                lambda r=rotation, t=value_type: rotate_kernel(r, False, t, t, False, False)[0],  # type: ignore[misc]
                N_ROTATE_ARGS,
                64,
                (_WIDE_LOAD, _WIDE_STORE, _EXCHANGE),
            )
    for g in (40, 48, 80, 96):
        rotation = rotation_for(g)
        yield KernelEntry(
            f"rotate {g} fp16",
            lambda r=rotation: rotate_shared_kernel(r, True, FLOAT16, FLOAT16, False, False)[0],  # type: ignore[misc]
            N_ROTATE_ARGS,
            64,
        )


def _encoders() -> Iterator[KernelEntry]:
    n = encode_lanes.N_ARGS
    scalar = ("turbo2", "turbo3", "turbo4", "turbo2_0", "turbo3_0", "q8_0", "q4_0", "f16")
    packed = ("q8_0", "q4_0")
    for name in scalar:
        types = _TYPES if name == "turbo3" else {"bf16": BFLOAT16} if name in packed else {"fp16": FLOAT16}
        for type_name, value_type in types.items():
            variant = _encode_variant(name, 128, value_type)
            yield KernelEntry(
                f"encode {name} 128 {type_name}",
                lambda v=variant: encode_lanes.encode_kernel(v)[0],  # type: ignore[misc]
                n,
                255 if name == "turbo4" else 128,
                (_WIDE_LOAD, _WIDE_STORE),
            )
        measured = _encode_variant(name, 128, FLOAT16, is_measured=True, is_strided=True)
        yield KernelEntry(
            f"encode {name} 128 fp16, measured, strided",
            lambda v=measured: encode_lanes.encode_kernel(v)[0],  # type: ignore[misc]
            n,
            255 if name == "turbo4" else 128,
            (_WIDE_LOAD,),
        )
    for name in packed:
        for is_strided in (False, True):
            variant = _encode_variant(name, 128, FLOAT16, is_strided=is_strided)
            yield KernelEntry(
                f"encode {name} 128 fp16" + (", strided" if is_strided else ""),
                lambda v=variant: encode_ggml.encode_kernel(v)[0],  # type: ignore[misc]
                n,
                64,
                (*(() if is_strided else (_WIDE_STORE,)), _ASYNCHRONOUS_COPY, r"HMNMX2"),
            )
    for name, head_dim in (("turbo3", 96), ("turbo4", 80), ("q8_0", 96), ("q4_0", 96)):
        variant = _encode_variant(name, head_dim, FLOAT16, is_measured=True)
        yield KernelEntry(
            f"encode {name} {head_dim} fp16, measured",
            lambda v=variant: encode_shared.encode_kernel(v)[0],  # type: ignore[misc]
            n,
            128,
        )
    fast = (
        *(("turbo2", 128, "fp16"), ("turbo3", 128, "fp16"), ("turbo4", 128, "fp16"), ("turbo3_0", 128, "fp16")),
        *(("turbo3", 64, "fp16"), ("turbo3", 32, "fp16"), ("turbo4", 32, "fp16"), ("turbo3", 128, "bf16")),
    )
    for name, g, type_name in fast:
        for is_strided in (False, True) if name == "turbo3" and g == 128 else (False,):
            variant = _encode_variant(name, g, _TYPES[type_name], is_strided=is_strided)
            yield KernelEntry(
                f"fast encode {name} {g} {type_name}" + (", strided" if is_strided else ""),
                lambda v=variant: encode_tensor.encode_kernel(v)[0],  # type: ignore[misc]
                n,
                96,
                (
                    *(() if is_strided else (_WIDE_STORE,)),
                    *(_ASYNCHRONOUS_COPY, _TENSOR, r"SHFL\.IDX" if name == "turbo4" else r"SHF\.L\.W"),
                ),
            )
    unbiased = _encode_variant("turbo4", 128, FLOAT16)._replace(mode=NormMode.UNBIASED)
    yield KernelEntry(
        "fast encode turbo4:norm=unbiased 128 fp16",
        lambda: encode_tensor.encode_kernel(unbiased)[0],
        n,
        128,
        (_TENSOR,),
    )


def _trellises() -> Iterator[KernelEntry]:
    n = encode_lanes.N_ARGS
    for name in (
        "trellis1",
        "trellis2",
        "trellis3",
        "trellis4",
        "turbo1_tcq",
        "turbo2_tcq",
        "turbo3_tcq",
        "trellis2_l12",
    ):
        variant = _encode_variant(name, 128, FLOAT16, is_measured=name == "trellis3")
        trellis = Trellis.of_format(variant.block_format)
        search = lane_search(trellis, 128, trellis.approach(128) if trellis.is_tail_biting else 0)
        is_default = "_l" not in name
        yield KernelEntry(
            f"encode {name} 128 fp16",
            lambda v=variant: trellis_encode.encode_kernel(v)[0],  # type: ignore[misc]
            n,
            128,
            (_SHARED_LOAD,),
            TRELLIS_SHARED * search.per_block if is_default else STATIC_SHARED,
        )
    for name, is_strided in (
        *((name, False) for name in ("trellis1", "trellis2", "trellis3", "trellis4", "turbo3_tcq", "trellis2_l9")),
        ("trellis3", True),
    ):
        variant = _encode_variant(name, 128, FLOAT16, is_strided=is_strided)
        yield KernelEntry(
            f"fast encode {name} 128 fp16" + (", strided" if is_strided else ""),
            lambda v=variant: trellis_encode_tensor.encode_kernel(v)[0],  # type: ignore[misc]
            n,
            128 if name in ("trellis1", "trellis2") else 168,
            (_WIDE_LOAD, _SHARED_LOAD, r"HMMA\.1688\.F32"),
        )
    for k, length, is_weighted in ((2, 8, False), (3, 9, True), (1, 4, False), (4, 12, False)):
        trellis = Trellis(k, length, True)
        yield KernelEntry(
            f"search k = {k}, L = {length}" + (", weighted" if is_weighted else ""),
            lambda t=trellis, w=is_weighted: search_kernel(t, 128, t.approach(128), w)[0],  # type: ignore[misc]
            N_SEARCH_ARGS,
            128,
            (_SHARED_LOAD,),
        )


def _decoders() -> Iterator[KernelEntry]:
    n = decode_lanes.N_ARGS
    names = ("turbo2", "turbo3", "turbo4", "turbo3_0", "q8_0", "q4_0", "f16", "trellis2", "trellis3", "turbo3_tcq")
    for name in names:
        for type_name, value_type in _TYPES.items() if name == "turbo3" else [("fp16", FLOAT16)]:
            variant = _decode_variant(name, 128, value_type)
            yield KernelEntry(
                f"decode {name} 128 {type_name}",
                lambda v=variant: decode_lanes.decode_kernel(v)[0],  # type: ignore[misc]
                n,
                128,
                (_WIDE_STORE,),
            )
    values = np.linspace(-1, 1, 512, dtype=np.float32).tobytes()
    for placement, where in ((Placement.CACHED, "the cache"), (Placement.CONSTANT, "constant memory")):
        variant = _decode_variant("trellis3", 128, FLOAT16, placement)
        yield KernelEntry(
            f"decode trellis3 128 fp16, table in {where}",
            lambda v=variant: decode_lanes.decode_kernel(v, values)[0],  # type: ignore[misc]
            n,
            128,
            (_WIDE_STORE,),
        )
    for name, head_dim in (("turbo3", 96), ("q4_0", 96), ("trellis2", 80)):
        variant = _decode_variant(name, head_dim, FLOAT16)
        yield KernelEntry(
            f"decode {name} {head_dim} fp16",
            lambda v=variant: decode_shared.decode_kernel(v)[0],  # type: ignore[misc]
            n,
            64,
        )
    fast = (
        *(("turbo2", 128, "fp16"), ("turbo3", 128, "fp16"), ("turbo4", 128, "fp16"), ("turbo3_0", 128, "fp16")),
        *(("turbo3", 128, "bf16"), ("turbo3", 128, "fp32"), ("turbo4", 128, "fp32"), ("turbo3", 64, "fp16")),
        ("turbo4", 32, "fp16"),
    )
    for name, g, type_name in fast:
        variant = _decode_variant(name, g, _TYPES[type_name])
        yield KernelEntry(
            f"fast decode {name} {g} {type_name}",
            lambda v=variant: decode_tensor.decode_kernel(v)[0],  # type: ignore[misc]
            n,
            80,
            (_WIDE_STORE, _TENSOR, _ASYNCHRONOUS_COPY),
        )


def _exact_tokens() -> Iterator[KernelEntry]:
    yield KernelEntry("place exact bf16", lambda: exact_tokens.place_kernel(BFLOAT16), exact_tokens.N_PLACE_ARGS, 64)
    yield KernelEntry("take a run", exact_tokens.take_kernel, exact_tokens.N_TAKE_ARGS, 64)
    yield KernelEntry("settle numbers", exact_tokens.settle_kernel, exact_tokens.N_SETTLE_ARGS, 64)


def _attend_variant(name: str, d: int, value_type: int, shape: Shape, table_bytes: int, is_bulk: bool) -> AttendVariant:
    is_rated = name == "multirate"  # the rates are data
    form: Any = MultirateFormat((1,) * (d // RUN_CHANNELS)) if is_rated else block_format(name, d)
    values = lookup_for(form, table_bytes)
    keys = IN_REGISTERS if name == "turbo2" else values
    rotation = rotation_for(form.group_size, "signed" if form.has_codebook and not is_rated else "none")
    variant = AttendVariant(
        key_format=form,
        value_format=form,
        key_rotation=rotation,
        value_rotation=rotation,
        head_dim=d,
        key_lookup=NO_TABLE,
        value_lookup=NO_TABLE,
        shares_table=keys == values and not is_rated,
        tables_per_head=False,
        n_column_tiles=1,
        n_warps=1,
        n_stages=2,
        blocks_at_once=1,
        query_type=value_type,
        out_type=value_type,
        is_paged=not is_bulk,
        is_late=False,
        is_bulk=is_bulk,
        has_softcap=False,
        has_gain=False,
    )
    return replace_shape(variant, shape, keys, values)


def _attentions() -> Iterator[KernelEntry]:
    # Each compiles for many seconds: what differs most, on the GPUs that it is laid out for.
    for name, d, shape, table_bytes, is_bulk, architecture in (
        ("turbo2", 128, Shape(8, 2, 2), 1 << 16, True, (9, 0)),
        ("turbo3", 128, Shape(8, 2, 2), 1 << 13, True, (9, 0)),
        ("turbo4", 128, Shape(8, 1, 2), 1 << 15, False, (8, 0)),
        ("trellis2", 128, Shape(16, 1, 2), 1 << 17, True, (9, 0)),
        ("trellis3", 128, Shape(16, 1, 2), 1 << 16, True, (9, 0)),
        ("turbo3", 256, Shape(8, 1, 2), 1 << 16, True, (9, 0)),
        ("multirate", 128, Shape(12, 1, 2), 0, True, (9, 0)),
        ("multirate", 64, Shape(8, 1, 2), 0, True, (12, 0)),
    ):
        variant = _attend_variant(name, d, FLOAT16, shape, table_bytes, is_bulk)
        yield KernelEntry(
            f"attend {name} {d} fp16" + ("" if is_bulk else ", paged"),
            lambda v=variant: attend_kernel(v),  # type: ignore[misc]
            N_ATTEND_ARGS,
            {8: 255, 12: 168, 16: 128}[shape.n_warps * shape.blocks_at_once],
            (r"HMMA\.16816\.F32", r"UBLKCP" if is_bulk else _ASYNCHRONOUS_COPY),
            architectures=(architecture,),
        )
    mixed = MultirateFormat((1,) * 16)
    plain = PlainVariant(mixed, mixed, *(rotation_for(128, "none"),) * 2, 128, FLOAT16, False, False)
    yield KernelEntry("attend multirate 128 fp16, plain", lambda: plain_kernel(plain), N_PLAIN_ARGS, 96)
    yield KernelEntry("merge parts fp32 fp16", lambda: merge_kernel(FLOAT32, FLOAT16), N_MERGE_ARGS, 64)


def _prefills() -> Iterator[KernelEntry]:
    for key_name, value_name, d, shape, table_bytes, is_paged, architecture in (
        ("turbo3", "turbo3", 128, PrefillShape(64, 8, 2), 1 << 15, False, (9, 0)),
        ("turbo3", "turbo3", 128, PrefillShape(64, 8, 2), 1 << 15, True, (8, 0)),
        ("turbo4", "trellis3", 128, PrefillShape(32, 4, 2), 1 << 13, False, (12, 0)),
        ("turbo3", "turbo3", 256, PrefillShape(32, 8, 1), 1 << 15, False, (9, 0)),
    ):
        forms = block_format(key_name, d), block_format(value_name, d)
        keys, values = (lookup_of_pairs(form, table_bytes) for form in forms)
        variant = PrefillVariant(*forms, d, keys, values, forms[0] == forms[1], *shape, False, False, is_paged)
        yield KernelEntry(
            f"prefill {key_name} {value_name} {d}" + (", paged" if is_paged else ""),
            lambda v=variant: prefill_kernel(v),  # type: ignore[misc]
            N_PREFILL_ARGS,
            128 if shape.n_warps * shape.blocks_at_once == 16 else 255,
            (r"HMMA\.16816\.F32", r"LDSM", _ASYNCHRONOUS_COPY),
            architectures=(architecture,),
        )


def kernel_table() -> tuple[KernelEntry, ...]:
    """Every kernel, in the variants that differ in their code."""
    return (*_rotations(), *_encoders(), *_trellises(), *_decoders(), *_attentions(), *_prefills(), *_exact_tokens())
