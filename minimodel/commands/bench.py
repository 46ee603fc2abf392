"""``minimodel bench``: compare array backends on this machine."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from minimodel import backends, storage
from minimodel.bench import compare as comparison
from minimodel.bench import measure, show
from minimodel.bench.cases import CASES, KINDS, parse_layers
from minimodel.terminal import to_json

QUICK: dict[str, Any] = {"sizes": "64-32-10,784-300-100-10", "populations": "1", "seconds": 48.0}
FULL: dict[str, Any] = {
    "sizes": "2-16-1,64-32-10,784-300-100-10,4x1024,4x4096",
    "populations": "1,32,1024",
    "seconds": 840.0,
}
REPORT = click.Path(path_type=Path, exists=True, dir_okay=False)


def split(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


@click.group(invoke_without_command=True)
@click.option("--quick", is_flag=True, help="Two networks, under a minute; without it under 15 minutes.")
@click.option(
    "--only", callback=split, help=f"Cases, or kinds of them: {', '.join((*KINDS, *CASES))}.".replace("%", "")
)
@click.option("--sizes", callback=split, help="Networks, as 784-300-10, or 4x1024 for four such layers.")
@click.option("--populations", callback=split, help="How many networks at once.")
@click.option("--batch", type=click.IntRange(1), help="Rows of a batch; by default 32 or, of a wide network, 128.")
@click.option("--dtypes", callback=split, default="float32", show_default=True, help="float32, float64, bfloat16, …")
@click.option(
    "--backends",
    "names",
    callback=split,
    help="By default numpy, jax, beside an accelerator jax:cpu, and whatever is registered.",
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="For every backend.")
@click.option("--seconds", type=click.FloatRange(1), help="How long it may take, about.")
@click.option("--seed", type=click.IntRange(0, 2**63), default=0, show_default=True, help="Of the data and the order.")
@click.option(
    "--import", "imports", callback=split, default="", help="Modules to import first, which register backends."
)
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write the report to this file.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw it to this file; needs matplotlib.")
@click.pass_context
def bench(
    context: click.Context,
    quick: bool,
    only: tuple[str, ...],
    sizes: tuple[str, ...],
    populations: tuple[str, ...],
    batch: int | None,
    dtypes: tuple[str, ...],
    names: tuple[str, ...],
    threads: int,
    seconds: float | None,
    seed: int,
    imports: tuple[str, ...],
    out: Path | None,
    plot: Path | None,
) -> None:
    """Time every backend on the same work, its results checked first.

    Operations, steps of the engine and whole algorithms: the first call, the steady state with its spread and, beside
    the first backend, the ratio with a 95 % interval, the calls after which a compiled backend pays, transfer, memory,
    and the part of what the machine can do.
    """
    if context.invoked_subcommand is not None:
        return
    check_files(out, plot)
    defaults = QUICK if quick else FULL
    sys.path.insert(0, "")  # where a module of one's own is looked for, as by ``python -m``
    points = measure.points(
        cases_of(only),
        [parse_layers(one) for one in sizes or defaults["sizes"].split(",")],
        [positive(one) for one in populations or defaults["populations"].split(",")],
        [known_dtype(one) for one in dtypes],
        batch,
    )
    plan = measure.Plan(names or found(), points, seconds or defaults["seconds"], threads, seed, imports, not names)
    with progress() as watch:
        report = measure.measure(plan, watch)
    if out:
        storage.write(out, (to_json(report, indent=1) + "\n").encode())
    show.show(report)
    if not any("samples" in found for point in report["points"] for found in point["backends"].values()):
        raise click.ClickException("nothing was timed; the reasons are above")
    if plot:
        show.draw(report, plot)


@bench.command()
@click.argument("a", type=REPORT)
@click.argument("b", type=REPORT)
def compare(a: Path, b: Path) -> None:
    """Say of each point that reports A and B share how much slower or faster it became, or that it is noise."""
    before, after = measure.load_report(a), measure.load_report(b)
    differences = comparison.compare(before, after)
    if not differences:
        raise click.ClickException(f"{a} and {b} share no point: the same cases, sizes and backends are compared")
    for line in comparison.circumstances(before, after):
        click.echo(f"bench: {line}", err=True)
    comparison.show(differences)


def check_files(out: Path | None, plot: Path | None) -> None:
    """What cannot be written is said before anything is measured."""
    for name, path in (("--json", out), ("--plot", plot)):
        if path and not path.absolute().parent.is_dir():
            raise click.UsageError(f"{name}: there is no folder {path.parent}")
    if plot and not find_spec("matplotlib"):
        raise click.UsageError("--plot needs matplotlib: pip install 'minimodel[plot]'")
    if plot and plot.suffix[1:] not in (known := show.picture_formats()):
        raise click.UsageError(f"--plot: expected a file ending in {', '.join(known)}, got {plot.name!r}")


def cases_of(only: tuple[str, ...]) -> list[str]:
    """Names of cases, from names and kinds."""
    if unknown := set(only) - set(CASES) - set(KINDS):
        raise click.UsageError(f"--only: expected {', '.join((*KINDS, *CASES))}, got {sorted(unknown)[0]!r}")
    return [name for name, case in CASES.items() if not only or name in only or case.kind in only]


def positive(text: str) -> int:
    """A count."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise click.UsageError(f"--populations: expected positive integers like 1,32, got {text!r}")
    return int(text)


def known_dtype(text: str) -> str:
    """A floating dtype."""
    if text not in measure.DTYPES:
        raise click.UsageError(f"--dtypes: expected {', '.join(measure.DTYPES)}, got {text!r}")
    return text


def found() -> tuple[str, ...]:
    """NumPy, JAX and what others have registered; the reference over any namespace only where it is named."""
    return tuple(name for name in backends.available() if name != "array_api")


@contextmanager
def progress() -> Iterator[measure.Watch]:
    """What is being done, on stderr: a bar where a person is watching, else a line at each new stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    stages: list[str] = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("start", total=None)

        def watch(what: str, done: int, total: int) -> None:
            bars.update(bar, description=what, completed=done, total=total or None)
            if (stage := what.partition(" ")[0]) not in stages:
                stages.append(stage)
                if not console.is_terminal:
                    click.echo(f"bench: {what} …", err=True)

        yield watch
