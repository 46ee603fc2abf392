"""``minimodel prune``: what sparsity costs a model."""

from itertools import chain
from pathlib import Path
from typing import Any

import click

from minimodel import backends, datasets, model, observe, pipeline, plots, storage
from minimodel.commands.options import BACKEND, JSON, MODEL, SEED, TASK, cleared, run_files
from minimodel.compress import patterns, scores
from minimodel.compress.allocation import ALLOCATIONS
from minimodel.compress.pruning_schedules import SCHEDULES
from minimodel.compress.shrinking import shrink
from minimodel.teacher import Teacher
from minimodel.terminal import environment, progress_bars, show_trade_off, to_json
from minimodel.trade_offs import point, trade_off

PART = click.FloatRange(0, 1)


@click.command()
@MODEL
@click.argument("data")
@click.option("--sparsity", "sparsities", default="0.8,0.9,0.95,0.98", show_default=True, help="One or several.")
@click.option("--seeds", type=click.IntRange(1), help="Networks for each sparsity; by default as many as MODEL holds.")
@click.option(
    "--score", type=click.Choice(scores.NAMES), default="magnitude", show_default=True, help="What goes first."
)
@click.option("--pattern", default="unstructured", show_default=True, help="rows, columns, neurons, 2:4, …")
@click.option("--allocation", type=click.Choice(ALLOCATIONS), default="global", show_default=True, help="Over layers.")
@click.option("--schedule", type=click.Choice(list(SCHEDULES)), default="gradual", show_default=True, help="When.")
@click.option("--cap", type=PART, default=1.0, show_default=True, help="The largest part that a layer may lose.")
@click.option("--teach", type=PART, help="Weight of MODEL's own outputs as targets.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of those outputs.")
@click.option("--epochs", type=click.IntRange(0), help="Of retraining; 0 only prunes, with --schedule one_shot.")
@BACKEND
@SEED
@TASK
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the models and the record of the run.")
@click.option("--plot", is_flag=True, help="Draw error against size to prune.png in the folder; needs matplotlib.")
@JSON
def prune(
    model_path: Path,
    data: str,
    sparsities: str,
    seeds: int | None,
    teach: float | None,
    temperature: float,
    epochs: int | None,
    seed: int,
    task: str | None,
    out: Path | None,
    plot: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Prune MODEL to one or several sparsities and retrain it on DATA; report each on the test part.

    DATA is what MODEL was trained on. All sparsities and seeds are one program. The networks are saved shrunk, a file
    for each, to DIR with a record and a log of the run.
    """
    levels = _sparsities(sparsities)
    try:
        patterns.get(options["pattern"])
    except ValueError as error:
        raise click.UsageError(f"--{error}") from error
    dense = model.load(model_path)
    seeds = seeds or dense.population or 1
    splits = datasets.load(data, seed=dense.split_seed or 0, task=task)
    names = [[f"pruned-{level!r}" + (f"-{seed + i}" if seeds > 1 else "") for i in range(seeds)] for level in levels]
    files = run_files(out or Path("runs") / f"{model_path.stem}-pruned-{seed}", chain(*names), "prune", plot)
    if model_path.resolve() in {Path(path).resolve() for path in files.values()}:
        raise click.UsageError(f"--out: {model_path} is MODEL itself; take another folder")
    usual, batch_size = pipeline.budget(len(splits.train.x))
    write_line = observe.json_lines(files["log"])
    with progress_bars() as show_progress:
        show_bar = show_progress("prune")

        def callback(progress: observe.Progress) -> None:
            if progress.done == 1:  # all arguments were right
                cleared(files)
            show_bar(progress)
            write_line(progress)

        points = trade_off(
            dense,
            splits,
            sparsities=levels,
            seeds=seeds,
            seed=seed,
            teacher=None if teach is None else Teacher(dense, teach, temperature),
            epochs=usual + usual // 2 if epochs is None else epochs,
            batch_size=batch_size,
            optimizer=pipeline.recipe(splits, 0.1),
            callback=callback,
            **options,
        )
    if epochs == 0:
        cleared(files)
    for own, found in zip(names, points, strict=True):
        for i, name in enumerate(own):
            shrink(found.model.member(i)).save(files[name])
    before = point(0.0, dense, splits)
    record = {
        "model": str(model_path),
        "data": data,
        "seed": seed,
        "network": {"layer_sizes": dense.network.layer_sizes, "parameters": dense.network.parameters},
        "dense": before.figures(),
        "points": [found.figures() for found in points],
        "files": files,
        "settings": {
            "seeds": seeds,
            "teach": teach,
            "temperature": temperature,
            "epochs": epochs,
            "task": task,
            **options,
        },
        "environment": environment(backends.load(options["backend"])),
    }
    if plot:
        title = f"{Path(data).name}, {'-'.join(map(str, dense.network.layer_sizes))}, {options['score']}"
        plots.draw_trade_off(points, before, title, files["plot"])
    storage.write(files["record"], (to_json(record, indent=2) + "\n").encode())
    if as_json:
        click.echo(to_json(record))
    else:
        show_trade_off(record, [before, *points])


def _sparsities(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(0 <= level <= 1 for level in found) or len(set(found)) < len(found):
        raise click.UsageError(f"--sparsity: expected different numbers from 0 to 1 like 0.9,0.95, got {text!r}")
    return found
