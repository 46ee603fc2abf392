"""Allocation: how much of its units each layer loses, for a given sparsity of the whole."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minimodel.network import Network

ALLOCATIONS = ("global", "uniform", "erdos_renyi")
Shapes = tuple[tuple[int, int], ...]


def sparsities(
    sparsity: Any, allocation: str | Sequence[float], sizes: list[int], network: Network
) -> list[np.ndarray]:
    """The sparsity of each group, (*population,): of all units together ("global"), or of each layer.

    uniform       every layer the same
    erdos_renyi   what a layer keeps is in proportion to (in + out)/(in·out), and at most all of it
    a sequence    as it says, one number a layer

    Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity (2018).
    """
    if not isinstance(allocation, str):
        return [np.asarray(part) for part in allocation]
    if allocation == "global":
        return [sparsity]
    if allocation == "uniform":
        return [sparsity for _ in sizes]
    shares = np.array([(inputs + outputs) / (inputs * outputs) for inputs, outputs in network.shapes[: len(sizes)]])
    kept = np.array([_densities(1 - s, shares, np.array(sizes)) for s in np.ravel(sparsity)])
    return [1 - part.reshape(np.shape(sparsity)) for part in kept.T]


def _densities(density: float, shares: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """ε·shares, at most 1, with ε such that Σ density·size is what is wanted."""
    wanted, full = density * sizes.sum(), np.zeros(len(sizes), bool)
    for _ in sizes:
        left = (sizes * shares)[~full].sum()
        epsilon = (wanted - sizes[full].sum()) / left if left else 0.0
        over = ~full & (epsilon * shares > 1)
        if not over.any():
            break
        full |= over
    return np.clip(np.where(full, 1.0, epsilon * shares), 0.0, 1.0)


def check_allocation(allocation: Any, layers: int) -> str | Sequence[float]:
    """One of the names, or a number from 0 to 1 for each layer that has units."""
    if isinstance(allocation, str) and allocation in ALLOCATIONS:
        return allocation
    values = None if isinstance(allocation, str) or not np.iterable(allocation) else list(allocation)
    numbers = values is not None and all(
        isinstance(v, int | float | np.number) and not isinstance(v, bool) and 0 <= v <= 1 for v in values
    )
    if values is None or not numbers or len(values) != layers:
        raise ValueError(
            f"allocation: expected one of {', '.join(ALLOCATIONS)}, or {layers} sparsities, one a layer, "
            f"got {allocation!r}"
        )
    return values
