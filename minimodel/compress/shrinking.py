"""A real shrink: what has no effect leaves the arrays, and the network computes the same."""

import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np

from minimodel.model import Model
from minimodel.network import Layer
from minimodel.problem import Masks
from minimodel.qarray import QArray, spread
from minimodel.summary import live_units, paths
from minimodel.tree import Array


def shrink(model: Model) -> Model:
    """The model without the inputs and hidden neurons that no chain of weights other than 0 leads through.

    A neuron that nothing feeds is constant, f(b): what it gives goes into the biases it leads to. The model takes the
    same raw data, of which ``inputs`` says what it looks at, and gives the same outputs up to rounding. Of a population
    only what no network needs is removed. The state of the run is dropped.
    """
    fed, used = paths([layer.weight != 0 for layer in model.params])
    live = live_units(fed, used)
    layers, whole = [model.params[0]], model.params[0].bias
    for i, (weight, bias) in enumerate(model.params[1:], start=1):
        constant = model.network.functions.value(whole) * ~fed[i]  # what units that nothing feeds give
        whole, gone = (bias + ((part[..., None, :]) @ weight)[..., 0, :] for part in (constant, constant * ~live[i]))
        layers.append(Layer(weight, gone))
    pairs = list(pairwise(live))
    params = tuple(
        Layer(_part(layer.weight, *pair), np.ascontiguousarray(layer.bias[..., pair[1]]))
        for layer, pair in zip(layers, pairs, strict=True)
    )
    masks, quantized = model.masks, model.quantized
    inputs = np.ones(model.features, bool) if model.inputs is None else model.inputs.copy()
    inputs[inputs] = live[0]
    fitted = model.normalization
    return replace(
        model,
        network=replace(model.network, layer_sizes=tuple(int(units.sum()) for units in live)),
        params=params,
        inputs=None if inputs.all() else inputs,
        normalization=fitted and type(fitted)(*(part if len(part) == 1 else part[live[0]] for part in fitted)),
        masks=masks and tuple(_part(mask, *pair) for mask, pair in zip(masks, pairs, strict=True)),
        quantized=quantized and tuple(_integers(q, *pair) for q, pair in zip(quantized, pairs, strict=True)),
        state=None,
    )


def _part(weight: Array, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weight[..., rows, :][..., columns])


def _integers(q: QArray, rows: np.ndarray, columns: np.ndarray) -> QArray:
    """The same of integers. Groups that lose inputs become scales of each input."""
    whole = spread((q.scale, q.zero_point), len(rows)) if not rows.all() else (q.scale, q.zero_point)

    def part(leaf: np.ndarray) -> np.ndarray:
        leaf = leaf[..., rows, :] if leaf.shape[-2] == len(rows) > 1 else leaf
        return np.ascontiguousarray(leaf if leaf.shape[-1] == 1 < len(columns) else leaf[..., columns])

    codebook = q.codebook
    if codebook is not None and codebook.shape[-1] > 1:
        codebook = np.ascontiguousarray(codebook[..., columns])
    scale, zero_point = map(part, whole)
    return QArray(_part(q.values, rows, columns), scale, zero_point, codebook)


def warn_of_collapse(masks: Masks | None) -> None:
    """Say so where no kept weights lead from an input to an output: the outputs are constant then."""
    if masks is None:
        return
    fed, used = paths(masks)
    empty = ~np.any([mask.any(axis=(-2, -1)) for mask in masks], axis=0)  # as it was asked for
    alive = empty | np.all([u.any(axis=-1) for u in (fed[-1], used[0])], axis=0)
    if not alive.all():
        text = "prune: no kept weight lies on a way from an input to an output: the outputs are constant"
        members = f" in members {np.flatnonzero(~alive).tolist()} of the population" if alive.ndim else ""
        warnings.warn(f"{text}{members}. Prune less, or give a cap below 1", RuntimeWarning, stacklevel=3)
