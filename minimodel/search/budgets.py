"""Budgeted search: many candidates on a small budget, the best 1/η of them on η times as much, until one is left."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minimodel.backends import Backend
from minimodel.datasets import Splits
from minimodel.model import Model
from minimodel.network import Network
from minimodel.problem import DivergedError, check_count, member_seeds
from minimodel.search.candidates import Race, members
from minimodel.streams import Stream

LEAST_ROWS = 32  # of a candidate in Hyperband

# A row of ``history["rungs"]``: s, how often the bracket is cut; which rung of it; the candidate's number, from 0; its
# budget, epochs in all or rows; its lowest loss so far, infinity where it has diverged; whether it goes on or, from the
# last rung, has won.
RECORD = np.dtype(
    [("bracket", int), ("rung", int), ("candidate", int), ("budget", int), ("validation_loss", float), ("kept", bool)]
)


class Rung(NamedTuple):
    """So many candidates, and what each of them gets: epochs in all, or rows."""

    candidates: int
    budget: int


Bracket = tuple[Rung, ...]


def successive_halving(
    network: Network,
    data: Splits | Stream,
    *,
    seed: int | Sequence[int] | np.ndarray,
    backend: str | Backend = "numpy",
    candidates: int = 27,
    eta: int = 3,
    budget: str = "epochs",
    **options: Any,
) -> Model:
    """Train n candidates; after each rung the best 1/η by validation go on with η times the budget.

    Candidate i has the seed ``seed`` + i or seed[i], as member i of ``gradient_descent(population=n)`` has, and its own
    of every option that is an array of n: learning rates and other numbers of the optimizer, dropout, params, … Rung
    i of 0 … s, s = ⌊log_η n⌋, is ⌊n·η⁻ⁱ⌋ candidates trained as one population, each on ⌊R·η^(i−s)⌋ of the budget:

    "epochs"   R is ``epochs``, by default η^s. Candidates go on where they stood: until it is cut, each one is the
               ``gradient_descent`` of its seed with R epochs, over all of which its schedule runs
    "rows"     R is all training rows, of which a rung takes the first, so they should be in random order, as those of
               ``datasets.split`` are. Candidates begin anew in every rung, for ``epochs`` (20): each one is the
               ``gradient_descent`` of its seed on these rows. Not for a stream

    What counts is the lowest validation loss so far, of which ``gradient_descent`` keeps the parameters; of equals the
    first go on, and what has diverged does not. The best of the last rung is returned. ``history["rungs"]`` has a row
    for every candidate of every rung, with the columns of ``RECORD``; the rest of the history is the winner's own, and
    ``gradient_descent(seed=seed + candidate, resume=winner)`` trains it further.

    options    those of ``gradient_descent``, but population and resume; a callback is told of the candidates of the
               rung, and ends the whole search

    Raises ValueError for input that does not fit, DivergedError when no candidate's loss is finite any more.
    Jamieson, Talwalkar: Non-stochastic best arm identification and hyperparameter optimization (2016).
    """
    candidates, eta = check_count("candidates", candidates, 1), check_count("eta", eta, 2)
    cuts = whole_log(candidates, eta)
    most = whole_budget(budget, data, options, eta**cuts)
    if most < eta**cuts:
        needed = f"{candidates} of them with eta={eta} need at least {eta**cuts} {budget}"
        raise ValueError(f"candidates: {needed}, got {most}")
    race = Race.of(network, data, member_seeds(seed, candidates), budget == "rows", options | {"backend": backend})
    return best_of(race, [rungs(candidates, cuts, most, eta)])


def hyperband(
    network: Network,
    data: Splits | Stream,
    *,
    seed: int | Sequence[int] | np.ndarray,
    backend: str | Backend = "numpy",
    eta: int = 3,
    budget: str = "epochs",
    least: int | None = None,
    **options: Any,
) -> Model:
    """The best of several ``successive_halving``: from many candidates with little each to few with all of the budget.

    They are the ``hyperband_brackets`` of R: ``epochs`` (27), or all training rows. Candidates are numbered through all
    of them: options may be arrays of one for each of ``hyperband_candidates(R, eta=eta, least=least)``. A bracket of
    which nothing stays finite is lost, and the others decide.

    least      what a candidate gets at least, by default 1 epoch or 32 rows

    All else is as in ``successive_halving``. As epochs go on, fewer are run than in the paper, which begins anew.
    Li et al.: Hyperband (2018), algorithm 1.
    """
    most = whole_budget(budget, data, options, 27)
    if least is None:
        least = 1 if budget == "epochs" else min(LEAST_ROWS, most)
    seeds = member_seeds(seed, hyperband_candidates(most, eta=eta, least=least))
    race = Race.of(network, data, seeds, budget == "rows", options | {"backend": backend})
    return best_of(race, hyperband_brackets(most, eta=eta, least=least))


def hyperband_candidates(most: int, *, eta: int = 3, least: int = 1) -> int:
    """How many candidates ``hyperband`` takes in all its brackets."""
    return sum(bracket[0].candidates for bracket in hyperband_brackets(most, eta=eta, least=least))


def hyperband_brackets(most: int, *, eta: int = 3, least: int = 1) -> list[Bracket]:
    """Of ⌈(s_max + 1)/(s + 1)·η^s⌉ candidates for s = s_max … 0, s_max = ⌊log_η(most/least)⌋.

    Each costs about (s_max + 1)·most. Li et al.: Hyperband (2018), algorithm 1, whose formula this is.
    """
    most, eta, least = check_count("most", most, 1), check_count("eta", eta, 2), check_count("least", least, 1)
    if least > most:
        raise ValueError(f"least: expected at most {most}, all that a candidate gets, got {least}")
    top = whole_log(most // least, eta)
    return [rungs(-(-(top + 1) * eta**s // (s + 1)), s, most, eta) for s in range(top, -1, -1)]


def rungs(candidates: int, cuts: int, most: int, eta: int) -> Bracket:
    """⌊n·η⁻ⁱ⌋ candidates with ⌊R·η^(i−s)⌋ each, i = 0 … s."""
    return tuple(Rung(candidates // eta**i, most // eta ** (cuts - i)) for i in range(cuts + 1))


def whole_log(value: int, base: int) -> int:
    """⌊log_base value⌋, exactly."""
    return 0 if value < base else 1 + whole_log(value // base, base)


def whole_budget(budget: str, data: Splits | Stream, options: dict[str, Any], epochs: int) -> int:
    """R, what one candidate gets at most; ``epochs`` are those by default where they are the budget."""
    if budget == "epochs":
        return check_count("epochs", options.setdefault("epochs", epochs), 1)
    if budget != "rows":
        raise ValueError(f"budget: expected 'epochs' or 'rows', got {budget!r}")
    if not isinstance(data, Splits):
        raise TypeError(f"data: a budget of rows takes Splits, got {type(data).__name__}")
    return len(data.train.x)


def best_of(race: Race, brackets: list[Bracket]) -> Model:
    """The best of the brackets' winners, with the record of all rungs."""
    best: Any = None
    lost, start = None, 0
    record: list[tuple[Any, ...]] = []
    for bracket in brackets:
        numbers = start + np.arange(bracket[0].candidates)
        start += len(numbers)
        try:
            winner: Any = halve(race, bracket, numbers, record)
            best = winner if best is None or winner.state.best_loss < best.state.best_loss else best
        except DivergedError as error:
            lost = error
        if race.watch.ended:
            break
    if best is None and lost is not None:
        raise lost
    return replace(best, history=best.history | {"rungs": np.array(record, RECORD)})


def halve(race: Race, bracket: Bracket, numbers: np.ndarray, record: list[tuple[Any, ...]]) -> Model:
    """The winner of these candidates: train them, keep the best, give those more."""
    model: Any = None
    lost = None
    for i, rung in enumerate(bracket):
        try:
            model = race.train(numbers, rung.budget, model)
        except DivergedError as error:
            model, lost = error.model, error
        alive = np.isfinite(model.history["validation_loss"][-1]) & (lost is None)
        losses = np.where(alive, model.state.best_loss, np.inf)
        last = i + 1 == len(bracket) or race.watch.ended
        room = min(1 if last else bracket[i + 1].candidates, alive.sum())
        best = np.sort(np.argsort(losses, kind="stable")[:room])
        kept = np.isin(np.arange(len(numbers)), best)
        rows = zip(numbers, losses, kept, strict=True)
        record += [(len(bracket) - 1, i, number, rung.budget, loss, on) for number, loss, on in rows]
        if lost:
            raise lost
        model, numbers = members(model, best[0] if last else best), numbers[best]
        if last:
            break
    return model
