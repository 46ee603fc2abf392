"""Pictures of a run. Matplotlib (the extra ``plot``) is imported when one is drawn."""

from pathlib import Path

import numpy as np

from minimodel.pipeline import Stage
from minimodel.trade_offs import Point, front

INK, SOFT = "#1f4e79", "#c0504d"


def draw_run(stages: list[Stage], title: str, path: str | Path) -> None:
    """The validation loss along the run, and what each stage costs: test error against file size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    curve, cost = figure.subplots(1, 2)
    figure.suptitle(title)

    start = 0
    for stage in stages:
        losses = stage.model.history["validation_loss"]
        curve.plot(np.arange(start, start + len(losses)), losses, color=INK)
        curve.axvline(start, color="0.8", linewidth=0.8, zorder=0)
        curve.annotate(
            f" {stage.name}", (start, 0.98), xycoords=("data", "axes fraction"), va="top", rotation=90, fontsize=8
        )
        start += len(losses)
    curve.set(yscale="log", xlabel="epoch, or ten generations of the search", ylabel="validation loss")

    classify = stages[0].accuracy is not None
    errors = [100 * (1 - (stage.accuracy or 0)) if classify else 1 - (stage.r2 or 0) for stage in stages]
    sizes = [stage.bytes / 1000 for stage in stages]
    middle = (max(sizes) * min(sizes)) ** 0.5
    cost.plot(sizes, errors, "o-", color=SOFT)
    for stage, size, error in zip(stages, sizes, errors, strict=True):
        left = size > middle
        cost.annotate(
            stage.name,
            (size, error),
            xytext=(-8 if left else 8, 6),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=8,
        )
    cost.set(xscale="log", xlabel="kB on disk", ylabel="test error, %" if classify else "1 − test R²", ylim=(0, None))
    ticks = sorted(set(sizes))
    cost.set_xticks(ticks, [f"{tick:,.0f}" if tick >= 10 else f"{tick:.2g}" for tick in ticks])
    cost.minorticks_off()
    figure.savefig(path, dpi=150)


def draw_trade_off(points: list[Point], dense: Point, title: str, path: str | Path) -> None:
    """Test error against what is kept of the weights, bytes and multiply-adds: mean ± standard error over seeds.

    A line leads along the Pareto front of error and bytes. What keeps nothing has no place on such an axis and is left
    out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    figure.suptitle(title)
    points = [point for point in points if point.multiply_adds.mean() > 0]
    classify = dense.model.loss.labels
    heights = np.array([(100 if classify else 1) * point.error for point in points]).reshape(len(points), -1)
    bars = heights.std(axis=1, ddof=1) / heights.shape[1] ** 0.5 if heights.shape[1] > 1 else None
    panels = {
        "weights kept, %": [100 * (1 - point.sparsity) for point in points],
        "bytes of the file": [point.bytes.mean() for point in points],
        "multiply-adds of a row": [point.multiply_adds.mean() for point in points],
    }
    best = {id(point) for point in front(points)}
    line = [i for i in np.argsort(panels["bytes of the file"]) if id(points[i]) in best]
    for axes, (name, x) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        by_bytes = name == "bytes of the file"
        axes.errorbar(
            x, heights.mean(axis=1), bars, fmt="o" if by_bytes else "o-", color=INK, capsize=3, label="compressed"
        )
        if by_bytes:
            axes.plot([x[i] for i in line], [heights[i].mean() for i in line], color=INK, label="Pareto front")
            axes.legend(loc="lower left")
        axes.axhline((100 if classify else 1) * dense.error.mean(), color=SOFT, linestyle="--", label="dense")
        axes.set(xscale="log", xlabel=name)
        ticks = sorted(set(x))
        axes.set_xticks(ticks, [f"{tick:,.0f}" if tick >= 100 else f"{tick:.3g}" for tick in ticks], rotation=45)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="test error, %" if classify else "1 − test R²", ylim=(0, None))
    figure.axes[0].legend(loc="lower left")
    figure.savefig(path, dpi=110)
