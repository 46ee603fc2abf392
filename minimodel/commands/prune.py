"""``minimodel prune``: what sparsity costs a model."""

from pathlib import Path
from typing import Any

import click

from minimodel import backends, datasets, model, observe, pipeline, plots, storage
from minimodel.commands.options import BACKEND, JSON, MODEL, SEED, TASK, run_files
from minimodel.compress import scores
from minimodel.compress.allocation import ALLOCATIONS
from minimodel.compress.pruning_schedules import SCHEDULES
from minimodel.compress.shrinking import shrink
from minimodel.teacher import Teacher
from minimodel.terminal import environment, progress_bars, show_trade_off, to_json
from minimodel.trade_offs import error, trade_off


@click.command()
@MODEL
@click.argument("data")
@click.option("--sparsity", "sparsities", default="0.8,0.9,0.95,0.98", show_default=True, help="One or several.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Networks for each sparsity.")
@click.option("--score", default="magnitude", show_default=True, help=f"One of {', '.join(scores.NAMES)}.")
@click.option("--pattern", default="unstructured", show_default=True, help="rows, columns, neurons, 2:4, …")
@click.option("--allocation", default="global", show_default=True, help=f"One of {', '.join(ALLOCATIONS)}.")
@click.option("--schedule", default="gradual", show_default=True, help=f"One of {', '.join(SCHEDULES)}.")
@click.option("--cap", type=float, default=1.0, show_default=True, help="The largest part that a layer may lose.")
@click.option("--teach", type=float, help="Weight of MODEL's own outputs as targets, from 0 to 1.")
@click.option("--epochs", type=click.IntRange(0), help="Of retraining; 0 only prunes, with --schedule one_shot.")
@BACKEND
@SEED
@TASK
@click.option("--out", type=click.Path(path_type=Path), default=Path("pruned"), show_default=True, help="Folder.")
@click.option("--plot", is_flag=True, help="Draw error against size to prune.png in the folder; needs matplotlib.")
@JSON
def prune(
    model_path: Path,
    data: str,
    sparsities: str,
    seeds: int,
    teach: float | None,
    epochs: int | None,
    seed: int,
    task: str | None,
    out: Path,
    plot: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Prune MODEL to one or several sparsities and retrain it on DATA; report each on the test part.

    DATA is what MODEL was trained on. All sparsities and seeds are one program. The networks are saved shrunk to
    DIR, one file a sparsity, with a record and a log of the run.
    """
    dense = model.load(model_path)
    splits = datasets.load(data, seed=dense.split_seed or 0, task=task)
    levels = _sparsities(sparsities)
    files = run_files(out, [f"pruned-{level:g}" for level in levels], "prune", plot)
    usual, batch_size = pipeline.budget(len(splits.train.x))
    with progress_bars() as show_progress:
        show_bar, write_line = show_progress("prune"), observe.json_lines(files["log"])

        def callback(progress: observe.Progress) -> None:
            show_bar(progress)
            write_line(progress)

        points = trade_off(
            dense,
            splits,
            sparsities=levels,
            seeds=seeds,
            seed=seed,
            teacher=None if teach is None else Teacher(dense, teach),
            epochs=usual + usual // 2 if epochs is None else epochs,
            batch_size=batch_size,
            optimizer=pipeline.recipe(splits, 0.1),
            callback=callback,
            **options,
        )
    for point in points:
        network = point.model.member(0) if seeds == 1 else point.model
        shrink(network).save(files[f"pruned-{point.sparsity:g}"])
    before = error(dense, splits.test)
    weights = sum(inputs * outputs for inputs, outputs in dense.network.shapes)
    record = {
        "model": str(model_path),
        "data": data,
        "seed": seed,
        "network": {"layer_sizes": dense.network.layer_sizes, "parameters": dense.network.parameters},
        "dense_error": before,
        "points": [point.figures() for point in points],
        "files": files,
        "settings": {"seeds": seeds, "teach": teach, "epochs": epochs, "task": task, **options},
        "environment": environment(backends.load(options["backend"])),
    }
    if plot:
        title = f"{Path(data).name}, {'-'.join(map(str, dense.network.layer_sizes))}, {options['score']}"
        plots.draw_trade_off(points, before, weights, title, files["plot"])
    storage.write(files["record"], (to_json(record, indent=2) + "\n").encode())
    if as_json:
        click.echo(to_json(record))
    else:
        show_trade_off(record, points)


def _sparsities(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(0 <= level <= 1 for level in found) or len(set(found)) < len(found):
        raise click.UsageError(f"--sparsity: expected different numbers from 0 to 1 like 0.9,0.95, got {text!r}")
    return found
