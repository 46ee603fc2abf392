"""Two reports, point by point: what became slower, what faster, and what is noise."""

from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from minimodel.bench.measure import REFERENCE, platform
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
    old = dict(passes(before))
    return [
        Difference(*key, ratio, ratio.verdict(floor))
        for key, own in passes(after)
        if key in old
        for ratio in [unpaired(own, old[key])]
    ]


def circumstances(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What else than the code differs between two reports, and what only one of them has."""
    lines = []
    for where, what in (("machine", "processor"), ("machine", "packages"), ("settings", "threads")):
        if (a := before[where][what]) != (b := after[where][what]):
            lines.append(f"not the same {what}: {differing(a, b)}")
    if alone := len(dict(passes(before)).keys() ^ dict(passes(after)).keys()):
        lines.append(f"{alone} points are in one of the reports only and are left out")
    return lines


def differing(a: Any, b: Any) -> str:
    """Both values, or of two records those that differ."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return f"A {a}, B {b}"
    names = [name for name in sorted(a | b) if a.get(name) != b.get(name)]
    return "; ".join(f"{name} A {a.get(name)}, B {b.get(name)}" for name in names)


def passes(report: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], list[float]]]:
    """By case, size and backend, the median of every pass.

    On a processor it is counted in units of the reference, so that a machine that others slow down, as shared ones are
    by a tenth from one minute to the next, is not taken for a slower program.
    """
    for point in report["points"]:
        for name, found in point["backends"].items():
            if "samples" in found:
                medians = [median(seconds) for seconds in found["samples"]]
                if platform(report["backends"][name]) == "cpu":
                    medians = [own / median(unit) for own, unit in zip(medians, point[REFERENCE], strict=True)]
                yield (point["case"], str(size_of(point)), name), medians


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
