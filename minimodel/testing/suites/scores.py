"""The laws of pruning scores."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

import minimodel as mm
from minimodel import losses, random, tree
from minimodel.backends import Backend
from minimodel.compress import scores
from minimodel.compress.masks import Choice, choose
from minimodel.compress.patterns import unstructured
from minimodel.compress.scores import Asked, Score, measure
from minimodel.network import Network
from minimodel.problem import Rows, to_backend
from minimodel.testing import strategies as some
from minimodel.testing.oracles import (
    assert_keys_are_used_once,
    assert_same_bits,
    assert_within_step,
    installed,
    keys_used,
)
from minimodel.testing.strategies import law
from minimodel.testing.suites.base import Suite

NETWORK = Network((4, 6, 3), "tanh")
SIZE = sum(n * m for n, m in NETWORK.shapes)


class Case(NamedTuple):
    """What scores are measured on: parameters, rows, keys and what weights moved."""

    params: Any
    rows: Rows
    key: Any
    moved: Any

    @classmethod
    def of(cls, seed: int, population: int | None = None) -> "Case":
        """Weights in quarters, of which many are equal and some 0; 20 rows in three classes."""
        rng, lead = np.random.default_rng(seed), some.lead(population)
        params = tuple(
            mm.Layer(
                np.round(4 * rng.normal(size=(*lead, *shape))).astype(np.float32) / 4,
                rng.normal(size=(*lead, shape[1])).astype(np.float32),
            )
            for shape in NETWORK.shapes
        )
        rows = Rows(rng.normal(size=(20, 4)).astype(np.float32), np.eye(3, dtype=np.float32)[rng.integers(0, 3, 20)])
        key = random.key(seed) if population is None else random.split(random.key(seed), population)
        return cls(params, rows, key, tuple(rng.normal(size=p.weight.shape).astype(np.float32) for p in params))

    def member(self, i: int) -> "Case":
        """That of one network."""
        params, key, moved = tree.map(lambda leaf: leaf[i], (self.params, self.key, self.moved))
        return Case(params, self.rows, key, moved)


class ScoreSuite(Suite):
    """Fixture ``score``: a function of ``Evidence``, or its name."""

    subject = "score"

    def measured(self, score: str | Score, case: Case, backend: Backend | None = None) -> tuple[Any, ...]:
        """The scores of every weight on the host, as pruning measures them."""
        backend = mm.backends.load("numpy") if backend is None else backend
        asked = Asked(scores.get(score), NETWORK, losses.softmax_cross_entropy, backend)
        params, rows, moved = to_backend(backend, (case.params, case.rows, case.moved))
        run = backend.jit(measure, static=("asked",))
        found, missing = backend.to_numpy(run(params, rows, backend.asarray(case.key), moved, asked=asked))
        assert not missing, "a score is NaN"
        return tuple(found)

    def masks(self, scores: tuple[Any, ...], kept: int) -> tuple[Any, ...]:
        """What keeps so many weights by their scores; a pruner with a way of its own overrides it."""
        choice = Choice(mm.backends.load("numpy"), unstructured(), True, (0,) * len(scores))
        return choose(scores, None, (np.asarray(kept, np.int32),), choice=choice)

    @law(5, seed=st.integers(0, 99), population=some.populations)
    def test_every_weight_has_a_number(self, score: str | Score, seed: int, population: int | None) -> None:
        """For each layer an array of numbers, none NaN, that broadcasts to its weight.

        Why: what cannot be compared cannot be ranked.
        Source: minimodel.compress.scores.
        """
        case = Case.of(seed, population)
        found = self.measured(score, case)
        assert [part.shape for part in found] == [layer.weight.shape for layer in case.params]

    @law(5, seed=st.integers(0, 99))
    def test_a_population_is_its_members(self, score: str | Score, seed: int) -> None:
        """Each member's scores are what it gets alone, from its own key.

        Why: P networks are pruned as one array program.
        Source: Python array API standard 2024.12, Broadcasting, along the axes in front.
        """
        case = Case.of(seed, some.MEMBERS)
        found = self.measured(score, case)
        for i in range(some.MEMBERS):
            assert_within_step(tuple(part[i] for part in found), self.measured(score, case.member(i)), f"member {i}")

    @law(5, seed=st.integers(0, 99))
    def test_it_repeats_and_consumes_nothing(self, score: str | Score, seed: int) -> None:
        """The same evidence gives the same bits, and is as it was.

        Why: a schedule measures many times, and what is measured is the model itself.
        Source: minimodel.compress.scores.
        """
        case = Case.of(seed)
        backend = mm.backends.load("numpy", debug=True)
        evidence = scores.Evidence(NETWORK, losses.softmax_cross_entropy, backend, *case)
        first, again = (tree.map(np.copy, tuple(scores.get(score)(evidence))) for _ in range(2))
        assert_same_bits(first, again, "the second time")
        assert_same_bits(tuple(case), tuple(Case.of(seed)), "the evidence")

    @law(5, seed=st.integers(0, 99))
    def test_no_key_is_drawn_and_split(self, score: str | Score, seed: int) -> None:
        """No key is drawn from twice, and none that is drawn from is folded or split.

        Why: two layers would get the same numbers, or numbers made of the same words. Most scores draw nothing, and
        then there is nothing to break.
        Source: minimodel.random; JAX documentation, jax_debug_key_reuse.
        """
        assert_keys_are_used_once(keys_used(lambda backend: self.measured(score, Case.of(seed), backend)))

    @law(5, seed=st.integers(0, 99))
    def test_the_order_of_the_rows_does_not_count(self, score: str | Score, seed: int) -> None:
        """Rows in another order give the same scores, to the tier "step".

        Why: scores are means over training rows.
        Source: minimodel.compress.samples.
        """
        case, order = Case.of(seed), np.random.default_rng(seed).permutation(20)
        rows = tree.map(lambda leaf: leaf[order], case.rows)
        assert_within_step(self.measured(score, case._replace(rows=rows)), self.measured(score, case))

    def test_nothing_left_gives_finite_scores(self, score: str | Score) -> None:
        """Of a network all of whose weights are 0 the scores are finite.

        Why: pruning in rounds meets layers that are empty; 0/0 would end it.
        Source: IEEE 754-2019, section 7.2: 0/0 is an invalid operation.
        """
        empty = Case.of(0)
        found = self.measured(score, empty._replace(params=tree.map(np.zeros_like, empty.params)))
        assert all(np.isfinite(part).all() for part in found)

    @law(5, seed=st.integers(0, 99), kept=st.integers(0, SIZE))
    def test_its_masks_are_exact(self, score: str | Score, seed: int, kept: int) -> None:
        """Masks made of the scores keep exactly as many weights as asked, the first of equal ones.

        Why: the sparsity asked for is the sparsity that results, with the same weights everywhere.
        Source: the tier "exact".
        """
        found = self.measured(score, Case.of(seed))
        masks = self.masks(found, kept)
        flat = np.concatenate([part.ravel() for part in found])
        expected = np.zeros(SIZE, bool)
        expected[np.argsort(-flat, kind="stable")[:kept]] = True
        assert_same_bits(np.concatenate([mask.ravel() for mask in masks]), expected, "the mask")

    @law(2, seed=st.integers(0, 99))
    def test_every_backend_gives_the_same_scores(self, score: str | Score, seed: int) -> None:
        """Scores in float32, compiled, are NumPy's to the tier "step".

        Why: one source.
        Source: the tier "step".
        """
        case = Case.of(seed)
        expected = self.measured(score, case)
        for backend in installed():
            assert_within_step(self.measured(score, case, backend), expected, backend.name)
