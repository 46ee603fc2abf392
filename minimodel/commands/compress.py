"""``minimodel prune`` and ``minimodel quantize``: what a smaller model costs in error."""

from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np

from minimodel import backends, datasets, export, model, observe, pipeline, plots, storage
from minimodel.commands.options import BACKEND, JSON, MODEL, SEED, TASK, cleared, run_files
from minimodel.compress import coded, patterns, scores
from minimodel.compress.allocation import ALLOCATIONS
from minimodel.compress.integer import to_integers
from minimodel.compress.pruning_schedules import SCHEDULES
from minimodel.compress.quantization import ROUNDINGS, SCHEMES
from minimodel.compress.ranges import RANGES
from minimodel.compress.shrinking import shrink
from minimodel.teacher import Teacher
from minimodel.terminal import environment, progress_bars, show_trade_off, to_json
from minimodel.trade_offs import point, trade_off

PART = click.FloatRange(0, 1)
EXTRAS = {"constriction": "coded", "onnx": "onnx"}
COMMON = (
    click.option("--seeds", type=click.IntRange(1), help="Networks of each kind; by default as many as MODEL holds."),
    click.option("--teach", type=PART, help="Weight of MODEL's own outputs as targets."),
    click.option("--temperature", type=float, default=1.0, show_default=True, help="Of those outputs."),
    click.option("--epochs", type=click.IntRange(0), help="Of retraining."),
    BACKEND,
    SEED,
    TASK,
    click.option("--out", type=click.Path(path_type=Path), help="Folder for the models and the record of the run."),
    click.option("--plot", is_flag=True, help="Draw error against size to a .png in the folder; needs matplotlib."),
    JSON,
)


def common(command: Callable[..., None]) -> Callable[..., None]:
    """The options of both commands."""
    for option in reversed(COMMON):
        command = option(command)
    return command


@click.command()
@MODEL
@click.argument("data")
@click.option("--sparsity", default="0.8,0.9,0.95,0.98", show_default=True, help="One or several.")
@click.option(
    "--score", type=click.Choice(scores.NAMES), default="magnitude", show_default=True, help="What goes first."
)
@click.option("--pattern", default="unstructured", show_default=True, help="rows, columns, neurons, 2:4, …")
@click.option("--allocation", type=click.Choice(ALLOCATIONS), default="global", show_default=True, help="Over layers.")
@click.option("--schedule", type=click.Choice(list(SCHEDULES)), default="gradual", show_default=True, help="When.")
@click.option("--cap", type=PART, default=1.0, show_default=True, help="The largest part that a layer may lose.")
@common
def prune(model_path: Path, data: str, sparsity: str, **options: Any) -> None:
    """Prune MODEL to one or several sparsities and retrain it on DATA; report each on the test part.

    DATA is what MODEL was trained on. All sparsities and seeds are one program. The networks are saved shrunk, a file
    for each, to DIR with a record and a log of the run. Without retraining, --epochs 0 --schedule one_shot.
    """
    levels = _numbers("--sparsity", sparsity, float, 0, 1)
    try:
        patterns.get(options["pattern"])
    except ValueError as error:
        raise click.UsageError(f"--{error}") from error
    _compress("prune", model_path, data, {"sparsities": levels}, **options)


@click.command()
@MODEL
@click.argument("data")
@click.option("--bits", help="Of a weight, one or several numbers from 1 to 8.  [default: 8,4,3,2]")
@click.option("--budget", help="Bytes of a coded file, one or several: bits and sparsity are chosen for each layer.")
@click.option("--budget-sparsity", help="What there is to choose from.  [default: 0,0.5,0.8,0.9,0.95,0.98]")
@click.option("--activation-bits", type=click.IntRange(1, 8), help="Of an activation; relu becomes relu of few bits.")
@click.option("--scheme", type=click.Choice(SCHEMES), default="symmetric", show_default=True, help="The levels.")
@click.option("--granularity", default="channel", show_default=True, help="channel, tensor, or inputs to a scale.")
@click.option("--range", "range_name", type=click.Choice(list(RANGES)), help="What the integers reach.")
@click.option(
    "--rounding", type=click.Choice(ROUNDINGS), default="half_even", show_default=True, help="To the integer."
)
@click.option("--power-of-two", is_flag=True, help="Scales are powers of two.")
@click.option("--gradual", default="", help="Bits to train with before, one number after the other.")
@click.option("--correct-bias", is_flag=True, help="Biases take up the mean that rounding moved.")
@click.option("--learn-levels", is_flag=True, help="Train the scales, or the centres of a codebook, as well.")
@click.option("--coded", "as_coded", is_flag=True, help="Save entropy-coded files; needs constriction.")
@click.option("--onnx", is_flag=True, help="Save an integer-only ONNX file beside each model; needs onnx.")
@common
def quantize(
    model_path: Path,
    data: str,
    bits: str | None,
    budget: str | None,
    budget_sparsity: str | None,
    granularity: str,
    range_name: str | None,
    gradual: str,
    as_coded: bool,
    onnx: bool,
    **options: Any,
) -> None:
    """Quantize MODEL to one or several numbers of bits and retrain it on DATA; report each on the test part.

    DATA is what MODEL was trained on. All numbers of bits and seeds are one program. The networks are saved shrunk, a
    file for each, to DIR with a record and a log of the run; with --budget or --coded as .mmc. Coded and ONNX files
    take a symmetric scheme and a scale for each channel or tensor.
    """
    if budget is None:
        levels = {"bits": _numbers("--bits", bits or "8,4,3,2", int, 1, 8)}
    else:
        levels = {"budgets": _numbers("--budget", budget, int, 1, 2**31)}
        parts = budget_sparsity or "0,0.5,0.8,0.9,0.95,0.98"
        options["budget_sparsities"] = _numbers("--budget-sparsity", parts, float, 0, 1)
        as_coded = True
    if (bits if budget else budget_sparsity) is not None:
        raise click.UsageError("--budget chooses the bits, and --budget-sparsity goes with it; leave one of them out")
    if gradual:
        options["gradual"] = _numbers("--gradual", gradual, int, 1, 8)
    for wanted, option, module in ((as_coded, "--coded, --budget", "constriction"), (onnx, "--onnx", "onnx")):
        if wanted and not find_spec(module):
            raise click.UsageError(f"{option}: needs {module}: pip install 'minimodel[{EXTRAS[module]}]'")
        if wanted and not coded.takes(options["scheme"], granularity):
            raise click.UsageError(f"{option}: takes a symmetric --scheme and --granularity channel or tensor")
    options |= {"granularity": _granularity(granularity), "range_of": range_name and RANGES[range_name]}
    _compress("quantize", model_path, data, levels, as_coded=as_coded, onnx=onnx, **options)


def _compress(
    name: str,
    model_path: Path,
    data: str,
    levels: dict[str, list[Any]],
    *,
    seeds: int | None,
    teach: float | None,
    temperature: float,
    epochs: int | None,
    seed: int,
    task: str | None,
    out: Path | None,
    plot: bool,
    as_json: bool,
    as_coded: bool = False,
    onnx: bool = False,
    **options: Any,
) -> None:
    """Run, save and show."""
    dense = model.load(model_path)
    seeds = seeds or dense.population or 1
    splits = datasets.load(data, seed=dense.split_seed or 0, task=task)
    ends = [f"-{seed + i}" if seeds > 1 else "" for i in range(seeds)]
    names = [[f"{name}-{level!r}{end}" for end in ends] for values in levels.values() for level in values]
    files = run_files(out or Path("runs") / f"{model_path.stem}-{name}-{seed}", chain(*names), name, plot)
    if as_coded:
        files |= {own: str(Path(files[own]).with_suffix(".mmc")) for own in chain(*names)}
    if onnx:
        files |= {f"{own}-onnx": str(Path(files[own]).with_suffix(".onnx")) for own in chain(*names)}
    if model_path.resolve() in {Path(path).resolve() for path in files.values()}:
        raise click.UsageError(f"--out: {model_path} is MODEL itself; take another folder")
    usual, batch_size = pipeline.budget(len(splits.train.x))
    usual = usual + usual // 2 if name == "prune" else usual // 2
    write_line = observe.json_lines(files["log"])
    with progress_bars() as show_progress:
        show_bar = show_progress(name)

        def callback(progress: observe.Progress) -> None:
            if progress.done == 1:  # all arguments were right
                cleared(files)
            show_bar(progress)
            write_line(progress)

        points = trade_off(
            dense,
            splits,
            **levels,
            seeds=seeds,
            seed=seed,
            teacher=None if teach is None else Teacher(dense, teach, temperature),
            epochs=usual if epochs is None else epochs,
            batch_size=batch_size,
            optimizer=pipeline.recipe(splits, 0.1 if name == "prune" else 0.02),
            callback=callback,
            **options,
        )
    if epochs == 0:
        cleared(files)
    for at, own in enumerate(names):
        found = points[at]
        for i, key in enumerate(own):
            network = shrink(found.model.member(i))
            if as_coded:
                coded.save(network, files[key])
            else:
                network.save(files[key])
            if onnx:
                export.to_onnx(to_integers(network, splits), files[f"{key}-onnx"])
        points[at] = found._replace(bytes=np.array([Path(files[key]).stat().st_size for key in own]))
    before = point(dense, splits)
    settings = {"seeds": seeds, "teach": teach, "temperature": temperature, "epochs": epochs, "task": task, **options}
    if settings.get("range_of"):
        settings["range_of"] = next(key for key, value in RANGES.items() if value is settings["range_of"])
    record = {
        "model": str(model_path),
        "data": data,
        "seed": seed,
        "network": {"layer_sizes": dense.network.layer_sizes, "parameters": dense.network.parameters},
        "dense": before.figures(),
        "points": [found.figures() for found in points],
        "files": files,
        "settings": {**levels, **settings},
        "environment": environment(backends.load(options["backend"])),
    }
    if plot:
        title = f"{Path(data).name}, {'-'.join(map(str, dense.network.layer_sizes))}, {name}"
        plots.draw_trade_off(points, before, title, files["plot"])
    storage.write(files["record"], (to_json(record, indent=2) + "\n").encode())
    if as_json:
        click.echo(to_json(record))
    else:
        show_trade_off(record, [before, *points])


def _granularity(text: str) -> str | int:
    if text in ("channel", "tensor"):
        return text
    if not text.isdecimal() or int(text) < 1:
        raise click.UsageError(f"--granularity: expected channel, tensor or a number of inputs, got {text!r}")
    return int(text)


def _numbers(option: str, text: str, kind: type, least: int, most: int) -> list[Any]:
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(least <= level <= most for level in found) or len(set(found)) < len(found):
        raise click.UsageError(
            f"{option}: expected different numbers from {least} to {most} separated by commas, got {text!r}"
        )
    return found
