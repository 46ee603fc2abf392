"""What pruning aims at: how many units of each layer, or of all together, are to go."""

from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from minimodel.compress.allocation import check_allocation, sparsities
from minimodel.compress.patterns import Pattern
from minimodel.network import Network
from minimodel.problem import Masks, check_numbers

Reached = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Target(NamedTuple):
    """The sparsity of each group, (*population,): of all units, pooled, or of each layer's; or a threshold of scores.

    sizes    units of a group; ``gone`` is the part of them that was pruned before, (*population,)
    spared   units of each layer that stay before any other layer's go
    """

    sizes: list[int]
    sparsities: list[np.ndarray]
    gone: list[np.ndarray]
    threshold: float | None
    pooled: bool
    spared: tuple[int, ...]

    def kept(self, reached: Reached = lambda s, gone: s) -> tuple[np.ndarray, ...]:
        """How many units of each group stay, at the sparsity that is reached on the way."""
        groups = zip(self.sizes, self.sparsities, self.gone, strict=True)
        return tuple(np.asarray(n - np.round(reached(s, gone) * n), np.int32) for n, s, gone in groups)


def find_target(
    goals: dict[str, Any],
    allocation: Any,
    pattern: Pattern,
    cap: Any,
    network: Network,
    members: tuple[int, ...],
    masks: Masks | None = None,
) -> Target:
    """The target of a sparsity, a threshold, a count, or of the sparsities of an allocation; checked."""
    units = pattern.units(tuple(np.zeros(shape, np.float32) for shape in network.shapes))
    sizes = [unit.size for unit in units]
    if not sizes:
        raise ValueError("pattern: this network has no hidden neurons to remove")
    allocation = check_allocation(allocation, len(sizes))
    pooled = isinstance(allocation, str) and allocation == "global"
    cap = 1.0 if cap is None else float(check_fraction("cap", cap, ()))
    spared = tuple(ceil(round((1 - cap) * size, 6)) for size in sizes)
    first = pattern.first(units)  # what such a pattern removes in any case
    least = [0.0 if first is None else 1 - int(stay.sum()) / stay.size for stay in first or units]
    given = {name: value for name, value in goals.items() if value is not None}
    if not isinstance(allocation, str):
        given["allocation"] = allocation
    if len(given) > 1 or not (given or any(least)):
        raise ValueError(
            "give one of sparsity, threshold, count, or an allocation with a number for each layer; "
            f"got {', '.join(f'{name}={value}' for name, value in given.items()) or 'none'}"
        )
    threshold = given.get("threshold")
    if threshold is not None:
        number = check_numbers("threshold", threshold, ())
        return Target(sizes, [], [], float(number), pooled, spared)
    total = sum(sizes)
    if "count" in given:
        overall = check_units("count", given["count"], total, members) / total
    else:
        overall = check_fraction("sparsity", given.get("sparsity", 0.0), members)
    groups = [total] if pooled else sizes
    floor = [float(np.dot(least, sizes)) / total] if pooled else least
    wanted = [np.maximum(s, low) for s, low in zip(sparsities(overall, allocation, sizes, network), floor, strict=True)]
    if "count" in given and not pooled:
        wanted = exact(wanted, sizes, np.asarray(given["count"]))
    target = Target(groups, wanted, gone_before(masks, pattern, pooled, len(groups)), None, pooled, spared)
    needed = [sum(spared)] if pooled else spared
    for i, (kept, need, size) in enumerate(zip(target.kept(), needed, groups, strict=True)):
        if (kept < need).any():
            where = "" if pooled else f" of layer {i}"
            text = f"cap: {cap} keeps {need} of {size} units{where}, the sparsity only {kept.min()}"
            raise ValueError(f"{text}; raise the cap or lower the sparsity")
    return target


def exact(wanted: list[np.ndarray], sizes: list[int], count: np.ndarray) -> list[np.ndarray]:
    """Sparsities whose units add up to the count: what is left over by rounding down goes by the largest remainders."""
    units = np.stack([np.broadcast_to(s, count.shape) * n for s, n in zip(wanted, sizes, strict=True)])
    whole = np.floor(units + 1e-9)
    rank = np.argsort(np.argsort(whole - units, axis=0, kind="stable"), axis=0)
    whole += rank < count - whole.sum(axis=0)
    return [own / n for own, n in zip(whole, sizes, strict=True)]


def gone_before(masks: Masks | None, pattern: Pattern, pooled: bool, groups: int) -> list[np.ndarray]:
    """The part of each group's units that the masks removed."""
    if masks is None:
        return [np.zeros(()) for _ in range(groups)]
    left = [units > 0 for units in pattern.units(tuple(mask.astype(np.float32) for mask in masks))]
    flat = [units.reshape(*units.shape[:-2], -1) for units in left]
    return [1 - part.mean(axis=-1) for part in ([np.concatenate(flat, axis=-1)] if pooled else flat)]


def check_fraction(name: str, value: Any, members: tuple[int, ...]) -> np.ndarray:
    """A number from 0 to 1, or one for each member."""
    found = check_numbers(name, value, members)
    if (found > 1).any():
        raise ValueError(f"{name}: expected numbers from 0 to 1, got {value!r}")
    return found.astype(np.float64)


def check_units(name: str, value: Any, total: int, members: tuple[int, ...]) -> np.ndarray:
    """A whole number of units, or one for each member."""
    found = check_numbers(name, value, members)
    if found.dtype.kind not in "iu" or (found > total).any():
        raise ValueError(f"{name}: expected integers from 0 to {total}, got {value!r}")
    return found
