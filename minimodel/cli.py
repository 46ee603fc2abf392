"""The command line: results on stdout, progress and errors on stderr, exit codes 0, 1 (failed) and 2 (usage)."""

import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from minimodel import __version__, backends, datasets, model, observe, pipeline, plots, storage
from minimodel.datasets import Dataset
from minimodel.model import Model
from minimodel.network import Network
from minimodel.problem import DivergedError

try:
    import click

    from minimodel.terminal import environment, progress_bars, show, to_json
except ModuleNotFoundError as missing:
    sys.exit(f"minimodel: the command line needs {missing.name}: pip install 'minimodel[cli]'")

FAILURES = (ValueError, TypeError, ImportError, OSError, DivergedError, MemoryError)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of a table.")
TEST_SEED = click.option(
    "--seed",
    type=click.IntRange(0, 2**63),
    help="Of the run that made MODEL: decides which rows of 'digits' are the test part. By default as MODEL remembers.",
)
SEED = click.option("--seed", type=click.IntRange(0, 2**63), default=0, show_default=True, help="Decides every draw.")
BACKEND = click.option("--backend", default="numpy", show_default=True, help="numpy, jax, jax:cpu, jax:gpu, …")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every failure is one line on stderr and an exit code."""
    try:
        sys.exit(cli.main(args=arguments, prog_name="minimodel", standalone_mode=False) or 0)
    except click.ClickException as error:
        fail(error.format_message(), 2 if isinstance(error, click.UsageError) else 1)
    except click.Abort:
        fail("interrupted", 130)
    except FAILURES as error:
        fail(str(error) or type(error).__name__, 1)
    except Exception as error:
        if os.environ.get("MINIMODEL_DEBUG"):
            raise
        fail(f"unexpected {type(error).__name__}: {error}; MINIMODEL_DEBUG=1 shows where", 1)


def fail(message: str, code: int) -> None:
    """One line, whatever the message holds."""
    click.echo(f"minimodel: {' '.join(message.split())}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Search, train, prune and quantize small dense networks, on NumPy or JAX."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("data", default="digits")
@BACKEND
@click.option("--hidden", default="256,128", show_default=True, help="Sizes of the hidden layers; '' for none.")
@click.option(
    "--sparsity",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="Part of the weights to prune.",
)
@click.option("--bits", type=click.IntRange(2, 8), default=4, show_default=True, help="Bits of a quantized weight.")
@SEED
@click.option("--epochs", type=click.IntRange(0), help="Of gradient descent; pruning and quantization follow it.")
@click.option("--task", type=click.Choice(datasets.TASKS), help="Where the targets alone do not tell.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the models and the record of the run.")
@click.option("--plot", is_flag=True, help="Draw the run to run.png in the folder; needs matplotlib.")
@JSON
def run(
    data: str,
    backend: str,
    hidden: str,
    sparsity: float,
    bits: int,
    seed: int,
    epochs: int | None,
    task: str | None,
    out: Path | None,
    plot: bool,
    as_json: bool,
) -> None:
    """Search for a model on DATA, train it, prune it, quantize it; report each stage on the test part.

    DATA is 'digits' (embedded), a folder of IDX files (as MNIST's), a .npz with x and y, or a .csv whose last column
    is the target.
    """
    if math.isnan(sparsity):  # click's range lets it pass
        raise click.UsageError("--sparsity: expected a number from 0 to 1, got nan")
    loaded = backends.load(backend)
    splits = datasets.load(data, seed=seed, task=task)
    network = Network((splits.train.x.shape[1], *_sizes(hidden), splits.outputs))
    out = out or Path("runs") / f"{Path(data).stem}-{backend.replace(':', '-')}-{seed}"
    if plot and not find_spec("matplotlib"):
        raise click.UsageError("--plot needs matplotlib: pip install 'minimodel[plot]'")
    if out.exists() and not out.is_dir():
        raise click.UsageError(f"--out: {out} is a file, not a folder")
    out.mkdir(parents=True, exist_ok=True)
    files = {name: str(out / f"{name}.safetensors") for name in (*pipeline.STAGES, "model")}
    files |= {"record": str(out / "run.json"), "log": str(out / "log.jsonl")} | (
        {"plot": str(out / "run.png")} if plot else {}
    )
    stages = []
    for path in files.values():  # of a run before
        Path(path).unlink(missing_ok=True)
    with progress_bars() as show_progress:

        def on_progress(name: str) -> observe.Callback:
            show_bar, write_line = show_progress(name), observe.json_lines(files["log"], stage=name)

            def callback(progress: observe.Progress) -> None:
                show_bar(progress)
                write_line(progress)

            return callback

        try:
            for stage in pipeline.run(
                network,
                splits,
                seed=seed,
                backend=loaded,
                sparsity=sparsity,
                bits=bits,
                epochs=epochs,
                on_progress=on_progress,
            ):
                stage.model.save(files[stage.name])
                stages.append(stage)
        except DivergedError as error:
            kept = {str(out / f"diverged-{name}.safetensors"): getattr(error, name) for name in ("model", "last")}
            for path, model in kept.items():
                model.save(path)
            raise click.ClickException(
                f"{error}. The best and the last finite model are {' and '.join(kept)}"
            ) from error
    stages[-1].model.save(files["model"])
    record = {
        "backend": backend,
        "data": data,
        "seed": seed,
        "network": {"layer_sizes": network.layer_sizes, "parameters": network.parameters},
        "stages": [stage.summary() for stage in stages],
        "files": files,
        "settings": {"sparsity": sparsity, "bits": bits, "epochs": epochs, "task": task},
        "environment": environment(loaded),
    }
    if plot:
        plots.draw_run(stages, f"{Path(data).name}, {backend}, seed {seed}", files["plot"])
    storage.write(files["record"], (to_json(record, indent=2) + "\n").encode())
    if as_json:
        click.echo(to_json(record))
    else:
        show(record, stages)


def _sizes(hidden: str) -> list[int]:
    try:
        sizes = [int(size) for size in hidden.split(",") if size.strip()]
    except ValueError:
        sizes = [0]
    if any(size < 1 for size in sizes):
        raise click.UsageError(f"--hidden: expected positive integers like 300,100, got {hidden!r}")
    return sizes


@cli.command("backends")
@JSON
def list_backends(as_json: bool) -> None:
    """List the backends installed here and the devices they see."""
    found = {name: _devices(_example(name)) for name in backends.available()}
    if as_json:
        click.echo(to_json({"backends": found}))
        return
    for name, devices in found.items():
        click.echo(f"{_example(name):<28} {', '.join(devices)}")


def _devices(name: str) -> list[str]:
    try:
        return list(backends.load(name).devices)
    except Exception as error:  # a third party's: whatever it is, the others are still to be listed
        return [f"unusable: {error}"]


def _example(name: str) -> str:
    return "array_api:array_api_strict" if name == "array_api" else name


@cli.command()
@click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("data")
@TEST_SEED
@JSON
def predict(model_path: Path, data: str, seed: int | None, as_json: bool) -> None:
    """Print what MODEL predicts for every row of DATA, one a line.

    DATA is a .npz with x or a .csv, with or without targets; or 'digits' or a folder of IDX files, of which the test
    part is taken.
    """
    loaded = model.load(model_path)
    predictions = loaded.predict(_rows(loaded, data, seed)[0])
    if as_json:
        click.echo(to_json({"model": str(model_path), "data": data, "predictions": predictions.tolist()}))
        return
    for prediction in predictions:
        click.echo(",".join(map(str, np.atleast_1d(prediction))))


@cli.command()
@click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("data")
@TEST_SEED
@JSON
def evaluate(model_path: Path, data: str, seed: int | None, as_json: bool) -> None:
    """Print the loss of MODEL on DATA, and its accuracy or R².

    All rows of a .npz or a .csv count; of 'digits' and of a folder of IDX files the test part.
    """
    loaded = model.load(model_path)
    x, y = _rows(loaded, data, seed)
    if y is None:
        raise ValueError(f"{data}: no targets to compare with; 'minimodel predict' needs none")
    found = {
        name: None if value is None else float(value)
        for name, value in loaded.evaluate(Dataset(x, y))._asdict().items()
    }
    if as_json:
        click.echo(to_json({"model": str(model_path), "data": data, "rows": len(x), **found}))
        return
    for name, value in {"rows": len(x), **found}.items():
        if value is not None:
            click.echo(f"{name:<9}{value:,}" if name == "rows" else f"{name:<9}{value:.4f}")


def _rows(loaded: Model, data: str, seed: int | None) -> tuple[np.ndarray, Any]:
    """x and y of the rows a saved model is used on."""
    if loaded.population is not None:
        raise ValueError(f"the file holds a population of {loaded.population} models; save one of them with .member(i)")
    features = loaded.features
    if Path(data).is_file():
        return datasets.load_rows(data, features=features, labels=loaded.loss.labels, classes=loaded.classes)
    test = datasets.load(data, seed=(loaded.split_seed or 0) if seed is None else seed).test
    if test.x.shape[1] != features:
        raise ValueError(f"{data}: the model takes {features} features, got {test.x.shape[1]}")
    return test
