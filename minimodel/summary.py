"""What a model is made of, layer by layer: what pruning kept, what is still of use, what it costs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minimodel.network import Params


class LayerSummary(NamedTuple):
    """Of one layer; of a population weights, kept, bytes and multiply_adds are those of all its networks.

    shape           (in, out) of the weight
    weights         how many there are; kept: how many are not 0
    live            the shape that ``shrink`` would leave: inputs and outputs on a way through the network
    bytes           in the model file
    multiply_adds   of one row through the live weights that are not 0
    """

    shape: tuple[int, int]
    weights: int
    kept: int
    live: tuple[int, int]
    bytes: int
    multiply_adds: int


class Summary(tuple[LayerSummary, ...]):
    """A ``LayerSummary`` for each layer; as text, a table."""

    def __str__(self) -> str:
        heads = ("layer", "shape", "kept", "of", "after shrink", "bytes", "multiply-adds")
        rows = [(str(i + 1), *_cells(layer)) for i, layer in enumerate(self)]
        names = ("weights", "kept", "bytes", "multiply_adds")
        whole, kept, size, work = (sum(getattr(layer, name) for layer in self) for name in names)
        rows.append(("all", "", f"{kept:,}", _percent(kept, whole), "", f"{size:,}", f"{work:,}"))
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)
        )


def _cells(layer: LayerSummary) -> tuple[str, ...]:
    shape, live = (f"{inputs}×{outputs}" for inputs, outputs in (layer.shape, layer.live))
    part = _percent(layer.kept, layer.weights)
    return shape, f"{layer.kept:,}", part, live, f"{layer.bytes:,}", f"{layer.multiply_adds:,}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def reached(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Which units of every layer, inputs and outputs too, a chain of kept weights leads to from the first ones."""
    found: list[np.ndarray] = [np.ones(masks[0].shape[:-1], bool)]
    for mask in masks:
        found.append(np.any(mask & found[-1][..., :, None], axis=-2))
    return found


def paths(masks: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Which units the inputs lead to, and which lead to an output, (*population, units)."""
    return reached(masks), reached([mask.mT for mask in masks[::-1]])[::-1]


def live_units(fed: list[np.ndarray], used: list[np.ndarray]) -> list[np.ndarray]:
    """The inputs, hidden neurons and outputs that ``shrink`` keeps, by their ``paths``: on a way through one of the
    networks, or the first of a layer that has none; and all outputs."""
    found = [(f & u).reshape(-1, f.shape[-1]).any(axis=0) for f, u in zip(fed, used, strict=True)]
    found[-1] = np.ones_like(found[-1])
    for units in found:
        units[0] |= not units.any()
    return found


def summarize(params: Params, sizes: Sequence[int]) -> Summary:
    """The summary of parameters whose layers take ``sizes`` bytes each."""
    fed, used = paths([layer.weight != 0 for layer in params])
    units, found = live_units(fed, used), []
    for i, (layer, size) in enumerate(zip(params, sizes, strict=True)):
        kept = layer.weight != 0
        working = kept & fed[i][..., :, None] & used[i + 1][..., None, :]
        live = int(units[i].sum()), int(units[i + 1].sum())
        shape = layer.weight.shape[-2:]
        found.append(LayerSummary(shape, kept.size, int(kept.sum()), live, size, int(working.sum())))
    return Summary(found)
