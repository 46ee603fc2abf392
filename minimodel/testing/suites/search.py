"""The laws of strategies of random search."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minimodel import random, tree
from minimodel.backends import Backend
from minimodel.network import Network, Params
from minimodel.search.plans import formed
from minimodel.search.strategies import Strategy
from minimodel.testing.oracles import (
    assert_floats_are,
    assert_keys_are_used_once,
    assert_same_bits,
    assert_within_step,
    installed,
    keys_used,
)
from minimodel.testing.strategies import law
from minimodel.testing.suites.base import Suite
from minimodel.tree import Array, Tree

NETWORK = Network((4, 3, 2))
NAN, INF = float("nan"), float("inf")


def params_of(seed: int) -> Params:
    """Parameters of a fresh network."""
    return NETWORK.init(random.key(seed))


def rows_of(candidates: Tree) -> np.ndarray:
    """Candidates in a row each, (P, N), on the host."""
    found = [np.asarray(leaf) for leaf in tree.leaves(formed(candidates))]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in found], axis=1)


def far_from_half(asked: Any) -> np.ndarray:
    """A fitness: Σ(θ − ½)² of every candidate."""
    return np.square(rows_of(asked.params) - 0.5).sum(axis=-1)


def without_fitness(values: Tree) -> Tree:
    """The tree without what holds a fitness itself."""
    if not isinstance(values, tuple):
        return values
    names = getattr(values, "_fields", [None] * len(values))
    return tuple(without_fitness(value) for name, value in zip(names, values, strict=True) if name != "fitness")


RISING = {"8f + 3": lambda f: 8 * f + 3, "f³": lambda f: f**3, "2ᶠ": lambda f: 2.0**f, "−2⁻ᶠ": lambda f: -(2.0**-f)}
integer = st.integers(-9, 9).map(float)
integers = st.lists(integer, min_size=8, max_size=8)
fitnesses = st.lists(st.sampled_from((-3.0, 0.0, 2.0, 7.0, INF, NAN)), min_size=8, max_size=8)


class StrategySuite(Suite):
    """Fixture ``strategy``: a ``Strategy``, or what is called like one. Candidates come eight at a time."""

    subject = "strategy"
    population = 8

    def backends(self) -> tuple[Backend, ...]:
        """Where its generations are compared with NumPy's."""
        return installed()

    def generation(self, strategy: Strategy, state: Any, key: Array, fitness: Any = far_from_half) -> tuple[Any, Any]:
        """What is asked, and the state once it is told."""
        asked = strategy.ask(state, key, self.population)
        return asked, strategy.tell(state, asked, fitness(asked))

    def drive(self, strategy: Strategy, state: Any, generations: range, seed: int = 7) -> Any:
        """The state after these generations."""
        for generation in generations:
            _, state = self.generation(strategy, state, random.fold_in(random.key(seed), generation))
        return state

    @law(5, seed=st.integers(0, 99))
    def test_ask_and_tell_are_pure(self, strategy: Strategy, seed: int) -> None:
        """Nothing given is written to, and the same again gives the same bits.

        Why: a state can be gone on from twice, and a generation may be compiled.
        Source: minimodel.search.strategies.
        """
        state, key = strategy.init(params_of(seed)), random.key(seed)
        before = tree.map(np.copy, state)
        asked = strategy.ask(state, key, self.population)
        shown = tree.map(np.copy, asked)
        told = strategy.tell(state, asked, far_from_half(asked))
        after = tree.map(np.copy, told)
        assert_same_bits((state, asked), (before, shown), "the state or the candidates")
        again, retold = self.generation(strategy, state, key)
        assert_same_bits((asked, again), (shown, shown), "the candidates")
        assert_same_bits((told, retold), (after, after), "the state that was told")

    @law(5, seed=st.integers(0, 99))
    def test_a_candidate_depends_on_its_key_alone(self, strategy: Strategy, seed: int) -> None:
        """The first candidates of many are those of a smaller population.

        Why: a population can be spread over devices, or grow, and none of its members changes.
        Source: minimodel.search.strategies.
        """
        state, key = strategy.init(params_of(seed)), random.key(seed)
        many, few = (strategy.ask(state, key, n) for n in (self.population, self.population // 2))
        assert_same_bits(rows_of(many.params)[: self.population // 2], rows_of(few.params), "the first candidates")

    @law(5, seed=st.integers(0, 99))
    def test_candidates_and_generations_differ(self, strategy: Strategy, seed: int) -> None:
        """No candidate of one generation is one of another, nor another of its own.

        Why: a key that is not folded by the generation gives the same candidates again.
        Source: minimodel.random.
        """
        state = strategy.init(params_of(seed))
        keys = random.fold_in(random.key(seed), np.arange(2))
        found = np.concatenate([rows_of(strategy.ask(state, key, self.population).params) for key in keys])
        assert len(np.unique(found, axis=0)) == len(found), "a candidate came twice"

    @law(5, seed=st.integers(0, 99))
    def test_no_key_is_drawn_and_split(self, strategy: Strategy, seed: int) -> None:
        """In a generation no key is drawn from twice, and none that is drawn from is folded or split; one at least is.

        Why: the numbers would be the same, or made of the same words. How a strategy that draws by
        other means than minimodel.random uses its keys cannot be seen, which makes this an expected failure.
        Source: minimodel.random; JAX documentation, jax_debug_key_reuse.
        """

        params = params_of(seed)

        def generation(backend: Backend) -> None:
            state = strategy.init(params, backend=backend)
            asked = strategy.ask(state, random.key(seed), self.population, backend=backend)
            strategy.tell(state, asked, far_from_half(asked), backend=backend)

        keys = keys_used(generation)
        assert len(keys.drawn), "no key was drawn from by minimodel.random: how its keys are used cannot be seen"
        assert_keys_are_used_once(keys)

    @law(10, seed=st.integers(0, 99), values=st.lists(fitnesses, min_size=1, max_size=3))
    def test_the_best_is_the_least_so_far(self, strategy: Strategy, seed: int, values: list[list[float]]) -> None:
        """The best fitness never worsens, NaN is worse than any number, and the best is the candidate that had it.

        Why: whatever a strategy does, what it found is kept.
        Source: Solis, Wets: Minimization by random search techniques (1981), condition H1.
        """
        state, least, best = strategy.init(params_of(seed), 5.0), 5.0, rows_of(as_candidate(params_of(seed)))
        for i, fitness in enumerate(values):
            asked = strategy.ask(state, random.fold_in(random.key(seed), i), self.population)
            state = strategy.tell(state, asked, np.asarray(fitness))
            clean = np.where(np.isnan(fitness), INF, fitness)
            if clean.min() < least:
                least, best = clean.min(), rows_of(asked.params)[clean.argmin()][None]
            assert float(state.fitness) == least, f"the best fitness is {float(state.fitness)}, the least was {least}"
            np.testing.assert_allclose(rows_of(as_candidate(state.best)), best, rtol=1e-6, atol=1e-7)

    @law(5, seed=st.integers(0, 99), bad=st.lists(st.integers(0, 7), min_size=1, max_size=4))
    def test_a_nan_does_not_spread(self, strategy: Strategy, seed: int, bad: list[int]) -> None:
        """Candidates whose fitness is NaN, or a start, count as those of infinity, and all that is known stays finite.

        Why: a network that diverges is a bad candidate, no reason to lose the others.
        Source: minimodel.search.plans.
        """
        states = [strategy.init(params_of(seed), value) for value in (NAN, INF)]
        for generation in range(2):
            asked = strategy.ask(states[0], random.fold_in(random.key(seed), generation), self.population)
            for i, value in enumerate((NAN, INF)):
                fitness = far_from_half(asked)
                fitness[bad] = value
                states[i] = strategy.tell(states[i], asked, fitness)
        assert not any(np.isnan(np.asarray(leaf)).any() for leaf in tree.leaves(states[0])), "the state holds a NaN"
        assert_same_bits(states[0], states[1], "told of NaN and of infinity")

    @law(20, seed=st.integers(0, 99), worth=integer, fitness=integers, rising=st.sampled_from(tuple(RISING)))
    def test_only_the_order_of_the_fitness_counts(
        self, strategy: Strategy, seed: int, worth: float, fitness: list[float], rising: str
    ) -> None:
        """A strictly rising function of the fitness, that of the start too, changes no bit; ties stay ties.

        Why: the scale of a loss means nothing to a search, and outliers are many. What goes by differences of the
        fitness, as simulated annealing does, makes this an expected failure.
        Source: Hansen, The CMA evolution strategy: a tutorial (2016), section B.1; Wierstra et al. (2014).
        """
        states = [strategy.init(params_of(seed), start) for start in (worth, RISING[rising](worth))]
        asked, values = strategy.ask(states[0], random.key(seed), self.population), np.asarray(fitness)
        states = [strategy.tell(s, asked, f) for s, f in zip(states, (values, RISING[rising](values)), strict=True)]
        assert_same_bits(without_fitness(states[0]), without_fitness(states[1]), rising)

    @law(3, seed=st.integers(0, 99))
    def test_a_search_goes_on_from_its_file(self, strategy: Strategy, seed: int) -> None:
        """A state comes back from its file to the bit, and the search goes on as if it had never stopped.

        Why: long searches are interrupted.
        Source: minimodel.search.strategies, save and load.
        """
        start = params_of(seed)
        half = self.drive(strategy, strategy.init(start), range(2))
        with TemporaryDirectory() as folder:
            strategy.save(half, Path(folder) / "state")
            again = strategy.load(Path(folder) / "state", start)
        assert_same_bits(again, half, "what was loaded")
        after = self.drive(strategy, again, range(2, 4))
        assert_same_bits(after, self.drive(strategy, strategy.init(start), range(4)), "the search that went on")

    @law(3, seed=st.integers(0, 99))
    def test_it_finds_something_better(self, strategy: Strategy, seed: int) -> None:
        """In 30 generations a fitness is found that is lower than that of the start, five away everywhere.

        Why: the sign of what is told.
        Source: Solis, Wets: Minimization by random search techniques (1981).
        """
        start = tree.map(lambda leaf: np.full_like(leaf, 5.0), params_of(seed))
        worth = float(np.square(rows_of(as_candidate(start)) - 0.5).sum())
        state = self.drive(strategy, strategy.init(start, worth), range(30), seed)
        assert float(state.fitness) < worth, f"from {worth:.4g} to {float(state.fitness):.4g}"

    @law(2, seed=st.integers(0, 99))
    def test_every_backend_asks_and_tells_the_same(self, strategy: Strategy, seed: int) -> None:
        """Candidates and states are those of NumPy to the tier "step", float32 throughout.

        Why: one source, same draws.
        Source: the tiers "exact" and "step".
        """
        start, key = params_of(seed), random.key(seed)
        theirs, told = self.generation(strategy, strategy.init(start), key)
        for backend in self.backends():
            state = strategy.init(start, backend=backend)
            asked = strategy.ask(state, key, self.population, backend=backend)
            assert_floats_are("float32", (state, asked), backend.name)
            assert_within_step(backend.to_numpy(asked), theirs, backend.name)
            found = strategy.tell(state, asked, far_from_half(theirs), backend=backend)
            assert_within_step(backend.to_numpy(found), told, backend.name)


def as_candidate(params: Tree) -> Tree:
    """With the axis of candidates in front."""
    return tree.map(lambda leaf: np.asarray(leaf)[None], params)
