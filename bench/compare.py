"""Two reports, point by point: what became slower, what faster, and what is noise."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from minimodel.bench.show import size_of
from minimodel.bench.statistics import BETWEEN_RUNS, Ratio, unpaired


class Difference(NamedTuple):
    """A point that two reports share: how many times the seconds of the first the second takes."""

    case: str
    size: str
    backend: str
    ratio: Ratio
    verdict: str


def compare(before: dict[str, Any], after: dict[str, Any], floor: float = BETWEEN_RUNS) -> list[Difference]:
    """All points timed in both."""
    old = dict(samples(before))
    return [
        Difference(*key, ratio, ratio.verdict(floor))
        for key, passes in samples(after)
        if key in old
        for ratio in [unpaired(passes, old[key])]
    ]


def samples(report: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], list[list[float]]]]:
    """By case, size and backend, those of every pass."""
    for point in report["points"]:
        for name, found in point["backends"].items():
            if "samples" in found:
                yield (point["case"], str(size_of(point)), name), found["samples"]


def show(differences: list[Difference]) -> None:
    """The table on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for name in ("case", "network/batch ×networks", "backend"):
        table.add_column(name, no_wrap=True)
    for name in ("B / A", "95 % interval", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for one in differences:
        interval = f"[{one.ratio.low:.2f}, {one.ratio.high:.2f}]"
        table.add_row(one.case, one.size, one.backend, f"{one.ratio.value:.2f}", interval, one.verdict)
    console = Console()
    (console if console.is_terminal else Console(width=400)).print(table)
