"""What several commands take, and the files of a run."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import click

from minimodel import datasets

JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of a table.")
TEST_SEED = click.option(
    "--seed",
    type=click.IntRange(0, 2**63),
    help="Of the run that made MODEL: decides which rows of 'digits' are the test part. By default as MODEL remembers.",
)
SEED = click.option("--seed", type=click.IntRange(0, 2**63), default=0, show_default=True, help="Decides every draw.")
BACKEND = click.option("--backend", default="numpy", show_default=True, help="numpy, jax, jax:cpu, jax:gpu, …")
TASK = click.option("--task", type=click.Choice(datasets.TASKS), help="Where the targets alone do not tell.")
MODEL = click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))


def run_files(out: Path, names: Iterable[str], run: str, plot: bool) -> dict[str, str]:
    """The files of a run in its folder."""
    if plot and not find_spec("matplotlib"):
        raise click.UsageError("--plot needs matplotlib: pip install 'minimodel[plot]'")
    if out.exists() and not out.is_dir():
        raise click.UsageError(f"--out: {out} is a file, not a folder")
    files = {name: str(out / f"{name}.safetensors") for name in names}
    files |= {"record": str(out / f"{run}.json"), "log": str(out / "log.jsonl")}
    return files | ({"plot": str(out / f"{run}.png")} if plot else {})


def cleared(files: dict[str, str]) -> None:
    """Make the folder, without the files of a run before."""
    for path in map(Path, files.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
