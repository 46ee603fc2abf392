"""A budget of bytes: the knapsack against every choice there is, files that fit, what is measured."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import optimizers, qarray
from minimodel.compress import budget
from minimodel.compress.calibration import calibrate

pytest.importorskip("constriction", reason="constriction is not installed: pip install 'minimodel[coded]'")
CHOICES = st.lists(st.tuples(st.integers(0, 30), st.integers(-5, 20)), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def data():
    return mm.datasets.load("digits", seed=0)


@pytest.fixture(scope="module")
def models(data):
    """A trained network and a population, by its size."""
    train = {"optimizer": optimizers.adam(mm.schedules.cosine(0.01)), "epochs": 10, "seed": 0}
    return {size: mm.gradient_descent(mm.Network((64, 16, 10)), data, population=size, **train) for size in (None, 2)}


def networks(model):
    return [model] if model.population is None else [model.member(i) for i in range(model.population)]


@given(st.lists(CHOICES, min_size=1, max_size=4), st.integers(0, 120))
def test_no_choice_that_fits_costs_less(layers, room):
    layers = [[budget.Choice(None, 1, size, float(cost)) for size, cost in layer] for layer in layers]
    fitting = [picks for picks in product(*layers) if sum(choice.bytes for choice in picks) <= room]
    if not fitting:
        with pytest.raises(ValueError, match="budget_bytes: even the smallest choice takes"):
            budget.cheapest(layers, room)
        return
    found = budget.cheapest(layers, room)
    assert all(any(choice is one for one in layer) for choice, layer in zip(found, layers, strict=True))
    assert sum(choice.bytes for choice in found) <= room
    least = min(sum(choice.cost for choice in picks) for picks in fitting)
    assert sum(choice.cost for choice in found) == least


@pytest.mark.parametrize("population", [None, 2])
def test_the_file_is_no_larger_and_more_bytes_cost_less(population, models, data):
    """With and without retraining, each member within its own budget."""
    losses = []
    for size in (500, 900):
        for epochs in (0, 3):
            own = size if population is None else [size, size + 300]
            found = mm.quantize(
                models[population], data, seed=0, budget_bytes=own, budget_sparsities=(0, 0.5, 0.8), epochs=epochs,
                granularity="tensor", optimizer=optimizers.adam(1e-3), learn_levels=epochs > 0,
            )  # fmt: skip
            sizes = [len(mm.coded.encode(one)) for one in networks(found)]
            assert (np.array(sizes) <= np.array(own)).all()
            for layer, q in zip(found.params, found.quantized, strict=True):
                np.testing.assert_array_equal(layer.weight, qarray.dequantize(q))
            losses.append(np.mean(found.evaluate(data.train).loss))
    assert losses[2] < losses[0] and losses[3] < losses[1]


def test_costs_are_what_the_loss_rises_by(models, data):
    """Of each choice: its layer alone in integers, on all training rows; its bytes are those of a file with it."""
    model = models[None]
    found = budget.choices(model, data, 3, (0.0, 0.5), calibrate)
    assert [len(layer) for layer in found] == [6, 6]
    for i, layer in enumerate(found):
        for choice in layer:
            weight = model.params[i].weight
            kept = np.ones(weight.shape, bool) if choice.mask is None else choice.mask
            assert (~kept).sum() == (0 if choice.mask is None else weight.size // 2)
            assert np.abs(weight[kept]).min() >= np.abs(weight[~kept]).max(initial=0)
            q = qarray.quantize(weight * kept, calibrate(weight * kept, choice.bits))
            value = qarray.dequantize(q) * kept
            params = list(model.params)
            params[i] = params[i]._replace(weight=value)
            changed = mm.Model(model.network, tuple(params), model.loss, model.normalization)
            rise = changed.evaluate(data.train).loss - model.evaluate(data.train).loss
            assert choice.cost == pytest.approx(rise, abs=1e-5)


def test_a_mask_that_there_is_stays(models, data):
    pruned = mm.prune(models[None], data, seed=0, sparsity=0.6, epochs=0)
    found = mm.quantize(
        pruned, data, seed=0, budget_bytes=700, budget_sparsities=(0, 0.5, 0.9), granularity="tensor", epochs=1
    )
    for now, before, layer in zip(found.masks, pruned.masks, found.params, strict=True):
        assert not (now & ~before).any() and not layer.weight[~now].any()


def test_budgets_in_a_trade_off(models, data):
    points = mm.trade_off(models[None], data, budgets=[600, 1000], seeds=2, seed=0, epochs=1, granularity="tensor")
    for point, most in zip(points, (600, 1000), strict=True):
        assert (point.bytes <= most).all() and len(point.bits) == 2
        sizes = [len(mm.coded.encode(point.model.member(i))) for i in range(2)]
        np.testing.assert_array_equal(point.bytes, sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_bytes": 10}, "budget_bytes: even the smallest choice takes"),
        ({"budget_bytes": -1}, "budget_bytes: expected a finite number from 0"),
        ({"budget_bytes": 900, "scheme": "asymmetric"}, "budget_bytes: expected Splits, and as coded files"),
        ({"budget_bytes": 900, "scheme": "codebook"}, "budget_bytes: expected Splits, and as coded files"),
        ({"budget_bytes": 900, "granularity": 8}, "budget_bytes: expected Splits, and as coded files"),
        ({"budget_bytes": 900, "budget_sparsities": ()}, "budget_sparsities: expected numbers from 0 to 1"),
        ({"budget_bytes": 900, "budget_sparsities": (1.5,)}, "budget_sparsities: expected numbers from 0 to 1"),
        ({"budget_bytes": 900, "bits": (4, 3)}, "bits: with budget_bytes expected one number"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(options, message, models, data):
    with pytest.raises(ValueError, match=message):
        mm.quantize(models[None], data, seed=0, epochs=0, **options)


def test_members_that_differ_in_their_biases_alone_have_their_own_costs(models, data):
    one = models[None]
    other = one.params[0]._replace(bias=one.params[0].bias + np.float32(3))
    pair = replace(one, params=tuple(mm.Layer(*map(np.stack, zip(*layers, strict=True))) for layers in zip(
        one.params, (other, *one.params[1:]), strict=True
    )))  # fmt: skip
    together = mm.quantize(pair, data, seed=0, budget_bytes=900, epochs=0, granularity="tensor")
    for i in range(2):
        alone = mm.quantize(pair.member(i), data, seed=0, budget_bytes=900, epochs=0, granularity="tensor")
        assert together.member(i).bits == alone.bits
