"""Candidates of a search, trained by gradient descent: any of them as a population, on from where they stood."""

import warnings
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minimodel import tree
from minimodel.datasets import Dataset
from minimodel.model import Model
from minimodel.network import Network
from minimodel.observe import Watch
from minimodel.problem import Masks, check_masks, check_numbers, check_params, check_weights
from minimodel.search.gradient_descent import gradient_descent
from minimodel.search.lbfgs import Pairs
from minimodel.search.optimizers import adam
from minimodel.search.options import check_optimizer
from minimodel.search.schedules import Run, Schedule, cosine
from minimodel.tree import Tree

NUMBERS = ("dropout", "input_dropout", "label_smoothing", "patience", "min_delta")  # there may be one a candidate


class Race(NamedTuple):
    """All candidates, numbered from 0, and how ``gradient_descent`` trains them."""

    network: Network
    data: Any
    seeds: list[int]
    by_rows: bool
    watch: Watch
    options: dict[str, Any]

    @classmethod
    def of(cls, network: Network, data: Any, seeds: list[int], by_rows: bool, options: dict[str, Any]) -> "Race":
        """What may differ from candidate to candidate is checked here, all else by ``gradient_descent``."""
        if taken := {"population", "resume"} & set(options):
            raise TypeError(f"unexpected argument {min(taken)!r}: it is what the search gives gradient_descent itself")
        given = {name: value for name, value in options.items() if value is not None}
        given = {"epochs": 20, "optimizer": adam(cosine(1e-3))} | given
        count = len(seeds)
        given["optimizer"] = check_optimizer(given["optimizer"], (count,))
        given |= {name: check_numbers(name, given[name], (count,)) for name in NUMBERS if name in given}
        if "params" in given:
            given["params"] = check_params(network, given["params"], count)
        if "masks" in given:
            given["masks"] = own_masks(check_masks(network, given["masks"], count), count)
        if by_rows and "sample_weight" in given:
            given["sample_weight"] = check_weights("sample_weight", given["sample_weight"], len(data.train.x))
        return cls(network, data, seeds, by_rows, Watch(given.pop("callback", None)), given)

    def train(self, numbers: np.ndarray, budget: int, so_far: Model | None) -> Model:
        """These candidates on that budget: on from where they stood or, on more rows, anew."""
        data, options = self.data, self.own(numbers)
        if self.by_rows:
            data = replace(data, train=Dataset(*(part[:budget] for part in data.train)))
            if "sample_weight" in options:
                options["sample_weight"] = options["sample_weight"][:budget]
        else:
            options |= {"epochs": budget, "resume": so_far}
            if so_far:
                options["params"] = None
        options |= {"seed": [self.seeds[number] for number in numbers], "population": len(numbers)}
        with warnings.catch_warnings():  # the record tells which have diverged
            warnings.filterwarnings("ignore", "gradient_descent: of the population", RuntimeWarning)
            return gradient_descent(self.network, data, callback=self.watch, **options)

    def own(self, numbers: np.ndarray) -> dict[str, Any]:
        """The options of these candidates."""
        options, optimizer = dict(self.options), self.options["optimizer"]
        options |= {name: picked(options[name], numbers) for name in (*NUMBERS, "params", "masks") if name in options}
        schedule = partial(some_rates, optimizer.schedule, options["epochs"], len(self.seeds), numbers)
        return options | {"optimizer": optimizer._replace(config=picked(optimizer.config, numbers), schedule=schedule)}


def some_rates(
    schedule: Schedule, epochs: int, count: int, which: np.ndarray, steps: np.ndarray, run: Run
) -> np.ndarray:
    """Those that a schedule for all candidates, and all epochs, has for some; of the others it sees a loss of 1."""
    validation = np.ones((len(run.validation), count))
    validation[:, which] = run.validation
    rates = np.asarray(schedule(steps, run._replace(steps=epochs * run.epoch, validation=validation)))
    return rates[:, which] if rates.ndim > 1 else rates


def own_masks(masks: Masks, count: int) -> Masks:
    """One for each candidate."""
    return tuple(np.broadcast_to(mask, (count, *mask.shape[-2:])) for mask in masks)


def members(model: Model, which: Any) -> Model:
    """These members or, by an integer, one of them, with all that it takes to go on."""
    history = {name: log[:, which] if log.ndim > 1 else log for name, log in model.history.items()}
    params, masks, state = (picked(part, which) for part in (model.params, model.masks, model.state))
    return replace(model, params=params, masks=masks, history=history, state=state)


def picked(values: Tree, which: Any) -> Tree:
    """The tree for these members; the pairs of L-BFGS have their axis behind that of its memory."""
    if isinstance(values, Pairs):
        return tree.map(lambda leaf: leaf[:, which, ...], values)
    if isinstance(values, tuple):
        return tuple.__new__(type(values), [picked(value, which) for value in values])
    return np.asarray(values)[which] if np.ndim(values) else values
