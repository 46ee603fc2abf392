"""What the command line shows: progress, the closing table, JSON, and where a run ran."""

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import click
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from minimodel import __version__, observe
from minimodel.backends import Backend
from minimodel.model import standard_error
from minimodel.observe import Callback, plain
from minimodel.pipeline import Stage
from minimodel.trade_offs import Point


def environment(backend: Backend) -> dict[str, Any]:
    """What a figure depends on besides the code and the seed."""
    from threadpoolctl import threadpool_info

    libraries = ("numpy", "jax", "jaxlib") if backend.name.startswith("jax") else ("numpy",)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "minimodel": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
        "machine": f"{platform.system()} {platform.machine()}",
        "devices": list(backend.devices),
        "blas": [
            {key: pool.get(key) for key in ("internal_api", "version", "num_threads")} for pool in threadpool_info()
        ],
    }


def to_json(values: Any, indent: int | None = None) -> str:
    """JSON, which has no infinity: null in its place."""
    return json.dumps(plain(values), indent=indent, allow_nan=False)


def show(record: dict[str, Any], stages: list[Stage]) -> None:
    """The closing table: loss and accuracy on the test part, and the size against dense float32 parameters."""
    classify = stages[0].accuracy is not None
    sizes = "-".join(map(str, record["network"]["layer_sizes"]))
    title = f"{record['data']}, {sizes}, {record['backend']}, seed {record['seed']}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    for name in ("loss", "accuracy" if classify else "R²", "non-zero", "bytes", "smaller", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    dense = 4 * record["network"]["parameters"]
    for stage in stages:
        score = stage.accuracy if classify else stage.r2
        table.add_row(
            stage.name,
            f"{stage.loss:.4f}",
            "–" if score is None else f"{score:.4f}",
            f"{stage.nonzero:,}",
            f"{stage.bytes:,}",
            f"{dense / stage.bytes:.1f}×",
            f"{stage.seconds:.1f}",
        )
    Console().print(table)
    click.echo(f"model   {record['files']['model']}\nrecord  {record['files']['record']}")


def show_trade_off(record: dict[str, Any], points: list[Point]) -> None:
    """A line for each point: what is left, and the test error, mean ± standard error over the seeds."""
    sizes = "-".join(map(str, record["network"]["layer_sizes"]))
    table = Table(title=f"{record['data']}, {sizes}, seed {record['seed']}", title_justify="left", box=SIMPLE_HEAD)
    error = "test error" if points[0].model.loss.labels else "1 − R²"
    for name in ("weights", "of", "bits", "bytes", "multiply-adds", error, "± s.e."):
        table.add_column(name, justify="right", no_wrap=True)
    for point in points:
        spread = f"{standard_error(point.error):.4f}" if len(point.error) > 1 else "–"
        kept, size, work = (f"{values.mean():,.0f}" for values in (point.kept, point.bytes, point.multiply_adds))
        left = f"{100 * (1 - point.sparsity):.3g} %"
        table.add_row(kept, left, bits_of(point), size, work, f"{point.error.mean():.4f}", spread)
    Console().print(table)
    click.echo(f"record  {record['files']['record']}")


def bits_of(point: Point) -> str:
    """As "4", or "4-2-8" for the layers; of seeds that differ their mean."""
    if not isinstance(point.bits, tuple):
        return "32" if point.bits is None else str(point.bits)
    layers = np.array([one if isinstance(one, tuple) else (one,) for one in point.bits])
    return "-".join(f"{mean:.2g}" for mean in layers.mean(axis=0))


@contextmanager
def progress_bars() -> Iterator[Callable[[str], Callback]]:
    """One bar a stage on stderr, with its rate and the time left; nothing where no person is watching."""
    columns = (
        TextColumn("{task.description:<17}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]:>9}"),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[rate]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def on_progress(name: str) -> Callback:
            bar = bars.add_task(name, total=None, loss=float("nan"), pace="", rate="")

            def callback(now: observe.Progress) -> None:
                pace = f"{(now.done - now.first) / now.seconds:.1f}/s" if now.seconds else ""
                rate = "" if now.learning_rate is None else f"rate {np.max(now.learning_rate):.2g}"
                bars.update(bar, completed=now.done, total=now.total, loss=now.best, pace=pace, rate=rate)

            return callback

        yield on_progress
