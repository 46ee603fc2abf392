"""The commands that use what is there: models in files, and the backends installed."""

from pathlib import Path
from typing import Any

import click
import numpy as np

from minimodel import backends, datasets, model
from minimodel.commands.options import JSON, MODEL, TEST_SEED
from minimodel.datasets import Dataset
from minimodel.model import Model
from minimodel.terminal import to_json


@click.command()
@MODEL
@JSON
def summary(model_path: Path, as_json: bool) -> None:
    """Print what each layer of MODEL keeps, its shape after a shrink, its bytes and its multiply-adds."""
    found = model.load(model_path).summary()
    layers = [layer._asdict() for layer in found]
    click.echo(to_json({"model": str(model_path), "layers": layers}) if as_json else str(found))


@click.command("backends")
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


@click.command()
@MODEL
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


@click.command()
@MODEL
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
