"""Schedules of pruning: before which epochs masks are made anew, and how far each time.

A schedule gives, for an epoch, the parts t in (0, 1] of the way that are gone then, most often one or none; and the
sparsity that is reached at t on the way to s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import Any, Protocol

import numpy as np

from minimodel.compress import scores
from minimodel.compress.scores import Score
from minimodel.problem import check_count

RAMP = 0.5  # the part of the epochs in which a schedule reaches its sparsity; the rest is retraining


class PruningSchedule(Protocol):
    """What ``prune`` asks a schedule."""

    def parts(self, epoch: int, epochs: int) -> tuple[float, ...]:
        """The parts of the way that are gone before this epoch, each with scores of its own."""

    def sparsity(self, before: np.ndarray, s: np.ndarray, t: float) -> np.ndarray:
        """The sparsity at part t < 1 of the way from that before to s."""

    def exchanged(self, epoch: int, epochs: int) -> float:
        """The part of each layer's kept units that is exchanged for others before this epoch."""

    @property
    def first(self) -> Score | None:
        """The score by which units are removed, if it is not that of ``prune``."""

    @property
    def grow(self) -> Score | None:
        """The score of units that come, where any are exchanged."""


class _Nested:
    """What is gone stays so."""

    first, grow = None, None

    def exchanged(self, epoch: int, epochs: int) -> float:
        return 0.0


class _Geometric(_Nested):
    def sparsity(self, before: np.ndarray, s: np.ndarray, t: float) -> np.ndarray:
        """1 − (1 − s₀)¹⁻ᵗ(1 − s)ᵗ: equal parts of what is left, again and again."""
        return 1 - (1 - before) ** (1 - t) * (1 - s) ** t


@dataclass(frozen=True)
class OneShot(_Geometric):
    """All before the first epoch, in so many rounds of scores."""

    rounds: int

    def parts(self, epoch: int, epochs: int) -> tuple[float, ...]:
        return tuple((i + 1) / self.rounds for i in range(self.rounds)) if epoch == 0 else ()


@dataclass(frozen=True)
class Periodic(_Geometric):
    """In so many rounds, evenly over the ramp, the first before the first epoch."""

    rounds: int
    ramp: float

    def parts(self, epoch: int, epochs: int) -> tuple[float, ...]:
        gap = self.ramp * epochs / max(1, self.rounds - 1)
        return tuple((i + 1) / self.rounds for i in range(self.rounds) if min(round(i * gap), epochs - 1) == epoch)


@dataclass(frozen=True)
class Gradual(_Nested):
    """s₀ + (s − s₀)·(1 − (1 − t)³), before every epoch of the ramp."""

    ramp: float

    def parts(self, epoch: int, epochs: int) -> tuple[float, ...]:
        last = min(round(self.ramp * epochs), epochs - 1)
        return ((epoch + 1) / (last + 1),) if epoch <= last else ()

    def sparsity(self, before: np.ndarray, s: np.ndarray, t: float) -> np.ndarray:
        return before + (s - before) * (1 - (1 - t) ** 3)


@dataclass(frozen=True)
class Regrow:
    """All at once, with scores of its own; then each layer exchanges a part of its weights now and then."""

    first: Score
    grow: Score
    drop: float
    every: int
    until: float

    def parts(self, epoch: int, epochs: int) -> tuple[float, ...]:
        return (1.0,) if epoch == 0 else ()

    def sparsity(self, before: np.ndarray, s: np.ndarray, t: float) -> np.ndarray:
        return s

    def exchanged(self, epoch: int, epochs: int) -> float:
        """½ζ(1 + cos πt) of the kept weights, t the part of the time that is over; 0 where nothing is exchanged."""
        end = self.until * epochs
        return self.drop / 2 * (1 + cos(pi * epoch / end)) if 0 < epoch < end and epoch % self.every == 0 else 0.0


def one_shot(*, rounds: int = 1) -> PruningSchedule:
    """All before the first epoch. With several rounds the scores are taken anew as weights go, as SynFlow wants it."""
    return OneShot(check_count("rounds", rounds, 1))


def periodic(*, rounds: int = 5, ramp: float = RAMP) -> PruningSchedule:
    """In rounds over the first part ``ramp`` of the epochs; each takes the same part of what is left.

    Han et al., Learning both weights and connections for efficient neural networks (2015).
    """
    return Periodic(check_count("rounds", rounds, 1), _part("ramp", ramp))


def gradual(*, ramp: float = RAMP) -> PruningSchedule:
    """s(t) = s₀ + (s − s₀)·(1 − (1 − t)³) over the first part ``ramp`` of the epochs, from what is pruned already.

    Zhu, Gupta: To prune, or not to prune (2017).
    """
    return Gradual(_part("ramp", ramp))


def regrow(
    *, first: Any = "random", grow: Any = "gradient", drop: float = 0.3, every: int = 1, until: float = 0.75
) -> PruningSchedule:
    """Sparse from the start: after every so many epochs each layer drops its lowest weights and grows others.

    first    the score of the first masks
    grow     the score of weights to come, which start at 0: "gradient" is RigL, "random" is SET. Whole neurons start
             from weights drawn anew; as their gradient is 0 while they are gone, let them come at random
    drop     ζ, the part of the kept weights that is exchanged; it falls as a cosine to 0 at ``until`` of the epochs,
             for SET too, whose paper keeps it as it is

    For RigL and SET give a fresh model and allocation="erdos_renyi". Evci et al., Rigging the lottery (2020); Mocanu et
    al., Scalable training of artificial neural networks with adaptive sparse connectivity (2018).
    """
    ways = scores.get(first, "first"), scores.get(grow, "grow")
    if scores.movement in ways:
        raise ValueError("first, grow: weights that are gone have not moved; expected other scores than movement")
    return Regrow(*ways, _part("drop", drop), check_count("every", every, 1), _part("until", until))


ASKED = ("parts", "sparsity", "exchanged", "first", "grow")
SCHEDULES: dict[str, Callable[[], PruningSchedule]] = {
    "one_shot": one_shot,
    "periodic": periodic,
    "gradual": gradual,
    "regrow": regrow,
}


def get(schedule: str | PruningSchedule) -> PruningSchedule:
    """A schedule by its name, or the schedule itself."""
    if not isinstance(schedule, str) and all(hasattr(schedule, name) for name in ASKED):
        return schedule
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected a schedule or one of {', '.join(SCHEDULES)}, got {schedule!r}")
    return SCHEDULES[schedule]()


def _part(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r}")
    return float(value)
