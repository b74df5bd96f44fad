"""Slabs of vectors from host memory through a codec and back: on the CPU at once, on a GPU while the caller does more.

`SlabCoders(device).of(codec).submit_encode(...)` returns a job; `job.result()` waits for it. Up to `depth` jobs may be
under way, and all of one codec are over before the next codec's begin: they share memory on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs.codec import Codec
from turbocode.codecs.coder import Coder
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.codecs.report import EncodeReport
from turbocode.errors import DataError

Encoded = tuple[NDArray[np.uint8], EncodeReport]


@dataclass(frozen=True)
class Job:
    """A slab on its way; `result` waits for it."""

    result: Callable[[], Any]


class SlabCoder(Protocol):
    """depth : jobs that may be under way; submit_encode and submit_decode start one for vectors of one KV head."""

    depth: int

    def submit_encode(self, values: NDArray[Any], head: int) -> Job: ...

    def submit_decode(self, blocks: NDArray[np.uint8], head: int) -> Job: ...


class CpuSlabCoder:
    """Everything is done when it is submitted."""

    depth = 1

    def __init__(self, codec: Coder) -> None:
        self._codec = codec

    def submit_encode(self, values: NDArray[Any], head: int) -> Job:
        encoded = self._codec.encode(values, head)
        return Job(lambda: encoded)

    def submit_decode(self, blocks: NDArray[np.uint8], head: int) -> Job:
        values = self._codec.decode(blocks, head)
        return Job(lambda: values)


@dataclass
class _Slot:
    """Memory for one slab on the GPU, page-locked host memory beside it, and a stream."""

    gpu: Any
    buffers: dict[str, tuple[Any, NDArray[np.uint8]]]

    def room(self, name: str, n_bytes: int) -> tuple[Any, NDArray[np.uint8]]:
        """(device array, host array), uint8, of at least n_bytes; kept for the next slab."""
        found = self.buffers.get(name)
        if found is None or len(found[1]) < n_bytes:
            found = self.buffers[name] = self.gpu.empty((n_bytes,), "uint8"), self.gpu.pinned(n_bytes)
        return found


class _Slots:
    """The slots of a device in turn, and the thread that finishes jobs."""

    def __init__(self, device: int) -> None:
        from turbocode.kernels._graph import Gpu

        self._slots = [_Slot(Gpu(device), {}) for _ in range(GpuSlabCoder.depth + 1)]
        self._number = -1
        self.finishing = ThreadPoolExecutor(1, "turbocode-slabs")

    def next(self) -> _Slot:
        self._number = (self._number + 1) % len(self._slots)
        return self._slots[self._number]


class GpuSlabCoder:
    """While slabs are copied and coded, and a thread adds up what they cost, the caller reads and writes others.

    A slot is one slab's memory; there is one more than jobs, since a result is read where the GPU wrote it.
    """

    depth = 3

    def __init__(self, codec: Codec, slots: _Slots) -> None:
        self._codec, self._gpu_codec, self._slots = codec, GpuCodec(codec), slots

    def submit_encode(self, values: NDArray[Any], head: int) -> Job:
        from turbocode.kernels.gpu_call import view
        from turbocode.kernels.group import moments_of_facts
        from turbocode.kernels.scalar.gpu_steps import N_FACTS

        codec, form, slot = self._codec, self._codec.block_format, self._slots.next()
        gpu, n = slot.gpu, len(values)
        values = np.ascontiguousarray(values, values.dtype if values.dtype == np.float16 else np.float32)
        n_groups = n * (codec.head_dim // form.group_size)
        shapes = {
            "blocks": ((n, codec.bytes_per_vector), "uint8", n * codec.bytes_per_vector),
            "facts": ((n_groups, N_FACTS), "float32", 4 * N_FACTS * n_groups),
            "flags": ((n_groups,), "uint8", n_groups),
        }
        place, staged = slot.room("values", values.nbytes)
        staged[: values.nbytes] = values.reshape(-1).view(np.uint8)
        gpu.upload(staged[: values.nbytes], place)
        rooms = {name: slot.room(name, size) for name, (_, _, size) in shapes.items()}
        arrays = {name: view(rooms[name][0], shape, dtype) for name, (shape, dtype, _) in shapes.items()}
        self._gpu_codec.encoder(head).measured(
            view(place, values.shape, str(values.dtype)),
            out=arrays["blocks"],
            room=(arrays["facts"], arrays["flags"]),
            stream=gpu.stream,
        )
        for name, (_, _, size) in shapes.items():
            gpu.download(rooms[name][0], rooms[name][1][:size])

        def finish() -> Encoded:
            gpu.wait()
            host = {name: rooms[name][1][:size].view(d).reshape(s) for name, (s, d, size) in shapes.items()}
            moments = moments_of_facts(host["facts"], form.has_codebook)
            report, bad = EncodeReport.from_moments(moments, host["flags"], codec.head_dim // form.group_size)
            if bad >= 0:
                raise DataError(f"vector ({bad},) holds a NaN or an infinity; finite values are needed")
            return host["blocks"], report

        return Job(self._slots.finishing.submit(finish).result)

    def submit_decode(self, blocks: NDArray[np.uint8], head: int) -> Job:
        from turbocode.kernels.gpu_call import view

        slot = self._slots.next()
        gpu, shape = slot.gpu, (len(blocks), self._codec.head_dim)
        n_bytes = 4 * shape[0] * shape[1]
        place, staged = slot.room("blocks", blocks.nbytes)
        staged[: blocks.nbytes] = np.ascontiguousarray(blocks).reshape(-1)
        gpu.upload(staged[: blocks.nbytes], place)
        target, host = slot.room("values", n_bytes)
        decoder = self._gpu_codec.decoder(head)
        decoder(view(place, blocks.shape, "uint8"), out=view(target, shape, "float32"), stream=gpu.stream)
        gpu.download(target, host[:n_bytes])

        def result() -> NDArray[np.float32]:
            gpu.wait()
            return host[:n_bytes].view(np.float32).reshape(shape)

        return Job(result)


class SlabCoders:
    """The coders of codecs on one device: a GPU's number, or None for the CPU.

    Codecs behind transforms, and those of kinds that have no kernels there, are coded on the CPU, with equal bytes.
    """

    def __init__(self, device: int | None) -> None:
        self._slots = None if device is None else _Slots(device)
        self._coders: dict[int, SlabCoder] = {}

    def of(self, codec: Coder) -> SlabCoder:
        """The coder of a codec; made once."""
        coder = self._coders.get(id(codec))
        if coder is None:
            is_on_gpu = self._slots is not None and isinstance(codec, Codec)
            coder = GpuSlabCoder(codec, self._slots) if is_on_gpu else CpuSlabCoder(codec)  # type: ignore[arg-type]
            self._coders[id(codec)] = coder  # a coder keeps its codec, so that the number stays its own
        return coder
