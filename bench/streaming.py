"""Gradient descent from files larger than memory should be: peak memory, and rows a second against rows in memory.

Writes two .npy files of the given size, trains an epoch of 784-300-100-10 from them, and the same from a part of the
rows in memory, each in a process of its own, so that its peak memory is its own. What the system has cached of the
files is dropped before they are streamed, so that they do come from the disk.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.bench.common import arguments, report
from minimodel.bench.resources import peak_memory

FEATURES, CLASSES, BATCH, PART = 784, 10, 128, 64_000


def main() -> None:
    """Print and store the rates and the peaks."""
    parser = arguments(__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--threads", type=int, help="of BLAS, under NumPy; by default its own choice")
    parser.add_argument("--repeats", type=int, default=3, help="turns of one process each; medians are reported")
    parser.add_argument("--folder", help="where the files go for the time being; by default the system's own place")
    parser.add_argument("--only", choices=("stream", "memory"), help="what a process of its own is started for")
    options = parser.parse_args()
    if options.only:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(options.threads, "blas"):
            print(json.dumps(measure(options.only, Path(options.folder), options.backend)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = write(Path(folder), options.gigabytes)
        turns = [
            {only: in_process(only, folder, options.backend, options.threads) for only in ("memory", "stream")}
            for _ in range(options.repeats)
        ]
    found = {
        only: {part: median(turn[only][part] for turn in turns) for part in ("rows_a_second", "peak_megabytes")}
        for only in ("memory", "stream")
    }
    ratio = median(turn["stream"]["rows_a_second"] / turn["memory"]["rows_a_second"] for turn in turns)
    for name, row in found.items():
        print(f"{name:<7} {row['rows_a_second']:9,.0f} rows/s, peak {row['peak_megabytes']:6,.0f} MB above import")
    print(
        f"{rows:,} rows of {4 * FEATURES} bytes, {options.backend}: the stream runs at {ratio:.2f}× the rate in memory"
    )
    settings = {"rows": rows, "backend": options.backend, "threads": options.threads}
    report({**settings, "ratio": ratio, **found, "turns": turns}, options.out)


def write(folder: Path, gigabytes: float) -> int:
    """x.npy and y.npy, a piece at a time; labels a linear teacher's."""
    rows = int(gigabytes * 1e9 / (4 * FEATURES)) // PART * PART
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, FEATURES))
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.int32, (rows,))
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    for start in range(0, rows, PART):
        part = rng.standard_normal((PART, FEATURES), np.float32)
        x[start : start + PART], y[start : start + PART] = part, (part @ teacher).argmax(1)
    return rows


def in_process(only: str, folder: str, backend: str, threads: int | None) -> dict[str, Any]:
    """``measure`` in a fresh process."""
    options = ["--only", only, "--folder", folder, "--backend", backend]
    options += [] if threads is None else ["--threads", str(threads)]
    command = [sys.executable, "-m", "minimodel.bench.streaming", *options]
    print(f"{only} …", flush=True)
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(only: str, folder: Path, backend: str) -> dict[str, Any]:
    """Rows a second of training and the peak memory above that after the imports."""
    mm.backends.load(backend)
    before = peak_memory()
    data: Any = mm.stream_files(folder / "x.npy", folder / "y.npy", seed=0, validation=1_000, test=1_000)
    if only == "memory":
        x, y = (np.load(folder / f"{name}.npy", mmap_mode="r")[:PART] for name in ("x", "y"))
        train = mm.Dataset(np.array(x), np.array(y))
        data = mm.Splits(train, data.validation, data.test, data.normalization)
    rows, epochs = (data.rows, 1) if only == "stream" else (PART, 5)
    optimizer = mm.optimizers.momentum(0.01)
    network = mm.Network((FEATURES, 300, 100, CLASSES))
    options: dict[str, Any] = {"seed": 0, "backend": backend, "batch_size": BATCH, "optimizer": optimizer}
    if only == "memory":
        mm.gradient_descent(network, data, epochs=1, **options)  # compiled and warm
    else:
        drop_cache(folder / "x.npy")
    began = perf_counter()
    mm.gradient_descent(network, data, epochs=epochs, **options)
    return {"rows_a_second": rows * epochs / (perf_counter() - began), "peak_megabytes": (peak_memory() - before) / 1e6}


def drop_cache(path: Path) -> None:
    """Have the system forget what it keeps of a file, where it can be asked to."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
