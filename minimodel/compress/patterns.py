"""Patterns: what goes together when it goes. A pattern says which units there are and which weights each has.

Units of a layer are an array (*population, …) whose last two axes broadcast to those of the layer's weight. The score
of a unit is the mean over its weights.
"""

from dataclasses import dataclass
from typing import Protocol

from minimodel.tree import Array, namespace

Arrays = tuple[Array, ...]


class Pattern(Protocol):
    """What ``prune`` needs to know of a pattern."""

    def units(self, values: Arrays) -> Arrays:
        """The mean over the weights of every unit, of values shaped like the weights; of layers that have units."""

    def masks(self, kept: Arrays, like: Arrays) -> Arrays:
        """The masks of the weights, from those of the units."""

    def first(self, scores: Arrays) -> Arrays | None:
        """Units that stay while there are others to remove, or None where any may go; from the scores of units."""


class _Free:
    """Any unit may go."""

    def first(self, scores: Arrays) -> Arrays | None:
        return None


@dataclass(frozen=True)
class Unstructured(_Free):
    """Every weight by itself."""

    def units(self, values: Arrays) -> Arrays:
        return values

    def masks(self, kept: Arrays, like: Arrays) -> Arrays:
        return kept


NAMES = ("unstructured", "rows", "columns", "neurons")


@dataclass(frozen=True)
class NOfM(Unstructured):
    """At most n of every m consecutive inputs of a neuron stay: what sparse hardware multiplies fast."""

    n: int
    m: int

    def first(self, scores: Arrays) -> Arrays:
        return tuple(map(self.winners, scores))

    def winners(self, scores: Array) -> Array:
        """The n largest of each m, of equal ones the first; the last few inputs may be a shorter group."""
        xp, inputs = namespace(scores), scores.shape[-2]
        missing = -inputs % self.m
        lowest = xp.full((*scores.shape[:-2], missing, scores.shape[-1]), -float("inf"), dtype=scores.dtype)
        groups = xp.reshape(xp.concat([scores, lowest], axis=-2), (*scores.shape[:-2], -1, self.m, scores.shape[-1]))
        rank = xp.zeros_like(groups)
        for i in range(self.m):
            rival = groups[..., i : i + 1, :]
            earlier = xp.reshape(xp.arange(self.m) > i, (self.m, 1))
            rank = rank + xp.astype((rival > groups) | ((rival == groups) & earlier), groups.dtype)
        winners = xp.reshape(rank < self.n, (*scores.shape[:-2], -1, scores.shape[-1]))
        return winners[..., :inputs, :]


@dataclass(frozen=True)
class Lines(_Free):
    """All weights of an input (axis −1) or of an output (axis −2) of a layer together."""

    axis: int

    def units(self, values: Arrays) -> Arrays:
        return tuple(mean(value, self.axis) for value in values)

    def masks(self, kept: Arrays, like: Arrays) -> Arrays:
        return tuple(namespace(k).broadcast_to(k, w.shape) for k, w in zip(kept, like, strict=True))


def mean(x: Array, axis: int) -> Array:
    """Over an axis, which stays; halves are added to halves, so that every backend rounds alike."""
    xp, n = namespace(x), x.shape[axis]
    x = xp.moveaxis(x, axis, 0)
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        added = x[:half, ...] + x[half : 2 * half, ...]
        x = xp.concat([added, x[2 * half :, ...]], axis=0) if x.shape[0] % 2 else added
    return xp.moveaxis(x * (1 / n), 0, axis)


@dataclass(frozen=True)
class Neurons(_Free):
    """A hidden neuron with all weights that it feeds and that feed it; scored by those that feed it."""

    def units(self, values: Arrays) -> Arrays:
        return Lines(-2).units(values[:-1])

    def masks(self, kept: Arrays, like: Arrays) -> Arrays:
        found = []
        for i, w in enumerate(like):
            xp = namespace(w)
            mask = xp.ones_like(w, dtype=xp.bool)
            if i < len(kept):
                mask = mask & kept[i]
            if i > 0:
                mask = mask & kept[i - 1].mT
            found.append(mask)
        return tuple(found)


def get(pattern: str | Pattern) -> Pattern:
    """A pattern by its name, "2:4" for two of four, or the pattern itself."""
    if not isinstance(pattern, str | type) and hasattr(pattern, "units"):
        return pattern
    if isinstance(pattern, str) and pattern in NAMES:
        return globals()[pattern]()
    n, colon, m = str(pattern).partition(":")
    if isinstance(pattern, str) and colon and n.isdecimal() and m.isdecimal():
        return n_of_m(int(n), int(m))
    raise ValueError(f"pattern: expected a pattern, '2:4' or one of {', '.join(NAMES)}, got {pattern!r}")


def unstructured() -> Pattern:
    """Every weight by itself."""
    return Unstructured()


def n_of_m(n: int, m: int) -> Pattern:
    """At most ``n`` of every ``m`` consecutive inputs of a neuron stay, 2 of 4 say."""
    for value in (n, m):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ValueError(f"n_of_m: expected two integers, got {n!r} and {m!r}")
    if not 0 < n < m:
        raise ValueError(f"n_of_m: expected 0 < n < m, got {n} of {m}")
    return NOfM(int(n), int(m))


def rows() -> Pattern:
    """All weights of an input of a layer together; of the first layer these are the features."""
    return Lines(-1)


def columns() -> Pattern:
    """All weights that feed an output of a layer together."""
    return Lines(-2)


def neurons() -> Pattern:
    """Hidden neurons; ``shrink`` makes the arrays smaller by what goes."""
    return Neurons()
