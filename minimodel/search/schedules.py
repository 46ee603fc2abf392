"""Learning-rate schedules: functions (steps, run) -> rates.

``steps`` is an array of step numbers from 0 to ``run.steps`` − 1. A schedule made with an array of rates over a
population gives (steps, *population). Rates are computed on the host, once an epoch, from the step and from what is
known of the run by then, so any function of these will do, or one of a single step; nothing is kept between two
calls, and no new rate ever recompiles a program.

Durations are in ``unit``: "run" (1 is the whole run), "epochs" or "steps".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import numpy as np

UNITS = ("run", "epochs", "steps")


class Run(NamedTuple):
    """What a schedule is told: steps in all, steps of an epoch, and the validation loss after 0, 1, … epochs."""

    steps: int
    epoch: int = 1
    validation: np.ndarray = np.empty(0)  # (epochs done + 1, *population)


Schedule = Callable[[np.ndarray, Run], np.ndarray]


def get(rate: Any) -> Schedule:
    """A number, or an array over the population, is a constant schedule; a function of one argument is given a step."""
    if not callable(rate):
        return constant(rate)
    try:
        parameters = signature(rate).parameters.values()
    except ValueError:  # some functions do not tell
        return rate
    if sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters) != 1:
        return rate
    return lambda steps, run: np.asarray([np.asarray(rate(int(step))) for step in steps])


def constant(rate: Any) -> Schedule:
    """η(t) = rate"""
    return Constant(_rates(rate))


@dataclass(frozen=True, eq=False)
class Constant:
    """A schedule that needs not be told the step."""

    rates: np.ndarray  # () or (*population,)

    def __call__(self, steps: np.ndarray, run: Run) -> np.ndarray:
        return np.full((len(steps), *self.rates.shape), self.rates)


def step(rate: Any, every: float | Sequence[float], *, factor: float = 0.1, unit: str = "epochs") -> Schedule:
    """η(t) = rate·factorⁿ, n how many boundaries are passed: multiples of ``every``, or the ones it lists."""
    for boundary in np.ravel(every):
        _check("every", boundary, open_=True)
    _check("factor", factor)

    def shape(t: np.ndarray, run: Run) -> np.ndarray:
        length = _steps(every, unit, run)
        t = t + 1e-6  # a boundary is a step, whatever rounding makes of it
        passed = t // length if np.ndim(every) == 0 else (t[:, None] >= length).sum(axis=1)
        return factor**passed

    return _scaled(rate, shape, unit)


def exponential(rate: Any, every: float, *, factor: float = 0.1, unit: str = "epochs") -> Schedule:
    """η(t) = rate·factor^(t/every)"""
    _check("every", every, open_=True)
    _check("factor", factor)
    return _scaled(rate, lambda t, run: factor ** (t / _steps(every, unit, run)), unit)


def polynomial(
    rate: Any, *, power: float = 1.0, final: float = 0.0, duration: float = 1.0, unit: str = "run"
) -> Schedule:
    """η(t) = rate·(final + (1 − final)(1 − u)^power), u the part done of ``duration``; power 1 is linear."""
    _check("power", power)
    _check("final", final, most=1)
    _check("duration", duration, open_=True)
    return _scaled(rate, lambda t, run: _fall(_part(t, duration, unit, run), final, power), unit)


def cosine(peak: Any, *, warmup: float = 0.0, start: float = 0.0, final: float = 0.0, unit: str = "run") -> Schedule:
    """Linear from ``start``·peak to the peak during ``warmup``, then half a cosine down to ``final``·peak.

    With u the part done of the rest of the run, η = peak·(final + (1 − final)(1 + cos πu)/2).
    Loshchilov, Hutter: SGDR (2017), without restarts; ``optax.warmup_cosine_decay_schedule``.
    """
    _check("warmup", warmup, most=1 if unit == "run" else np.inf)
    _check("start", start, most=1)
    _check("final", final, most=1)

    def shape(t: np.ndarray, run: Run) -> np.ndarray:
        rise = _steps(warmup, unit, run)
        u = np.clip((t - rise) / max(run.steps - rise, 1e-9), 0, 1)
        fall = final + (1 - final) * 0.5 * (1 + np.cos(np.pi * u))
        return np.where(t < rise, start + (1 - start) * t / max(rise, 1e-9), fall)

    return _scaled(peak, shape, unit)


def one_cycle(
    peak: Any, *, warmup: float = 0.3, start: float = 1 / 25, final: float = 1e-4, unit: str = "run"
) -> Schedule:
    """Half a cosine from ``start``·peak up to the peak during ``warmup``, then one down to ``start``·``final``·peak.

    Smith, Topin: Super-convergence (2018); ``optax.cosine_onecycle_schedule``.
    """
    _check("warmup", warmup, most=1 if unit == "run" else np.inf)
    _check("start", start, most=1)
    _check("final", final, most=1)

    def shape(t: np.ndarray, run: Run) -> np.ndarray:
        rise = _steps(warmup, unit, run)
        up, down = np.clip(t / max(rise, 1e-9), 0, 1), np.clip((t - rise) / max(run.steps - rise, 1e-9), 0, 1)
        climb = start + (1 - start) * 0.5 * (1 - np.cos(np.pi * up))
        return np.where(t < rise, climb, 1 - (1 - start * final) * 0.5 * (1 - np.cos(np.pi * down)))

    return _scaled(peak, shape, unit)


def reduce_on_plateau(
    rate: Any, *, factor: float = 0.1, patience: int = 10, threshold: float = 1e-4, cooldown: int = 0
) -> Schedule:
    """η = rate·factorⁿ, n how often the validation loss went ``patience`` epochs without an improvement.

    An improvement is a loss below (1 − threshold)·best; after a reduction ``cooldown`` epochs do not count.
    Each member of a population has its own n. ``torch.optim.lr_scheduler.ReduceLROnPlateau``.
    """
    _check("factor", factor, most=1)
    _check("patience", patience)
    _check("threshold", threshold, most=1)
    _check("cooldown", cooldown)

    def shape(t: np.ndarray, run: Run) -> np.ndarray:
        return np.broadcast_to(factor ** _plateaus(run.validation[1:]), (len(t), *run.validation.shape[1:]))

    def _plateaus(losses: np.ndarray) -> np.ndarray:
        best = np.full(losses.shape[1:], np.inf)
        bad, resting, reductions = (np.zeros(losses.shape[1:], int) for _ in range(3))
        for loss in losses:
            better = loss < best * (1 - threshold)
            best, bad = np.where(better, loss, best), np.where(better, 0, bad + 1)
            bad, resting = np.where(resting > 0, 0, bad), np.maximum(resting - 1, 0)
            reduce = bad > patience
            reductions, resting = reductions + reduce, np.where(reduce, cooldown, resting)
            bad = np.where(reduce, 0, bad)
        return reductions

    return _scaled(rate, shape)


def _scaled(rate: Any, shape: Schedule, unit: str = "run") -> Schedule:
    """Rate times shape; the rate may be an array over the population."""
    if unit not in UNITS:
        raise ValueError(f"unit: expected one of {', '.join(UNITS)}, got {unit!r}")
    rates = _rates(rate)

    def schedule(steps: np.ndarray, run: Run) -> np.ndarray:
        found = shape(np.asarray(steps), run)
        return found[(...,) + (None,) * (1 + rates.ndim - found.ndim)] * rates

    return schedule


def _rates(rate: Any) -> np.ndarray:
    """A number, or an array of them over the population, checked."""
    given = np.asarray(rate)
    rates = given.astype(np.float64) if given.dtype.kind in "iuf" else np.asarray(np.nan)
    if not (np.isfinite(rates) & (rates >= 0)).all():
        raise ValueError(f"learning_rate: expected finite numbers of at least 0, got {rate!r}")
    return rates


def _steps(duration: Any, unit: str, run: Run) -> Any:
    """A duration in steps."""
    return np.asarray(duration) * {"run": run.steps, "epochs": run.epoch, "steps": 1}[unit]


def _part(t: np.ndarray, duration: float, unit: str, run: Run) -> np.ndarray:
    return np.clip(t / _steps(duration, unit, run), 0, 1)


def _fall(u: np.ndarray, final: float, power: float) -> np.ndarray:
    return final + (1 - final) * (1 - u) ** power


def _check(name: str, value: Any, *, most: float = np.inf, open_: bool = False) -> None:
    found = np.asarray(value)
    fits = found.ndim == 0 and found.dtype.kind in "iuf" and np.isfinite(found)
    if not fits or not (found > 0 if open_ else found >= 0) or not found <= most:
        limit = f" to {most:g}" if most < np.inf else ""
        raise ValueError(f"{name}: expected a finite number {'above' if open_ else 'from'} 0{limit}, got {value!r}")
