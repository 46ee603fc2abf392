"""Watching a run: what a callback is told, and the log it can write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Progress(NamedTuple):
    """How far a run is; its numbers are arrays over a population.

    done, total       epochs or generations; a fraction of an epoch within a stream
    loss              mean training loss since the last report, or the best fitness so far
    validation_loss   after the last whole epoch, or of what a strategy now holds for the best
    learning_rate     the last one used; None where there is none
    seconds           since the run began
    first             what was done before it, of a run that is resumed
    """

    done: float
    total: int
    loss: Any
    validation_loss: Any
    learning_rate: Any
    seconds: float
    first: float = 0.0

    @property
    def remaining(self) -> float:
        """Seconds left at the pace so far."""
        new = self.done - self.first
        return self.seconds / new * (self.total - self.done) if new else float("nan")

    @property
    def best(self) -> float:
        """The loss being watched, validation's if there is one, of the best member."""
        watched = np.asarray(self.loss if self.validation_loss is None else self.validation_loss, np.float64)
        return float(np.min(watched, initial=np.inf, where=~np.isnan(watched)))


Callback = Callable[[Progress], Any]  # True stops the run, which returns what it has found


class Watch:
    """The caller's callback, and whether it has ended the search."""

    def __init__(self, callback: Any) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: expected a function of Progress, got {callback!r}")
        self.callback, self.ended = callback, False

    def __call__(self, progress: Progress) -> bool:
        stop = self.callback and self.callback(progress)
        self.ended = isinstance(stop, bool | np.bool_) and bool(stop)
        return self.ended


def json_lines(path: str | Path, **extra: Any) -> Callback:
    """A callback that appends one JSON object for each report to a file, with ``extra`` in front.

    Infinity and NaN, which JSON does not have, become null.
    """

    def callback(progress: Progress) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain({**extra, **progress._asdict()}), allow_nan=False) + "\n")

    return callback


def plain(value: Any) -> Any:
    """Values that JSON can hold: arrays as lists, what is not finite as null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
