"""Opens and guards a file in a forked child first, so that a crash inside HDF5 is an error and not our end."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import warnings

from turbocode.dumps.guard import take_stock
from turbocode.dumps.hdf5 import h5py
from turbocode.errors import DataError

# Guarding the largest file allowed takes about two; more means that HDF5 goes round in circles.
CPU_SECONDS = 10


def rehearse(path: str) -> None:
    """Returns nothing once a child has opened and guarded the file without being killed; DataError otherwise.

    The child's own verdict is not used: this process repeats the same steps and raises the same error. Where the
    platform cannot fork (Windows) or must not (macOS frameworks), nothing is rehearsed.
    """
    if not hasattr(os, "fork") or sys.platform == "darwin":
        return
    import resource  # POSIX only

    # Held across the fork, so that no other thread is inside HDF5 when the child gets its copy.
    with h5py._objects.phil, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGXCPU):
                signal.signal(number, signal.SIG_DFL)
            take_stock(path)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise DataError(f"crashes the HDF5 library ({name}): the file is damaged or hostile", file=path)
