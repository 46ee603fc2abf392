"""``minimodel run``: the whole pipeline."""

import math
from pathlib import Path

import click

from minimodel import backends, datasets, observe, pipeline, plots, storage
from minimodel.commands.options import BACKEND, JSON, SEED, TASK, cleared, run_files
from minimodel.network import Network
from minimodel.problem import DivergedError
from minimodel.terminal import environment, progress_bars, show, to_json


@click.command()
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
@click.option("--bits", type=click.IntRange(1, 8), default=4, show_default=True, help="Bits of a quantized weight.")
@SEED
@click.option("--epochs", type=click.IntRange(0), help="Of gradient descent; pruning and quantization follow it.")
@TASK
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
    files = run_files(out, (*pipeline.STAGES, "model"), "run", plot)
    cleared(files)
    stages = []
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
