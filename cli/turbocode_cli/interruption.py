"""SIGTERM and Ctrl-C as exceptions that always arrive, so that part files and locks are cleaned up.

Python drops what a signal handler raises inside a weakref callback or a `__del__`, and HDF5 inside a call back into
Python; of 55 signals sent to a writing command two were lost that way. So a signal is repeated until its exception is
on its way.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REPEAT_SECONDS = 0.05


class Terminated(BaseException):
    """SIGTERM arrived; not an Exception, so that nothing on the way takes it for an error of its own."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Context in which SIGTERM raises Terminated and Ctrl-C KeyboardInterrupt, neither twice nor not at all.

    Nothing is changed outside the main thread, nor for a signal that somebody else handles or ignores.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    delivery = _Delivery()
    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    ours = {number: handler for number, handler in defaults.items() if signal.getsignal(number) == handler}
    show_unraisable = sys.unraisablehook

    def unraisable(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, (Terminated, KeyboardInterrupt)):
            show_unraisable(dropped)

    for number in ours:
        signal.signal(number, delivery.handle)
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        delivery.stop()
        sys.unraisablehook = show_unraisable
        for number, handler in ours.items():
            signal.signal(number, handler)


class _Delivery:
    """Raises the first signal's exception, again and again until it is being handled."""

    def __init__(self) -> None:
        self._is_active = True
        self._repeat: threading.Timer | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self._is_active:
            return
        self._repeat = threading.Timer(REPEAT_SECONDS, self._send, [number])
        self._repeat.daemon = True
        self._repeat.start()
        if not _is_on_its_way(sys.exception()):
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def _send(self, number: int) -> None:
        main_thread = threading.main_thread().ident
        if not self._is_active or main_thread is None:
            return
        if hasattr(signal, "pthread_kill"):  # also ends a blocking system call
            signal.pthread_kill(main_thread, number)
        else:
            _thread.interrupt_main(signal.Signals(number))

    def stop(self) -> None:
        """Returns when nothing will be raised any more."""
        self._is_active = False
        if self._repeat is not None:
            self._repeat.cancel()
            self._repeat.join()


def _is_on_its_way(handled: BaseException | None) -> bool:
    """Whether the clean-up that is running, if any, runs because of a signal."""
    while handled is not None:
        if isinstance(handled, (Terminated, KeyboardInterrupt)):
            return True
        handled = handled.__context__
    return False
