"""GPU memory, streams, CUDA graphs and events, as benchmarks and the conversion of files need them."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from turbocode.errors import DeviceError
from turbocode.kernels._cuda import IS_SIMULATED
from turbocode.kernels._launch import DeviceArray, from_interface, simulated

_IDLE_BYTES = 64 << 20


def checked(result: tuple[Any, ...]) -> Any:
    """What a call of the driver returned. Raises DeviceError where it failed."""
    from cuda.bindings import driver

    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"the CUDA driver answered {result[0].name}", hint="see nvidia-smi for the state of the GPU")
    return result[1] if len(result) > 1 else None


def _bytes_of(array: DeviceArray, n_bytes: int) -> Any:
    """The first bytes of an array in the simulator."""
    return array.pointer.memory[array.pointer.offset : array.pointer.offset + n_bytes]


class Gpu:
    """One device with a stream of its own."""

    def __init__(self, number: int = 0) -> None:
        self.number, self.stream, self._thread = number, 0, threading.get_ident()
        self._idle: list[DeviceArray] | None = None
        if IS_SIMULATED:
            self.name, self.compute_capability, self.l2_bytes = "simulator", (0, 0), 0
            self.memory_bytes = self.free_bytes = 1 << 34
        else:
            self._open(number)

    def _open(self, number: int) -> None:
        from turbocode.kernels._cuda import cuda

        cuda.select_device(number)
        self._cuda = cuda
        device = cuda.get_current_device()
        name = device.name
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        self.compute_capability = tuple(device.compute_capability)
        from cuda.bindings import driver

        self._driver = driver
        self.stream = int(checked(driver.cuStreamCreate(1)))  # 1: does not wait for the default stream
        _, free, total = driver.cuMemGetInfo()
        self.free_bytes, self.memory_bytes = int(free), int(total)  # free when this was made
        self.l2_bytes = int(device.L2_CACHE_SIZE)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Uninitialised memory; bfloat16 too."""
        if IS_SIMULATED:
            return simulated(np.empty(shape, dtype))
        is_bfloat = dtype == "bfloat16"
        array = from_interface(
            self._cuda.device_array(shape, "uint16" if is_bfloat else dtype), "bfloat16" if is_bfloat else None
        )
        array.stream = self.stream
        return array

    def upload(self, host: np.ndarray[Any, Any], target: DeviceArray) -> None:
        """Copy host memory to the beginning of the target, in the stream's order; asynchronous if it is pinned."""
        if IS_SIMULATED:
            _bytes_of(target, host.nbytes)[:] = host.reshape(-1).view(np.uint8)
            return
        checked(self._driver.cuMemcpyHtoDAsync(target.pointer, host.ctypes.data, host.nbytes, self.stream))

    def download(self, source: DeviceArray, host: np.ndarray[Any, Any]) -> None:
        """Copy the beginning of the source to host memory, in the stream's order."""
        if IS_SIMULATED:
            host.reshape(-1).view(np.uint8)[:] = _bytes_of(source, host.nbytes)
            return
        checked(self._driver.cuMemcpyDtoHAsync(host.ctypes.data, source.pointer, host.nbytes, self.stream))

    def copy(self, source: DeviceArray, target: DeviceArray, n_bytes: int, offset: int = 0) -> None:
        """Copy n_bytes within the device to `offset` of the target."""
        if IS_SIMULATED:
            _bytes_of(target, offset + n_bytes)[offset:] = _bytes_of(source, n_bytes)
            return
        checked(self._driver.cuMemcpyDtoDAsync(target.pointer + offset, source.pointer, n_bytes, self.stream))

    def pinned(self, n_bytes: int) -> np.ndarray[Any, Any]:
        """Host memory that the device reads and writes directly, uint8 (n_bytes,)."""
        return np.empty(n_bytes, np.uint8) if IS_SIMULATED else self._cuda.pinned_array(n_bytes, np.uint8)

    def fill(self, target: DeviceArray, host: np.ndarray[Any, Any], n_bytes: int) -> None:
        """Repeat the host array over n_bytes of the target."""
        self.upload(host, target)
        done = host.nbytes
        while done < n_bytes:
            part = min(done, n_bytes - done)
            self.copy(target, target, part, done)
            done += part
        self.wait()

    def wait(self) -> None:
        """Until everything in the stream is done."""
        if IS_SIMULATED:
            return
        if threading.get_ident() != self._thread:
            self._cuda.select_device(self.number)  # another thread has no context of its own
        checked(self._driver.cuStreamSynchronize(self.stream))

    def capture(self, work: Callable[[], Any]) -> Any:
        """A CUDA graph of one call of work, whose launches go to this stream; call work once before."""
        if IS_SIMULATED:
            return work
        driver = self._driver
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        checked(driver.cuStreamBeginCapture(self.stream, mode))
        try:
            work()
        finally:
            graph = checked(driver.cuStreamEndCapture(self.stream))
        found = checked(driver.cuGraphInstantiate(graph, 0))
        checked(driver.cuGraphDestroy(graph))
        return found

    def forget(self, graph: Any) -> None:
        """Free a captured graph."""
        if not IS_SIMULATED:
            checked(self._driver.cuGraphExecDestroy(graph))

    def replay(self, graph: Any) -> None:
        """Start a captured graph."""
        if IS_SIMULATED:
            graph()
            return
        checked(self._driver.cuGraphLaunch(graph, self.stream))

    def graph_seconds(self, work: Callable[[], Any], repeats: int) -> float:
        """Median seconds of one call of work, from `repeats` replays of a graph of it."""
        work()
        self.wait()
        graph = self.capture(work)
        found = self.seconds(lambda: self.replay(graph), repeats)
        self.forget(graph)
        return found

    def queued_seconds(self, replay: Callable[[], Any], repeats: int) -> float:
        """Median seconds of one call of `replay`, all of which are queued at once, so that no host time is among them.

        A copy of some microseconds for each goes ahead, for the host to be early.
        """
        if IS_SIMULATED:
            return self._host_seconds(replay, repeats)
        driver, n = self._driver, repeats + 2  # the first two warm up
        if self._idle is None:
            self._idle = [self.empty((_IDLE_BYTES,), "uint8") for _ in range(2)]
        events = [checked(driver.cuEventCreate(0)) for _ in range(n + 1)]
        self.wait()
        for _ in range(1 + n // 4):
            self.copy(self._idle[0], self._idle[1], _IDLE_BYTES)
        for event in events[:-1]:
            checked(driver.cuEventRecord(event, self.stream))
            replay()
        checked(driver.cuEventRecord(events[-1], self.stream))
        self.wait()
        found = [checked(driver.cuEventElapsedTime(a, b)) / 1e3 for a, b in itertools.pairwise(events)]
        for event in events:
            checked(driver.cuEventDestroy(event))
        return statistics.median(found[2:])

    @staticmethod
    def _host_seconds(work: Callable[[], Any], repeats: int) -> float:
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    def seconds(self, work: Callable[[], Any], repeats: int) -> float:
        """Median seconds between events around one call of work, without a graph, which slows copies down."""
        if IS_SIMULATED:
            return self._host_seconds(work, repeats)
        driver = self._driver
        begin, end = (checked(driver.cuEventCreate(0)) for _ in range(2))
        found = []
        for number in range(repeats + 2):  # the first two warm up
            checked(driver.cuEventRecord(begin, self.stream))
            work()
            checked(driver.cuEventRecord(end, self.stream))
            checked(driver.cuEventSynchronize(end))
            if number >= 2:
                found.append(checked(driver.cuEventElapsedTime(begin, end)) / 1e3)
        return statistics.median(found)
