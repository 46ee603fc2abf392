"""What a report looks like: a table, and pictures of time against size and of the roofline."""

from itertools import groupby
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from minimodel.bench.cases import Size
from minimodel.bench.measure import best_peaks, middle
from minimodel.bench.statistics import SAME_RUN, Ratio, break_even, crossovers, paired, spread, unstable

COLORS = ("#1f4e79", "#c0504d", "#4f8f4f", "#8064a2", "#d08a2e")
COLUMNS = (
    "case", "network/batch ×networks", "backend", "first call", "steady", "±", " ", "times the first", "pays after",
    "% products", "% memory", "in", "out", "MB",
)  # fmt: skip
NARROW = ("case", "network/batch ×networks", "backend", "steady", "times the first", "pays after")
WIDE = 160  # characters, which all columns need


class Row:
    """A backend at a point of a report, and the first backend there, with which it is compared."""

    def __init__(self, report: dict[str, Any], point: dict[str, Any], name: str) -> None:
        self.name, self.point, self.found = name, point, point["backends"][name]
        self.size = size_of(point)
        timed = [other for other, found in point["backends"].items() if "samples" in found]
        self.base = timed[0] if timed else name
        self.timed = name in timed
        if self.timed:
            self.seconds = middle(self.found)
            peaks = best_peaks(report, self.size.dtype, name)
            self.of_products = point["operations"] / self.seconds / peaks["operations"]
            self.of_memory = point["bytes"] / self.seconds / peaks["bytes"]

    @property
    def operations(self) -> float:
        """Of a call."""
        return self.point["operations"]

    @property
    def samples(self) -> Any:
        """Of all passes."""
        return np.concatenate(self.found["samples"])

    @property
    def ratio(self) -> Ratio:
        """To the first backend."""
        return paired(self.samples, np.concatenate(self.point["backends"][self.base]["samples"]))

    @property
    def verdict(self) -> str:
        """Beside the first backend."""
        return self.ratio.verdict(SAME_RUN)

    @property
    def pays(self) -> str:
        """After how many calls, if ever, the dearer first call of the two has paid; "until" where it is the other's."""
        base = self.point["backends"][self.base]
        own, other = ((found["first_seconds"], middle(found)) for found in (self.found, base))
        dearer = own[0] > other[0]
        if self.verdict != ("faster" if dearer else "slower"):
            return "never" if dearer else "at once"
        calls = break_even(*own, *other) if dearer else break_even(*other, *own)
        return f"{calls:,.0f}" if dearer else f"until {calls:,.0f}"


def size_of(point: dict[str, Any]) -> Size:
    """Back from JSON."""
    given = point["size"]
    return Size(tuple(given["layers"]), given["batch"], given["population"], given["dtype"])


def show(report: dict[str, Any]) -> None:
    """The table on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = console if console.is_terminal else Console(width=400)  # a table takes what it needs
    columns = COLUMNS if console.width >= WIDE else NARROW
    for line in heading(report):
        console.print(line, highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD)
    skipped: dict[str, dict[str, list[str]]] = {}  # by reason and point the backends
    for column in columns:
        table.add_column(column, no_wrap=True, justify="left" if column in COLUMNS[:3] else "right")
    for case, points in groupby(report["points"], key=lambda point: point["case"]):
        for point in points:
            for backend in point["backends"]:
                row = Row(report, point, backend)
                if row.timed:
                    texts = dict(zip(COLUMNS, cells(row), strict=True))
                    table.add_row(*(texts[column] for column in columns))
                else:
                    skipped.setdefault(row.found["skipped"], {}).setdefault(f"{case} {row.size}", []).append(backend)
        table.add_section()
    if table.row_count:
        console.print(table)
    if table.row_count and columns is NARROW:
        console.print(f"left out: {', '.join(set_aside(columns))}; {WIDE} columns, or a file, have room for them")
    for why, where in skipped.items():
        left_out = "; ".join(f"{point} on {', '.join(names)}" for point, names in where.items())
        console.print(f"not timed: {why}: {left_out}", highlight=False, soft_wrap=True)


def set_aside(columns: tuple[str, ...]) -> list[str]:
    """The names of the other columns."""
    return [name for name in COLUMNS if name.strip() and name not in columns]


def heading(report: dict[str, Any]) -> list[str]:
    """The machine, the threads, the backends, and what the columns hold."""
    machine, threads = report["machine"], report["settings"]["threads"]
    pools = ", ".join(f"{pool['internal_api']} {pool['num_threads']}" for pool in threads["pools"])
    lines = [
        f"{machine['processor']}, {machine['system']}; seed {report['settings']['seed']}",
        f"threads: {threads['asked']} asked for; processors {threads.get('processors', 'not limited')}, {pools}"
        + ("" if threads["set_before_jax"] else "; JAX was loaded before and keeps its own"),
    ]
    for name, about in report["backends"].items():
        if "refused" in about:
            lines.append(f"{name}: refused. {about['refused']}")
            continue
        peaks = "; ".join(
            f"{dtype} {rates['operations'] / 1e9:,.0f} G operations/s, {rates['bytes'] / 1e9:,.1f} GB/s"
            for dtype, rates in about["peaks"].items()
            if rates
        )
        start = "" if about["import_seconds"] is None else f"loads in {text(about['import_seconds'])}, "
        first = "" if about["start_seconds"] is None else f"first product {text(about['start_seconds'])}, "
        mark = ", experimental" if about["experimental"] else ""
        lines.append(f"{name} ({about['library']} {about['version']}{mark}): {start}{first}peak {peaks}")
    lines += [
        "times the first: the steady time by that of the first backend, with a 95 % interval; pays after: calls until "
        "a dearer first call is made up for, its own or (until) that of the first backend",
        "% of the peak for products and of that for memory, measured above (over 100: in the cache); in, out: transfer "
        "of inputs and result; MB: the most memory, inputs included",
    ]
    return lines


def cells(row: Row) -> list[str]:
    """A line of the table."""
    found, own = row.found, row.name == row.base
    ratio, peak = row.ratio, found["peak_bytes"]
    times = "" if own else f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    if not own and row.verdict == "no difference":
        times = "no difference"
    return [
        row.point["case"],
        str(row.size),
        row.name,
        text(found["first_seconds"]),
        text(row.seconds),
        f"{100 * spread(row.samples):.0f} %",
        "unstable" if unstable(found["samples"]) else "",
        times,
        "" if own else row.pays,
        *("" if isnan(part) else f"{100 * part:.1f}" for part in (row.of_products, row.of_memory)),
        *("" if found[way] is None else text(found[way]) for way in ("to_device_seconds", "to_host_seconds")),
        "" if peak is None else f"{peak / 1e6:,.1f}",
    ]


def text(seconds: float) -> str:
    """In the unit that suits."""
    unit, scale = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * scale:.3g} {unit}"


def lines(report: dict[str, Any]) -> dict[str, list[Row]]:
    """The timed rows of every case (and dtype), those of more operations later."""
    found: dict[str, list[Row]] = {}
    for point in report["points"]:
        for row in (Row(report, point, name) for name in point["backends"]):
            if row.timed:
                title = point["case"] if row.size.dtype == "float32" else f"{point['case']}, {row.size.dtype}"
                found.setdefault(title, []).append(row)
    return {title: sorted(rows, key=lambda row: row.operations) for title, rows in found.items()}


def draw(report: dict[str, Any], path: str | Path) -> None:
    """Seconds a call against its operations, for every case, with the crossovers; and the roofline."""
    from matplotlib.figure import Figure

    found = lines(report)
    columns = min(4, len(found) + 1)
    count = -(-(len(found) + 1) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * count), layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False).ravel()
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(report["backends"])}
    for panel, (title, rows) in zip(axes, found.items(), strict=False):
        draw_times(panel, title, rows, colors)
    draw_roofline(axes[len(found)], report, found, colors)
    for panel in axes[len(found) + 1 :]:
        panel.set_axis_off()
    if found:
        axes[0].legend(fontsize=7)
    threads = report["settings"]["threads"]["asked"]
    figure.suptitle(f"{report['machine']['processor']}, {threads} thread{'s' * (threads > 1)}")
    figure.savefig(path, dpi=110)


def picture_formats() -> list[str]:
    """The endings of files that can be drawn to."""
    from matplotlib.figure import Figure

    return sorted(Figure().canvas.get_supported_filetypes())


def draw_times(panel: Any, title: str, rows: list[Row], colors: dict[str, str]) -> None:
    """One case: a line for each backend and population, and where one crosses that of the first backend."""
    series: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        series.setdefault((row.size.members, row.name), []).append(row)
    styles = dict(zip(sorted({members for members, _ in series}), ("-", "--", ":", "-."), strict=False))
    for (members, name), own in series.items():
        x, y = [row.operations for row in own], [row.seconds for row in own]
        label = name if members == 1 else f"{name}, {members} networks"
        panel.plot(x, y, "o" + styles.get(members, "-"), markersize=3, color=colors[name], label=label)
        for at in overtaken(own, series.get((members, own[0].base), [])):
            panel.plot(*at, "k|", markersize=14)
            panel.annotate(f"{at[0]:.1g}", at, xytext=(4, -10), textcoords="offset points", fontsize=7)
    panel.set(title=title, xscale="log", yscale="log", xlabel="operations a call", ylabel="seconds a call")
    panel.grid(alpha=0.3)


def overtaken(own: list[Row], base: list[Row]) -> list[tuple[float, float]]:
    """Operations and seconds where the line crosses that of the first backend."""
    known = {row.operations: row.seconds for row in base}
    shared = {row.operations: row.seconds for row in own if row.operations in known}
    x = list(shared)
    at = crossovers(x, list(shared.values()), [known[one] for one in x])
    return [(one, float(np.exp(np.interp(np.log(one), np.log(x), np.log(list(shared.values())))))) for one in at]


def draw_roofline(panel: Any, report: dict[str, Any], found: dict[str, list[Row]], colors: dict[str, str]) -> None:
    """Operations a second against operations a byte, under what the devices can do."""
    rows = [row for own in found.values() for row in own if row.size.dtype == "float32"]
    x = np.logspace(-2, 4, 50)
    for name in {row.name for row in rows}:
        best = best_peaks(report, "float32", name)
        panel.plot(x, np.minimum(best["operations"], x * best["bytes"]), color="0.3", linewidth=1)
    for row in rows:
        intensity = row.operations / row.point["bytes"]
        panel.plot(intensity, row.operations / row.seconds, "o", markersize=3, color=colors[row.name])
    panel.set(title="roofline, float32", xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations/s")
    panel.grid(alpha=0.3)
