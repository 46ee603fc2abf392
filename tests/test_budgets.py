"""Budgeted search: the rungs are the paper's, the best go on, nobody notices the others, bad input is refused."""

from dataclasses import replace
from itertools import pairwise
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import optimizers, schedules, tree
from minimodel.problem import member_seeds, run_keys
from minimodel.search.budgets import LEAST_ROWS, RECORD, rungs, whole_log

NETWORK = mm.Network((4, 6, 3))
SLOW = optimizers.sgd(0.05)


def table(model, **equal):
    """The rows of the record where its columns are these."""
    found = model.history["rungs"]
    for name, value in equal.items():
        found = found[found[name] == value]
    return found


def winner(model):
    """Who is left of one bracket."""
    last = table(model, rung=table(model)["rung"].max())
    return int(last["candidate"][last["kept"]].item())


def assert_close(found, expected, rtol=1e-4):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-6)


# The schedule.


def test_the_brackets_are_those_of_algorithm_1():
    """R = 81, η = 3: n and r of every rung by the formulas of the paper, n_s = ⌈5/(s + 1)·3^s⌉."""
    found = [[tuple(rung) for rung in bracket] for bracket in mm.hyperband_brackets(81)]
    assert found == [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        [(34, 3), (11, 9), (3, 27), (1, 81)],
        [(15, 9), (5, 27), (1, 81)],
        [(8, 27), (2, 81)],
        [(5, 81)],
    ]
    assert mm.hyperband_candidates(81) == 81 + 34 + 15 + 8 + 5


@given(most=st.integers(1, 10**6), eta=st.integers(2, 10), least=st.integers(1, 1000))
def test_every_bracket_costs_about_the_same(most, eta, least):
    """No more than (s_max + 1)R, but for the rounding of n upwards; budgets grow by η from at least ``least`` to R."""
    least = min(least, most)
    brackets = mm.hyperband_brackets(most, eta=eta, least=least)
    top = len(brackets) - 1
    assert eta**top <= most / least < eta ** (top + 1)
    for s, bracket in zip(range(top, -1, -1), brackets, strict=True):
        assert len(bracket) == s + 1 and bracket[-1].budget == most and bracket[0].budget >= least
        assert bracket[0].candidates == ceil((top + 1) * eta**s / (s + 1) - 1e-9)
        spent = sum(rung.candidates * rung.budget for rung in bracket)
        assert spent <= (top + 1) * most + (s + 1) * most / eta**s
        for before, after in pairwise(bracket):
            assert after.candidates == before.candidates // eta >= 1
            assert 0 <= after.budget - eta * before.budget < eta


@given(candidates=st.integers(1, 10**6), eta=st.integers(2, 10), spare=st.integers(0, 1000))
def test_halving_ends_with_fewer_than_eta(candidates, eta, spare):
    cuts = whole_log(candidates, eta)
    bracket = rungs(candidates, cuts, eta**cuts + spare, eta)
    assert bracket[0].candidates == candidates and 1 <= bracket[-1].candidates < eta
    assert bracket[0].budget >= 1 and bracket[-1].budget == eta**cuts + spare


@given(base=st.integers(2, 50), power=st.integers(0, 40), less=st.integers(0, 1))
def test_whole_logarithms_are_exact(base, power, less):
    assert whole_log(max(1, base**power - less), base) == (power - less if power else 0)


# Successive halving.


@pytest.fixture(scope="module")
def halved(splits):
    return mm.successive_halving(NETWORK, splits, seed=5, candidates=9, optimizer=SLOW, batch_size=16)


def test_the_record_has_every_candidate_of_every_rung(halved):
    record = table(halved)
    assert record.dtype == RECORD
    for rung, (count, budget) in enumerate([(9, 1), (3, 3), (1, 9)]):
        rows = table(halved, rung=rung)
        assert len(rows) == count and set(rows["budget"]) == {budget} and set(rows["bracket"]) == {2}
        assert (np.diff(rows["candidate"]) > 0).all()
    assert len(record) == 13


def test_the_best_by_validation_go_on(halved):
    for rung in range(3):
        rows = table(halved, rung=rung)
        gone, kept = (rows["validation_loss"][rows["kept"] == on] for on in (False, True))
        assert len(kept) == max(1, len(rows) // 3)
        assert not len(gone) or kept.max() <= gone.min()
        if rung < 2:
            after = table(halved, rung=rung + 1)["candidate"]
            np.testing.assert_array_equal(after, rows["candidate"][rows["kept"]])


def test_the_winner_is_one_network_and_its_own_run(halved):
    assert halved.population is None
    assert halved.params[0].weight.shape == (4, 6)
    log = halved.history["validation_loss"]
    assert log.shape == (10,)
    assert table(halved)["validation_loss"][-1] == log.min() == halved.state.best_loss


OPTIMIZERS = {
    "sgd": SLOW,
    "adam": optimizers.adam(0.02),
    "nadam": optimizers.nadam(0.02),
    "average": optimizers.adam(0.02, average=0.9),
    "lbfgs": optimizers.lbfgs(memory=3),
    "cosine": optimizers.momentum(schedules.cosine(0.05)),
    "plateau": optimizers.sgd(schedules.reduce_on_plateau(0.3, patience=0)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_winner_is_the_uninterrupted_run_of_its_seed(name, splits):
    """Over all rungs, with the optimizer's state and the schedule of the whole run."""
    options = {"optimizer": OPTIMIZERS[name], "batch_size": 16}
    model = mm.successive_halving(NETWORK, splits, seed=5, candidates=9, **options)
    alone = mm.gradient_descent(NETWORK, splits, seed=5 + winner(model), epochs=9, **options)
    assert_close(model.params, alone.params, rtol=1e-3 if name == "lbfgs" else 1e-4)
    assert_close(model.state.params, alone.state.params, rtol=1e-3 if name == "lbfgs" else 1e-4)
    for log in ("loss", "validation_loss", "learning_rate"):
        np.testing.assert_allclose(model.history[log], alone.history[log], rtol=1e-4)


@pytest.mark.parametrize("budget", ["epochs", "rows"])
def test_every_candidate_is_the_run_of_its_seed(backend, budget, splits):
    """Whatever the others do, each has the loss of gradient_descent for the same epochs, or on the same rows."""
    options = {"backend": backend, "optimizer": SLOW, "batch_size": 8}
    epochs = 4 if budget == "epochs" else 2
    model = mm.successive_halving(NETWORK, splits, seed=2, candidates=4, eta=2, budget=budget, epochs=epochs, **options)
    rows = len(splits.train.x)
    expected = [(4, 1), (2, 2), (1, 4)] if budget == "epochs" else [(4, rows // 4), (2, rows // 2), (1, rows)]
    for rung, (count, amount) in enumerate(expected):
        found = table(model, rung=rung)
        assert len(found) == count and set(found["budget"]) == {amount}
        for candidate, loss in zip(found["candidate"], found["validation_loss"], strict=True):
            data, many = splits, amount
            if budget == "rows":
                data, many = replace(splits, train=mm.Dataset(*(part[:amount] for part in splits.train))), epochs
            alone = mm.gradient_descent(NETWORK, data, seed=2 + int(candidate), epochs=many, **options)
            np.testing.assert_allclose(loss, alone.history["validation_loss"].min(), rtol=1e-5)
    assert_close(model.params, alone.params)


def test_noise_is_that_of_the_uninterrupted_run_too(splits):
    options = {"dropout": 0.3, "label_smoothing": 0.1, "optimizer": SLOW, "class_weight": "balanced", "batch_size": 8}
    model = mm.successive_halving(NETWORK, splits, seed=1, candidates=4, eta=2, **options)
    alone = mm.gradient_descent(NETWORK, splits, seed=1 + winner(model), epochs=4, **options)
    assert_close(model.params, alone.params)


def test_every_candidate_has_its_own_numbers_all_the_way(splits):
    rates = schedules.reduce_on_plateau(np.geomspace(1e-3, 0.5, 9), patience=0)
    momenta, dropout = np.linspace(0, 0.9, 9), list(np.linspace(0, 0.4, 9))
    seeds = list(range(40, 49))
    model = mm.successive_halving(
        NETWORK, splits, seed=seeds, candidates=9, optimizer=optimizers.momentum(rates, momentum=momenta),
        dropout=dropout, batch_size=16, patience=list(range(5, 14)), epochs=12,
    )  # fmt: skip
    best = winner(model)
    rate = schedules.reduce_on_plateau(np.geomspace(1e-3, 0.5, 9)[best], patience=0)
    alone = mm.gradient_descent(
        NETWORK, splits, seed=seeds[best], optimizer=optimizers.momentum(rate, momentum=momenta[best]),
        dropout=dropout[best], batch_size=16, patience=5 + best, epochs=12,
    )  # fmt: skip
    assert best > 2  # the slowest learn too little
    assert_close(model.params, alone.params)
    np.testing.assert_allclose(model.history["learning_rate"], alone.history["learning_rate"], rtol=1e-12)


def test_params_and_masks_may_be_of_each_candidate(splits):
    start = NETWORK.init(run_keys(90, 4))
    rng = np.random.default_rng(0)
    masks = tuple(rng.random((4, *shape)) < 0.7 for shape in NETWORK.shapes)
    for budget in ("epochs", "rows"):
        model = mm.successive_halving(
            NETWORK, splits, seed=0, candidates=4, eta=2, budget=budget, epochs=4, params=start, masks=masks
        )
        best = winner(model)
        own = {
            "params": tree.map(lambda leaf, best=best: leaf[best], start),
            "masks": tuple(mask[best] for mask in masks),
        }
        alone = mm.gradient_descent(NETWORK, splits, seed=best, epochs=4, **own)
        assert_close(model.params, alone.params)
        for kept, mask in zip(model.masks, own["masks"], strict=True):
            np.testing.assert_array_equal(kept, mask)


def test_one_start_and_one_mask_may_be_for_all(splits):
    start, masks = NETWORK.init(run_keys(9, None)), tuple(np.eye(*shape) for shape in NETWORK.shapes)
    model = mm.successive_halving(NETWORK, splits, seed=0, candidates=4, eta=2, params=start, masks=masks)
    alone = mm.gradient_descent(NETWORK, splits, seed=winner(model), epochs=4, params=start, masks=masks)
    assert_close(model.params, alone.params)
    assert [mask.shape for mask in model.masks] == list(NETWORK.shapes)


def test_rows_keep_their_weights(splits):
    weights = np.random.default_rng(0).random(len(splits.train.x))
    options = {"epochs": 2, "optimizer": SLOW, "batch_size": 8}
    model = mm.successive_halving(
        NETWORK, splits, seed=0, candidates=4, eta=2, budget="rows", sample_weight=weights, **options
    )
    alone = mm.gradient_descent(NETWORK, splits, seed=winner(model), sample_weight=weights, **options)
    assert_close(model.params, alone.params)


def test_the_winner_trains_further(halved, splits):
    options = {"optimizer": SLOW, "batch_size": 16, "seed": 5 + winner(halved), "epochs": 12}
    found = mm.gradient_descent(NETWORK, splits, resume=halved, **options)
    assert_close(found.params, mm.gradient_descent(NETWORK, splits, **options).params)


def test_a_stream_gives_epochs(splits):
    data = splits
    batches = [(data.train.x[at : at + 20], data.train.y[at : at + 20]) for at in range(0, len(data.train.x), 20)]
    stream = mm.stream_batches(batches, data.validation, data.test)
    options = {"optimizer": SLOW, "batch_size": 10}
    model = mm.successive_halving(NETWORK, stream, seed=0, candidates=4, eta=2, **options)
    alone = mm.gradient_descent(NETWORK, stream, seed=winner(model), epochs=4, **options)
    assert_close(model.params, alone.params)
    with pytest.raises(TypeError, match=r"^data: a budget of rows takes Splits, got Stream"):
        mm.successive_halving(NETWORK, stream, seed=0, budget="rows")


def test_the_test_part_is_never_looked_at(splits):
    for budget in ("epochs", "rows"):
        options = {"seed": 0, "candidates": 4, "eta": 2, "budget": budget, "epochs": 4}
        data = replace(splits, test=mm.Dataset(splits.test.x * np.nan, splits.test.y))
        found, expected = (mm.successive_halving(NETWORK, given, **options) for given in (data, splits))
        assert_close(found.params, expected.params, rtol=0)


def test_of_equals_the_first_go_on(splits):
    """A learning rate of 0 and one start: all candidates stay alike."""
    start = NETWORK.init(run_keys(1, None))
    model = mm.successive_halving(NETWORK, splits, seed=0, candidates=9, params=start, optimizer=optimizers.sgd(0.0))
    assert [list(table(model, rung=rung)["candidate"]) for rung in range(3)] == [list(range(9)), [0, 1, 2], [0]]


# What diverges, and what is stopped.


def regression():
    """Three smooth targets of four features, on which a large step leads further and further away."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 4)).astype(np.float32)
    return mm.datasets.split(x, np.tanh(x @ rng.normal(size=(4, 3))).astype(np.float32), seed=0)


def diverging(*where, count=9):
    """Rates that are good but where the run is to leave the finite numbers."""
    rates = np.full(count, 0.02)
    rates[list(where)] = 1e20
    return optimizers.sgd(rates)


def test_candidates_that_diverge_lose(backend):
    model = mm.successive_halving(
        NETWORK, regression(), seed=0, backend=backend, candidates=9, optimizer=diverging(0, 1, 4), batch_size=16
    )
    first = table(model, rung=0)
    assert list(first["candidate"][np.isinf(first["validation_loss"])]) == [0, 1, 4]
    assert not first["kept"][[0, 1, 4]].any() and first["kept"].sum() == 3
    assert all(np.isfinite(leaf).all() for leaf in tree.leaves(model.params))


def test_nobody_diverged_fills_a_place():
    """Of nine one is left where three might go on."""
    model = mm.successive_halving(
        NETWORK, regression(), seed=0, candidates=9, optimizer=diverging(*range(8)), batch_size=16
    )
    assert [len(table(model, rung=rung)) for rung in range(3)] == [9, 1, 1]
    assert winner(model) == 8


@pytest.mark.parametrize("search", [mm.successive_halving, mm.hyperband])
def test_a_search_of_which_nothing_is_finite_raises(search):
    with pytest.raises(mm.DivergedError, match=r"diverged at step .* Lower the learning rate") as caught:
        search(NETWORK, regression(), seed=0, epochs=9, optimizer=optimizers.sgd(1e20), batch_size=16, **(
            {"candidates": 9} if search is mm.successive_halving else {}
        ))  # fmt: skip
    assert all(np.isfinite(leaf).all() for leaf in tree.leaves(caught.value.model.params))


def test_patience_may_end_every_run(splits):
    model = mm.successive_halving(NETWORK, splits, seed=0, candidates=4, eta=2, patience=1, min_delta=10.0)
    assert len(model.history["validation_loss"]) == 2 and len(table(model)) == 7


@pytest.mark.parametrize("search", [mm.successive_halving, mm.hyperband])
def test_a_callback_sees_every_rung_and_ends_the_search(search, splits):
    seen = []
    options = {"seed": 0, "epochs": 9, "optimizer": SLOW}
    options |= {"candidates": 9} if search is mm.successive_halving else {}
    whole = search(NETWORK, splits, callback=seen.append, **options)
    work = sum(len(progress.loss) for progress in seen)
    spent = sum(int(row["budget"]) - (int(row["budget"]) // 3 if row["rung"] else 0) for row in whole.history["rungs"])
    assert work == spent  # no epoch is run twice
    assert {progress.total for progress in seen} == {1, 3, 9}

    ended = search(NETWORK, splits, callback=lambda progress: progress.done == 2, **options)
    assert ended.population is None
    assert len(ended.history["validation_loss"]) == 3
    assert list(ended.history["rungs"]["rung"]) == [0] * 9 + [1] * 3
    assert ended.history["rungs"]["kept"][9:].sum() == 1


# Hyperband.


@pytest.mark.parametrize("budget", ["epochs", "rows"])
def test_hyperband_returns_the_best_winner(budget, splits):
    epochs = 9 if budget == "epochs" else 2
    model = mm.hyperband(
        NETWORK, splits, seed=3, budget=budget, epochs=epochs, least=None if budget == "epochs" else 6, batch_size=8,
        optimizer=SLOW,
    )  # fmt: skip
    most, least = (9, 1) if budget == "epochs" else (len(splits.train.x), 6)
    brackets = mm.hyperband_brackets(most, least=least)
    assert len(model.history["rungs"]) == sum(rung.candidates for bracket in brackets for rung in bracket)
    assert len(set(table(model)["candidate"])) == mm.hyperband_candidates(most, least=least)
    winners = []
    for s, bracket in zip(range(len(brackets) - 1, -1, -1), brackets, strict=True):
        for i, (count, amount) in enumerate(bracket):
            rows = table(model, bracket=s, rung=i)
            assert len(rows) == count and set(rows["budget"]) == {amount}
        winners += [row for row in table(model, bracket=s, rung=s) if row["kept"]]
    best = min(winners, key=lambda row: row["validation_loss"])
    assert best["validation_loss"] == model.state.best_loss
    alone = mm.gradient_descent(
        NETWORK, splits, seed=3 + int(best["candidate"]), epochs=epochs, batch_size=8, optimizer=SLOW
    )
    assert_close(model.params, alone.params)


def test_hyperband_sweeps_over_all_its_candidates(backend, splits):
    """Each has the number that stands at its place, also in later brackets."""
    count = mm.hyperband_candidates(4, eta=2)
    rates = np.zeros(count)
    rates[-1] = 0.5  # the only one that learns, in the last bracket
    start = NETWORK.init(run_keys(1, None))
    model = mm.hyperband(
        NETWORK, splits, seed=0, backend=backend, eta=2, epochs=4, params=start, optimizer=optimizers.sgd(rates)
    )
    assert table(model, bracket=0)["kept"].argmax() == len(table(model, bracket=0)) - 1
    alone = mm.gradient_descent(
        NETWORK, splits, seed=count - 1, backend=backend, epochs=4, params=start, optimizer=optimizers.sgd(0.5)
    )
    assert_close(model.params, alone.params)


def test_a_bracket_may_be_lost():
    """All candidates of the first diverge, and one of the second wins."""
    count = mm.hyperband_candidates(9)
    model = mm.hyperband(
        NETWORK, regression(), seed=0, epochs=9, optimizer=diverging(*range(9), count=count), batch_size=16
    )
    lost = table(model, bracket=2)
    assert len(lost) == 9 and np.isinf(lost["validation_loss"]).all() and not lost["kept"].any()
    assert table(model, bracket=1)["kept"].any()
    assert np.isfinite(model.state.best_loss)


def test_hyperband_gives_a_batch_of_rows_at_least(splits):
    model = mm.hyperband(NETWORK, splits, seed=0, budget="rows", epochs=1, eta=2)
    rows = len(splits.train.x)
    assert table(model)["budget"].min() == rows // 2 ** floor(np.log2(rows / LEAST_ROWS)) >= LEAST_ROWS


# Seeds.


def test_members_may_have_seeds_of_their_own(backend, splits):
    options = {"backend": backend, "epochs": 2, "optimizer": SLOW}
    for seeds in ([7, 3], np.array([7, 3]), (np.uint64(7), 3)):
        together = mm.gradient_descent(NETWORK, splits, seed=seeds, population=2, **options)
    for i, seed in enumerate((7, 3)):
        alone = mm.gradient_descent(NETWORK, splits, seed=seed, **options)
        assert_close(together.member(i).params, alone.params, rtol=1e-5)


def test_seeds_give_the_keys_of_each():
    np.testing.assert_array_equal(run_keys([5, 2**64 - 1], 2), [run_keys(5, None), run_keys(2**64 - 1, None)])
    assert member_seeds(2**64 - 2, 2) == [2**64 - 2, 2**64 - 1]


@pytest.mark.parametrize(
    ("seed", "population", "match"),
    [
        ([1, 2], 3, "an integer or 3, one for each member, got 2"),
        ([1, 2], None, "an integer from 0"),
        (np.array([1, 2]), None, "an integer from 0"),
        ([1, -2], 2, "an integer from 0"),
        ([1, 2.0], 2, "an integer from 0"),
        ([1, True], 2, "an integer from 0"),
        ([[1, 2], [3, 4]], 2, "an integer from 0"),
        (np.ones((2, 2), int), 2, "an integer from 0"),
        ("ab", 2, "an integer from 0"),
        (2**64 - 1, 2, r"an integer from 0 to 2\^64 − 2"),
    ],
)
def test_bad_seeds_are_refused(seed, population, match):
    with pytest.raises(ValueError, match=f"^seed: expected {match}"):
        run_keys(seed, population)


# Bad input: one error that names the argument.

BAD = {
    "no candidates": ({"candidates": 0}, "candidates"),
    "half a candidate": ({"candidates": 4.5}, "candidates"),
    "too few epochs": ({"candidates": 27, "epochs": 26}, "candidates: 27 of them with eta=3 need at least 27 epochs"),
    "too few rows": ({"candidates": 3000, "budget": "rows"}, "candidates: 3000 of them with eta=3 need at least 2187"),
    "an eta of one": ({"eta": 1}, "eta"),
    "an eta of float": ({"eta": 3.0}, "eta"),
    "an unknown budget": ({"budget": "seconds"}, "budget: expected 'epochs' or 'rows', got 'seconds'"),
    "a list for a budget": ({"budget": ["rows"]}, "budget"),
    "half an epoch": ({"epochs": 27.5}, "epochs"),
    "no epochs": ({"epochs": 0}, "epochs"),
    "a seed of float": ({"seed": 1.0}, "seed"),
    "too few seeds": ({"seed": [1, 2]}, "seed: expected an integer or 9"),
    "rates of fewer candidates": ({"optimizer": optimizers.sgd(np.ones(8))}, "learning_rate"),
    "rates of more candidates": ({"optimizer": optimizers.sgd(np.ones(10))}, "learning_rate"),
    "momenta of more candidates": ({"optimizer": optimizers.momentum(0.1, momentum=np.zeros(10))}, "optimizer"),
    "dropout of more candidates": ({"dropout": np.zeros(10)}, "dropout"),
    "dropout of all": ({"dropout": 1.0}, "dropout"),
    "patience of fewer candidates": ({"patience": [1, 2]}, "patience"),
    "params of fewer candidates": ({"params": NETWORK.init(run_keys(0, 8))}, "params"),
    "masks of another network": ({"masks": (np.ones((2, 2)),)}, "masks"),
    "weights of fewer rows": ({"sample_weight": np.ones(9), "budget": "rows"}, "sample_weight"),
    "an unknown backend": ({"backend": "abacus"}, "backend"),
    "an unknown loss": ({"loss": "hinge"}, "loss"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_the_name_of_the_argument(case, splits):
    options, match = BAD[case]
    with pytest.raises(ValueError, match=match):
        mm.successive_halving(NETWORK, splits, **{"seed": 0, "candidates": 9, **options})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"eta": 1}, "eta"),
        ({"least": 0}, "least"),
        ({"least": 28}, "least: expected at most 27"),
        ({"epochs": 0}, "epochs"),
        ({"budget": None}, "budget"),
        ({"optimizer": optimizers.sgd(np.ones(27))}, "learning_rate: expected one number or 49"),
        ({"seed": 2**64 - 48}, "seed"),
    ],
)
def test_bad_input_of_hyperband_is_refused(options, match, splits):
    with pytest.raises(ValueError, match=match):
        mm.hyperband(NETWORK, splits, **{"seed": 0, **options})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"population": 3}, "population"),
        ({"resume": None}, "resume"),
        ({"remask": 3}, "remask"),
        ({"callback": 3}, "callback"),
        ({"optimizer": "adam"}, "optimizer"),
    ],
)
@pytest.mark.parametrize("search", [mm.successive_halving, mm.hyperband])
def test_arguments_of_another_kind_are_refused(search, options, match, splits):
    with pytest.raises(TypeError, match=match):
        search(NETWORK, splits, seed=0, **options)


def test_the_seed_is_required(splits):
    for search in (mm.successive_halving, mm.hyperband):
        with pytest.raises(TypeError, match="seed"):
            search(NETWORK, splits)
