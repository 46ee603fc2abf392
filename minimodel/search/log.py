"""What a training run records, and what the record tells: when patience is over, where a run diverged."""

from time import perf_counter
from typing import Any

import numpy as np

from minimodel.observe import Progress
from minimodel.search import schedules


class Log:
    """What a run records, on the host."""

    def __init__(self, epochs: int, steps: int, validation_loss: Any, loss: Any = None, learning_rate: Any = None):
        self.epochs, self.steps = epochs, steps
        self.validation = np.asarray(validation_loss)  # after 0, 1, … epochs
        self.losses: list[np.ndarray] = [] if loss is None or not len(loss) else [loss]
        self.rates: list[np.ndarray] = [] if learning_rate is None or not len(learning_rate) else [learning_rate]
        self.step = sum(map(len, self.rates))
        self.first, self.started = self.step / steps, perf_counter()
        self.constant: np.ndarray | None = None  # the rates of a chunk, where they never change

    @property
    def done(self) -> int:
        """Whole epochs."""
        return len(self.validation) - 1

    def add(self, losses: np.ndarray, validation_loss: np.ndarray | None = None) -> None:
        """The losses of steps and, at the end of an epoch, that on validation."""
        self.losses.append(losses)
        if validation_loss is not None:
            self.validation = np.concatenate([self.validation, validation_loss[None]])

    def next_rates(self, schedule: schedules.Schedule, steps: int) -> np.ndarray:
        """The learning rates of the next steps, checked; those of a constant schedule once."""
        rates = self.constant
        if rates is None or len(rates) != steps:
            rates = self.checked_rates(schedule, steps)
            self.constant = rates if isinstance(schedule, schedules.Constant) else None
        self.rates.append(rates)
        self.step += steps
        return rates

    def checked_rates(self, schedule: schedules.Schedule, steps: int) -> np.ndarray:
        """The learning rates of the next steps, if they are such."""
        run = schedules.Run(self.epochs * self.steps, self.steps, self.validation)
        rates = np.asarray(schedule(np.arange(self.step, self.step + steps), run))
        shape = self.validation[0].shape
        if rates.shape not in ((steps,), (steps, *shape)) or rates.dtype.kind not in "iuf":
            raise ValueError(
                f"learning_rate: the schedule must give ({steps},) or {(steps, *shape)}, got {rates.shape}"
            )
        if not 0 <= rates.min() <= rates.max() < np.inf:
            raise ValueError(f"learning_rate: the schedule gave {rates.min()} to {rates.max()} at step {self.step}")
        return rates

    def all_rates(self) -> np.ndarray:
        """One for each step, or one for each step and member where they ever differed."""
        lead = self.validation[0].shape if any(rates.ndim > 1 for rates in self.rates) else ()
        full = [rates.reshape(len(rates), *(rates.shape[1:] or (1,) * len(lead))) for rates in self.rates]
        return np.concatenate([np.broadcast_to(r, (len(r), *lead)) for r in full]) if full else np.empty(0)

    def progress(self) -> Progress:
        """Of what was recorded last."""
        seconds = perf_counter() - self.started
        loss, rate = self.losses[-1].mean(axis=0), self.rates[-1][-1]
        return Progress(self.step / self.steps, self.epochs, loss, self.validation[-1], rate, seconds, self.first)

    def history(self) -> dict[str, np.ndarray]:
        """The record as arrays."""
        return {
            "loss": np.concatenate(self.losses) if self.losses else np.empty(0, np.float32),
            "learning_rate": self.all_rates(),
            "validation_loss": self.validation,
        }


def improving(validation: np.ndarray, patience: np.ndarray, min_delta: np.ndarray) -> np.ndarray:
    """Which members never went ``patience`` epochs without a loss below their best − min_delta."""
    best, waited, active = validation[0], np.zeros(validation.shape[1:], int), np.ones(validation.shape[1:], bool)
    for loss in validation[1:]:
        better = ~(loss >= best - min_delta) & ~np.isnan(loss)
        best, waited = np.where(better, loss, best), np.where(better, 0, waited + 1)
        active = active & (waited < patience)
    return np.asarray(active)


def diverged_at(losses: np.ndarray, validation: np.ndarray) -> int | None:
    """The first step from which on no member's loss is finite, the validation after the last one counting as a step."""
    alive = np.isfinite(losses).any(axis=tuple(range(1, losses.ndim)))
    if len(alive) == 0 or (alive[-1] and np.isfinite(validation).any()):
        return None
    if alive[-1]:
        return len(alive)
    return int(np.flatnonzero(alive)[-1]) + 1 if alive.any() else 0
