"""What a measurement may use and what it used: threads, memory."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minimodel import tree
from minimodel.tree import Tree

STATUS = Path("/proc/self/status")


@contextmanager
def threads(count: int) -> Iterator[dict[str, Any]]:
    """As many processors for this process and those it starts, and as many threads of BLAS; says what was set.

    XLA counts processors when it is loaded; if it was loaded before, its threads stay as they were. ValueError for more
    threads than processors.
    """
    from threadpoolctl import threadpool_info, threadpool_limits

    said: dict[str, Any] = {"asked": count, "set_before_jax": "jax" not in sys.modules}
    before = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    if count > (most := len(before) if before else os.cpu_count() or count):
        raise ValueError(f"threads: expected at most {most}, the processors there are, got {count}")
    try:
        if before is not None:
            os.sched_setaffinity(0, sorted(before)[:count])
            said["processors"] = sorted(os.sched_getaffinity(0))
        with threadpool_limits(count):
            said["pools"] = [
                {name: pool.get(name) for name in ("user_api", "internal_api", "version", "num_threads")}
                for pool in threadpool_info()
            ]
            yield said
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


def available_memory() -> float:
    """Bytes that can be had without swapping; infinite where the system does not say."""
    info = Path("/proc/meminfo")
    return 1024 * float(info.read_text().partition("MemAvailable:")[2].split()[0]) if info.exists() else float("inf")


def peak_memory() -> float:
    """The most memory this process ever had, in bytes; getrusage would count that of its parent as well."""
    if STATUS.exists():
        return field("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> float | None:
    """Have the system count the peak anew, and return what memory is held now; None where it cannot be asked to.

    What was freed is given back first, or the next program would find its room there and seem to need none.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return field("VmRSS")
    except OSError:
        return None


def field(name: str) -> float:
    """Bytes by their name in the process's status."""
    return 1024 * float(STATUS.read_text().partition(f"{name}:")[2].split()[0])


def device_peak(values: Tree) -> float | None:
    """The most bytes ever in use on the device that arrays are on, where it counts them itself, as GPUs do."""
    for leaf in tree.leaves(values):
        stats = getattr(getattr(leaf, "device", None), "memory_stats", None)
        counted = stats() if callable(stats) else None
        if counted and "peak_bytes_in_use" in counted:
            return float(counted["peak_bytes_in_use"])
    return None
