"""A budget of bytes: for each layer the bits, and how much of it is pruned, that cost least and fit.

A choice costs what it is measured to: by how much the loss on training rows rises when that layer alone is made so.
What it takes is its part of the coded file (``coded``). The sum of costs is then minimized over all choices of all
layers whose bytes fit: a knapsack, solved exactly by keeping, layer by layer, what nothing smaller is better than.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from minimodel import qarray, tree
from minimodel.compress import calibration, coded
from minimodel.compress.samples import picked
from minimodel.datasets import Splits
from minimodel.model import Model, networks
from minimodel.network import Layer
from minimodel.problem import check_numbers
from minimodel.qarray import QArray
from minimodel.streams import Stream

Calibrate = Callable[[np.ndarray, int], Any]
TRIALS = 8  # to train within the budget
MOST = 1e30  # what a loss that is not finite counts as


class Choice(NamedTuple):
    """For one layer: what is kept (or None for all), bits, bytes and cost."""

    mask: np.ndarray | None
    bits: int
    bytes: int
    cost: float


def within(
    model: Model,
    data: Splits | Stream,
    budget_bytes: Any,
    most_bits: Any,
    sparsities: Sequence[float],
    quantized: Callable[..., Model],
    how: dict[str, Any],
    **training: Any,
) -> Model:
    """The model quantized with what ``budget`` chose, and again with less room while a member's file is too large."""
    if not isinstance(data, Splits) or not coded.takes(how["scheme"], how["granularity"]):
        raise ValueError(
            "budget_bytes: expected Splits, and as coded files have a symmetric scheme, scales of tensors or channels; "
            f"got {type(data).__name__}, {how['scheme']}, {how['granularity']}"
        )
    if np.iterable(most_bits):
        raise ValueError(f"bits: with budget_bytes expected one number, the most for a layer, got {most_bits!r}")
    parts = np.asarray(sparsities)
    if parts.dtype.kind not in "iuf" or parts.ndim != 1 or not parts.size or not ((parts >= 0) & (parts <= 1)).all():
        raise ValueError(f"budget_sparsities: expected numbers from 0 to 1, got {sparsities!r}")
    members = networks(model)
    budgets = np.broadcast_to(
        check_numbers("budget_bytes", budget_bytes, model.params[0].bias.shape[:-1]), len(members)
    )
    calibrate = partial(calibration.calibrate, **how)
    options, known = [], dict[bytes, list[list[Choice]]]()  # members may be copies
    for member in members:
        key = b"".join(leaf.tobytes() for leaf in tree.leaves(member.params))
        if key not in known:
            known[key] = choices(member, data, most_bits, sparsities, calibrate)
        options.append(known[key])
    rest = np.zeros(len(members))  # of each file, what is not of a layer, or came with the training
    for trial in range(TRIALS):
        picks = [cheapest(*each) for each in zip(options, budgets - rest, strict=True)]
        each = tuple(tuple(choice.bits for choice in pick) for pick in picks)
        now = training if trial else training | {"epochs": 0, "callback": None}  # the first only measures
        found = quantized(kept_by(model, picks), bits=each if model.population else each[0], **now)
        sizes = np.array([len(coded.encode(one)) for one in networks(found)])
        if trial and (sizes <= budgets).all():
            return found
        sums = np.array([sum(choice.bytes for choice in pick) for pick in picks])
        rest = np.maximum(rest, sizes - sums) if trial else sizes - sums
    raise ValueError(f"budget_bytes: files of {sizes.tolist()} bytes after training; allow more bytes, or train less")


def kept_by(model: Model, picks: Sequence[Sequence[Choice]]) -> Model:
    """The model with the masks that were chosen, each member its own."""
    if model.masks is None and all(choice.mask is None for pick in picks for choice in pick):
        return model
    shapes = model.network.shapes
    each = [
        [
            np.ones(shape, bool) if choice.mask is None else choice.mask
            for choice, shape in zip(pick, shapes, strict=True)
        ]
        for pick in picks
    ]
    masks = tuple(map(np.stack, zip(*each, strict=True))) if model.population else tuple(each[0])
    params = tuple(Layer(layer.weight * mask, layer.bias) for layer, mask in zip(model.params, masks, strict=True))
    return replace(model, params=params, masks=masks)


def choices(
    model: Model, data: Splits, most_bits: int, sparsities: Sequence[float], calibrate: Calibrate
) -> list[list[Choice]]:
    """What there is to choose from for each layer of one network."""
    rows = picked(len(data.train.x))
    x, y = model.prepared(data.train.x[rows]), data.train.y[rows]
    y = model.targets(y) if model.targets else y

    def loss(params: Sequence[Layer]) -> float:
        return float(model.loss.value(model.network.apply(tuple(params), x), y))

    base, found = loss(model.params), []
    for i, (weight, bias) in enumerate(model.params):
        masks = [kept(weight, sparsity) for sparsity in sorted(set(sparsities))]
        found.append(list[Choice]())
        for mask, bits in product(masks, range(1, most_bits + 1)):
            q = integers(weight, mask, bits, calibrate)
            used = [*model.params[:i], Layer(qarray.dequantize(q), bias), *model.params[i + 1 :]]
            rise = np.nan_to_num(loss(used) - base, nan=MOST, posinf=MOST)
            found[i].append(Choice(mask, bits, coded.layer_bytes(q, bias, bits), min(rise, MOST)))
    return found


def integers(weight: np.ndarray, mask: np.ndarray | None, bits: int, calibrate: Calibrate) -> QArray:
    """The weight in integers, what is removed 0."""
    if mask is None:
        return qarray.quantize(weight, calibrate(weight, bits))
    q = qarray.quantize(weight * mask, calibrate(weight * mask, bits))
    return q._replace(values=q.values * mask)


def kept(weight: np.ndarray, sparsity: float) -> np.ndarray | None:
    """The mask that removes that part of a layer, the smallest first, of equals the later; None where nothing goes."""
    gone = int(sparsity * weight.size)
    here = np.abs(weight).reshape(-1)
    if gone == 0 and here.all():
        return None
    mask = np.zeros(weight.size, bool)
    mask[np.argsort(-here, kind="stable")[: weight.size - gone]] = True
    return (mask & (here > 0)).reshape(weight.shape)


def cheapest(layers: Sequence[Sequence[Choice]], room: int) -> list[Choice]:
    """One choice of each layer, of least total cost within ``room`` bytes. ValueError where none is so small."""
    least = sum(min(choice.bytes for choice in choices) for choices in layers)
    if least > room:
        raise ValueError(
            f"budget_bytes: even the smallest choice takes {least - room:,} bytes more; allow more sparsity, or bytes"
        )
    states: list[tuple[int, float, list[Choice]]] = [(0, 0.0, [])]
    for options in layers:
        longer = [
            (size + choice.bytes, cost + choice.cost, [*picks, choice])
            for size, cost, picks in states
            for choice in options
            if size + choice.bytes <= room
        ]
        longer.sort(key=lambda state: state[:2])
        states, lowest = [], np.inf
        for state in longer:
            if state[1] < lowest:
                states.append(state)
                lowest = state[1]
    return states[-1][2]
