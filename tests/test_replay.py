"""A recorded scan gives the bits that running every step gives, and what cannot be recorded still runs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import losses, optimizers, tree
from minimodel.backends import array_api, replay

LENGTH = 7


@pytest.fixture(autouse=True)
def exact(exact_sums):
    """But where a test asks for sums as they are."""


@pytest.fixture
def fast(monkeypatch, exact):
    monkeypatch.undo()


def xs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(LENGTH, *shape)).astype(np.float32)


def both(step, carry, inputs):
    """(carry, ys) as replayed and as run plainly, each from its own copy."""
    copies = [tree.map(np.array, carry) for _ in range(2)]
    return replay.scan(step, copies[0], inputs), array_api.scan(np, False, step, copies[1], inputs)


def assert_same(found, expected):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert (ours.shape, ours.dtype) == (np.shape(theirs), theirs.dtype)


def is_recorded(step, carry, inputs):
    return replay.record(step, carry, tree.map(lambda leaf: leaf[0, ...], inputs)) is not None


TABLE = np.random.default_rng(9).normal(size=(5, 3)).astype(np.float32)
STEPS = {
    "in place": lambda c, x: (c.__iadd__(x), c * 2),
    "a new carry": lambda c, x: (c * np.float32(0.5) + x, c),
    "one operand plain": lambda c, x: (TABLE @ c[:3, :3] @ TABLE.mT @ c[:5, :] * np.float32(0.01), x - 1),
    "reductions": lambda c, x: (c + np.max(x, axis=-1, keepdims=True), (np.sum(x), np.max(x), np.min(c, axis=0))),
    "products with vectors": lambda c, x: (c, (np.ones(5, np.float32) @ x, x @ np.ones(4, np.float32))),
    "where, clip, sign": lambda c, x: (np.where(x > 0, c, x), np.clip(np.sign(c) * x, -0.5, 0.5)),
    "astype and booleans": lambda c, x: (c * np.astype(x > 0, np.float32), (x > 0) & np.isfinite(c)),
    "concat and stack": lambda c, x: (np.concat([c[1:, ...], x[:1, ...]], axis=0), np.stack([c, x])),
    "the input as the carry": lambda c, x: (x, c),
    "nothing": lambda c, x: (c, x),
    "a maximum with a start": lambda c, x: (c, np.max(x, axis=-1, initial=0)),
    "numbers from behind": lambda c, x: (c, np.take(x, np.asarray([-1, 0]), axis=-1)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_replayed_scan_is_the_plain_one(name):
    step, carry = STEPS[name], xs(5, 4, seed=1)[0]
    found, expected = both(step, carry, xs(5, 4))
    assert_same(found, expected)


@pytest.mark.parametrize("name", STEPS)
def test_these_steps_are_recorded(name):
    assert is_recorded(STEPS[name], xs(5, 4, seed=1)[0], xs(5, 4))


def test_leaves_may_change_places():
    carry = (np.zeros(3, np.float32), np.ones(3, np.float32), np.full(3, 2, np.float32))
    found, expected = both(lambda c, x: ((c[1], c[2], c[0] + x), c[0] - c[2]), carry, xs(3))
    assert_same(found, expected)


def test_scalars_are_not_changed_in_place():
    """NumPy's scalars cannot be, so a name that is added to leaves another name for the same number alone."""

    def step(c, x):
        before = total = np.sum(x)
        total += 1
        return c + total, before

    found, expected = both(step, np.zeros((), np.float32), xs(3))
    assert_same(found, expected)


def test_rows_are_taken_by_number():
    backend, rows = mm.backends.load("numpy"), np.random.default_rng(0).integers(0, 5, size=(LENGTH, 2, 6))
    found, expected = both(lambda c, r: (c, backend.take(TABLE, r)), np.zeros(1, np.float32), rows)
    assert_same(found, expected)


def test_words_are_drawn_anew_in_every_step():
    backend = mm.backends.load("numpy")
    keys = mm.random.split(mm.random.key(0), LENGTH)
    found, expected = both(lambda c, key: (c, backend.random_bits(key, (4, 3))), np.zeros(1, np.float32), keys)
    assert_same(found, expected)
    assert len(np.unique(found[1])) == LENGTH * 12


def test_the_carry_that_is_given_stays_as_it_was():
    carry = np.zeros(3, np.float32)
    replay.scan(lambda c, x: (c.__iadd__(x), None), carry, xs(3))
    np.testing.assert_array_equal(carry, 0)


@pytest.mark.parametrize(("shape", "axis"), [((7,), -1), ((3, 5), -1), ((3, 5), -2), ((2, 3, 5), -1), ((2, 3, 5), -2)])
@pytest.mark.parametrize("reduce", [np.sum, np.mean])
def test_sums_are_products_with_ones(fast, reduce, axis, shape):
    def step(c, x):
        return c, reduce(x, axis=axis)

    inputs, carry = xs(*shape), np.zeros(1, np.float32)
    tape = replay.record(step, carry, inputs[0])
    assert not any(np.add.reduce == getattr(call, "func", None) for call in tape.calls)
    found, expected = both(step, carry, inputs)
    bound = shape[axis] * 2.0**-23 * np.abs(inputs).sum(axis=axis)
    assert (np.abs(found[1] - expected[1]) <= bound).all()


def test_what_no_result_needs_is_not_replayed():
    """A loss without its gradient, which was computed beside it; in buffers that are used again all the same."""
    z, t = xs(5, 3), np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]

    def beside(c, x):
        return c, losses.softmax_cross_entropy.rows(x, t)

    def alone(c, x):
        return c, beside(c, x)[1][0]

    carry, calls = np.zeros(1, np.float32), []
    for step in (beside, alone):
        assert_same(*both(step, carry, z))
        calls.append(len(replay.record(step, carry, z[0]).calls))
    assert calls[1] == calls[0] - 2  # the division and the subtraction


def test_a_result_in_an_array_from_outside_is_not_recorded():
    outside = np.empty(3, np.float32)
    assert not is_recorded(lambda c, x: (c, np.multiply(x, 2, out=outside)), np.zeros(1, np.float32), xs(3))


def test_counts_stay_counts(fast):
    found, expected = both(lambda c, x: (c, np.sum(x > 0, axis=-1)), np.zeros(1, np.float32), xs(3, 5))
    assert_same(found, expected)


# What cannot be recorded runs as it is.


def looks(c, x):
    return (c + x if float(np.sum(x)) > 0 else c - x), c


def converts(c, x):
    return c + np.asarray(x), c


def contains_a_scan(c, x):
    inner = replay.scan(lambda total, row: (total + row, total), c, np.reshape(x, (5, 4)))
    return inner[0], np.sum(inner[1])


def changes_a_constant(c, x):
    zeros = np.zeros_like(c)
    y = c + zeros
    zeros += 1
    return c, y


def two_results(c, x):
    return c, np.divmod(x, 2)[1]


def adds_to_a_constant(c, x):
    zeros = np.zeros((5, 4), np.float32)
    rows = zeros[:2]
    rows += x[:2, ...]
    return c + zeros, c


def writes_elsewhere(write):
    """A step whose result a function writes to an array that it is given."""

    def step(c, x):
        y = x + 0
        write(y, x)
        return c, y

    return step


WRITES = {
    "copyto": lambda y, x: np.copyto(y, x * 2),
    "putmask": lambda y, x: np.putmask(y, x > 0, 2),
    "nan_to_num": lambda y, x: np.nan_to_num(y, copy=False),
    "a mean": lambda y, x: np.mean(x, axis=0, keepdims=True, out=y[:1, ...]),
    "a sum along": lambda y, x: np.cumsum(x, axis=0, out=y),
    "some entries": lambda y, x: np.add(y, x, out=y, where=x > 0),
    "a flipped view": lambda y, x: np.flip(y, axis=0).__iadd__(x),
}
PLAIN = {step.__name__: step for step in (looks, converts, changes_a_constant, adds_to_a_constant, two_results)}


@pytest.mark.parametrize("step", (PLAIN | {name: writes_elsewhere(write) for name, write in WRITES.items()}).values())
def test_a_step_that_needs_values_runs_plainly(step):
    carry = xs(5, 4, seed=1)[0]
    assert not is_recorded(step, carry, xs(5, 4))
    assert_same(*both(step, carry, xs(5, 4)))


def test_a_step_with_a_scan_in_it_runs_plainly():
    carry = xs(4, seed=1)[0]
    assert not is_recorded(contains_a_scan, carry, xs(5, 4))
    assert_same(*both(contains_a_scan, carry, xs(5, 4)))


def test_an_error_in_the_step_is_raised():
    with pytest.raises(ValueError, match="matmul"):
        replay.scan(lambda c, x: (c @ x, c), np.zeros((2, 3), np.float32), xs(5, 4))


# Records are kept for as long as the program.


def program(carry, inputs, *, factor):
    return replay.scan(lambda c, x: (c * factor + x, c), carry, inputs)


@pytest.fixture
def recordings(monkeypatch):
    """How often a step was recorded."""
    log, record = [], replay.record
    monkeypatch.setattr(replay, "record", lambda *args: log.append(1) or record(*args))
    return log


def test_a_program_records_once(recordings):
    run, factor = replay.jit(program), np.float32(0.5)
    carry = np.zeros(3, np.float32)
    for call in range(3):
        inputs = xs(3, seed=call)
        expected = array_api.scan(np, False, lambda c, x: (c * factor + x, c), np.array(carry), inputs)
        carry, ys = run(carry, inputs, factor=factor)
        assert_same((carry, ys), expected)
        carry = np.array(carry)
    assert len(recordings) == 1


def test_what_cannot_be_recorded_is_tried_once(recordings):
    run = replay.jit(lambda carry, inputs: replay.scan(looks, carry, inputs))
    for _ in range(3):
        run(np.zeros((5, 4), np.float32), xs(5, 4))
    assert len(recordings) == 1


def test_another_constant_or_shape_is_recorded_anew(recordings):
    run = replay.jit(program)
    for factor, width in [(np.float32(0.5), 3), (np.float32(0.25), 3), (np.float32(0.25), 2)]:
        carry, inputs = np.ones(width, np.float32), xs(width)
        found = run(np.array(carry), inputs, factor=factor)
        assert_same(found, array_api.scan(np, False, lambda c, x, f=factor: (c * f + x, c), carry, inputs))
    assert len(recordings) == 3


def test_results_of_one_call_outlive_the_next():
    run = replay.jit(program)
    first = run(np.zeros(3, np.float32), xs(3), factor=0.5)[1]
    kept = np.array(first)
    run(np.ones(3, np.float32), xs(3, seed=5), factor=0.5)
    np.testing.assert_array_equal(first, kept)


# Training.

RULES = {
    "momentum": optimizers.momentum(0.05, weight_decay=1e-3, l1=1e-5, clip_norm=1.0, clip_value=0.1),
    "nesterov averaged": optimizers.nesterov(0.05, average=0.9),
    "adam, sharpness-aware": optimizers.adam(1e-2, sharpness=0.1),
    "amsgrad": optimizers.amsgrad(1e-2),
    "lion": optimizers.lion(1e-3, weight_decay=0.1),
    "adagrad": optimizers.adagrad(0.05),
    "rmsprop": optimizers.rmsprop(1e-2, centered=True, momentum=0.9),
    "lbfgs": optimizers.lbfgs(),
}


@pytest.mark.parametrize("name", RULES)
def test_training_gives_the_same_bits(name, population, splits, recordings):
    noise = {} if name == "lbfgs" else {"dropout": 0.2, "input_dropout": 0.1, "label_smoothing": 0.1}
    runs = [
        mm.gradient_descent(
            mm.Network((4, 6, 3)),
            splits,
            seed=0,
            backend=mm.backends.load("numpy", debug=debug),
            optimizer=RULES[name],
            epochs=3,
            batch_size=8,
            population=population,
            class_weight="balanced",
            **noise,
        )
        for debug in (False, True)
    ]
    assert_same(runs[0].params, runs[1].params)
    assert_same(tuple(runs[0].history.values()), tuple(runs[1].history.values()))
    assert len(recordings) == (0 if name == "lbfgs" else 1)  # one step an epoch is too few to record


def test_retraining_is_recorded_too(splits, recordings):
    """Through a mask and through the rounding."""
    model = mm.gradient_descent(mm.Network((4, 6, 3)), splits, seed=0, epochs=1, batch_size=8)
    for debug in (False, True):
        backend = mm.backends.load("numpy", debug=debug)
        pruned = mm.prune(model, splits, seed=0, sparsity=0.5, epochs=2, batch_size=8, backend=backend)
        small = mm.quantize(pruned, splits, seed=0, bits=4, epochs=2, batch_size=8, backend=backend)
        if not debug:
            first = small
    assert_same(first.params, small.params)
    assert len(recordings) == 3


@given(seed=st.integers(0, 2**32 - 1), loss=st.sampled_from(losses.NAMES))
def test_any_loss_replays(seed, loss):
    found = losses.get(loss)
    z = xs(3, 4, seed=seed % 1000)
    t = np.abs(np.sign(xs(3, 4, seed=1)))[0]
    assert_same(*both(lambda c, z: (c, found.rows(z, t)), np.zeros(1, np.float32), z))
