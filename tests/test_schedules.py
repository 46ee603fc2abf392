"""Schedules against Optax, torch and their formulas, over a population, in every unit, within their bounds."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimodel import schedules
from minimodel.search.schedules import Run

STEPS, EPOCH = 120, 8  # of the runs below: 15 epochs
RUN = Run(STEPS, EPOCH, np.zeros(1))
PEAK = 0.3
ALL = np.arange(STEPS)


@contextlib.contextmanager
def x64(jax):
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        yield


def in_optax(jax, peer):
    """Every rate of a schedule of Optax, made within x64."""
    with x64(jax):
        return np.asarray(jax.vmap(peer())(jax.numpy.asarray(ALL)))


# Against Optax.

OPTAX = {
    "constant": (schedules.constant(PEAK), lambda optax: optax.constant_schedule(PEAK)),
    "step": (
        schedules.step(PEAK, 3, factor=0.5),
        lambda optax: optax.exponential_decay(PEAK, 3 * EPOCH, 0.5, staircase=True),
    ),
    "step of a factor above 1": (
        schedules.step(PEAK, 7, factor=1.25, unit="steps"),
        lambda optax: optax.exponential_decay(PEAK, 7, 1.25, staircase=True),
    ),
    "step at boundaries": (
        schedules.step(PEAK, [10, 11, 100], factor=0.2, unit="steps"),
        lambda optax: optax.piecewise_constant_schedule(PEAK, {10: 0.2, 11: 0.2, 100: 0.2}),
    ),
    "step at boundaries of epochs": (
        schedules.step(PEAK, (4, 9), factor=0.1),
        lambda optax: optax.piecewise_constant_schedule(PEAK, {4 * EPOCH: 0.1, 9 * EPOCH: 0.1}),
    ),
    "step at boundaries of the run": (
        schedules.step(PEAK, np.array([0.5, 0.75]), unit="run"),
        lambda optax: optax.piecewise_constant_schedule(PEAK, {60: 0.1, 90: 0.1}),
    ),
    "exponential": (
        schedules.exponential(PEAK, 2, factor=0.7),
        lambda optax: optax.exponential_decay(PEAK, 2 * EPOCH, 0.7),
    ),
    "exponential in steps": (
        schedules.exponential(PEAK, 1, factor=0.99, unit="steps"),
        lambda optax: optax.exponential_decay(PEAK, 1, 0.99),
    ),
    "linear": (schedules.polynomial(PEAK), lambda optax: optax.linear_schedule(PEAK, 0.0, STEPS)),
    "polynomial": (
        schedules.polynomial(PEAK, power=2.5, final=0.1, duration=0.75),
        lambda optax: optax.polynomial_schedule(PEAK, PEAK * 0.1, 2.5, 90),
    ),
    "polynomial of a root": (
        schedules.polynomial(PEAK, power=0.5, final=0.5, duration=11, unit="epochs"),
        lambda optax: optax.polynomial_schedule(PEAK, PEAK * 0.5, 0.5, 11 * EPOCH),
    ),
    "cosine": (schedules.cosine(PEAK), lambda optax: optax.cosine_decay_schedule(PEAK, STEPS)),
    "cosine to a part": (
        schedules.cosine(PEAK, final=0.2),
        lambda optax: optax.cosine_decay_schedule(PEAK, STEPS, alpha=0.2),
    ),
    "cosine with warm-up": (
        schedules.cosine(PEAK, warmup=0.25),
        lambda optax: optax.warmup_cosine_decay_schedule(0.0, PEAK, 30, STEPS),
    ),
    "cosine with everything": (
        schedules.cosine(PEAK, warmup=2, start=0.1, final=0.05, unit="epochs"),
        lambda optax: optax.warmup_cosine_decay_schedule(PEAK * 0.1, PEAK, 2 * EPOCH, STEPS, PEAK * 0.05),
    ),
    "cosine with a step of warm-up": (
        schedules.cosine(PEAK, warmup=1, start=0.5, unit="steps"),
        lambda optax: optax.warmup_cosine_decay_schedule(PEAK * 0.5, PEAK, 1, STEPS),
    ),
    "one_cycle": (schedules.one_cycle(PEAK), lambda optax: optax.cosine_onecycle_schedule(STEPS, PEAK)),
    "one_cycle with everything": (
        schedules.one_cycle(PEAK, warmup=45, start=0.1, final=0.01, unit="steps"),
        lambda optax: optax.cosine_onecycle_schedule(STEPS, PEAK, 45 / STEPS, 10.0, 100.0),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_every_rate_is_that_of_optax(name, oracle):
    jax, optax = oracle("jax"), oracle("optax")
    ours, theirs = OPTAX[name]
    found = ours(ALL, RUN)
    assert found.shape == (STEPS,)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, in_optax(jax, lambda: theirs(optax)), rtol=1e-12, atol=1e-15)


# Against formulas.


def test_a_warm_up_of_the_whole_run_never_falls():
    for make in (schedules.cosine, schedules.one_cycle):
        rates = make(PEAK, warmup=1.0, start=0.0)(ALL, RUN)
        assert rates[0] == 0
        assert (np.diff(rates) > 0).all()
        assert rates[-1] < PEAK
        longer = make(PEAK, warmup=2 * STEPS, start=0.0, unit="steps")(ALL, RUN)
        assert (np.diff(longer) > 0).all()
        assert (longer[1:] < rates[1:]).all()


def test_a_polynomial_stays_at_its_end():
    rates = schedules.polynomial(PEAK, power=2, final=0.1, duration=5, unit="epochs")(ALL, RUN)
    np.testing.assert_allclose(rates[5 * EPOCH :], 0.1 * PEAK, rtol=1e-14)
    assert (rates[: 5 * EPOCH] > 0.1 * PEAK).all()


def test_get_makes_a_number_a_constant_and_keeps_a_function():
    cosine = schedules.cosine(0.1)
    assert schedules.get(cosine) is cosine
    np.testing.assert_array_equal(schedules.get(0.2)(np.arange(2), RUN), [0.2, 0.2])
    np.testing.assert_array_equal(schedules.get([0.2, 0.1])(np.arange(2), RUN), [[0.2, 0.1]] * 2)


# Units, pieces, populations.

EVERY = {
    "constant": lambda rate, unit, of: schedules.constant(rate),
    "step": lambda rate, unit, of: schedules.step(rate, of(30), factor=0.5, unit=unit),
    "step at boundaries": lambda rate, unit, of: schedules.step(rate, [of(30), of(90)], factor=0.5, unit=unit),
    "exponential": lambda rate, unit, of: schedules.exponential(rate, of(30), factor=0.5, unit=unit),
    "polynomial": lambda rate, unit, of: schedules.polynomial(rate, power=2, final=0.1, duration=of(60), unit=unit),
    "cosine": lambda rate, unit, of: schedules.cosine(rate, warmup=of(30), start=0.1, final=0.1, unit=unit),
    "one_cycle": lambda rate, unit, of: schedules.one_cycle(rate, warmup=of(30), start=0.1, final=0.1, unit=unit),
}
UNITS = {"steps": lambda n: n, "epochs": lambda n: n / EPOCH, "run": lambda n: n / STEPS}
HISTORY = np.array([9.0, 5, 4, 4, 4, 3.9999, 5, 3, 3, 3, 3, 3, 2, 2, 2])


def plateau(rate, **options):
    return schedules.reduce_on_plateau(rate, **{"factor": 0.5, "patience": 1, **options})


@pytest.mark.parametrize("name", EVERY)
def test_units_agree(name):
    found = [EVERY[name](PEAK, unit, of)(ALL, RUN) for unit, of in UNITS.items()]
    for rates in found[1:]:
        np.testing.assert_allclose(rates, found[0], rtol=1e-12)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", EVERY)
def test_pieces_are_the_whole(name, unit):
    """Rates are asked for an epoch at a time, or less."""
    schedule = EVERY[name](PEAK, unit, UNITS[unit])
    whole = schedule(ALL, RUN)
    for size in (1, 5, EPOCH):
        pieces = [schedule(ALL[i : i + size], RUN) for i in range(0, STEPS, size)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("name", EVERY)
def test_rates_over_a_population(name):
    peaks = np.array([0.1, 0.0, 0.4])
    together = EVERY[name](peaks, "steps", UNITS["steps"])(ALL, RUN._replace(validation=np.zeros((1, 3))))
    assert together.shape == (STEPS, 3)
    for i, peak in enumerate(peaks):
        np.testing.assert_array_equal(together[:, i], EVERY[name](peak, "steps", UNITS["steps"])(ALL, RUN))


def test_a_schedule_of_ones_own_needs_no_more_than_two_arguments():
    rates = schedules.get(lambda steps, run: 0.1 / (1 + steps / run.epoch))(ALL, RUN)
    np.testing.assert_allclose(rates, 0.1 / (1 + ALL / EPOCH))


# Reducing on a plateau, against torch.


def in_torch(torch, rate, losses, **options):
    """The rate after each of the losses."""
    optimizer = torch.optim.SGD([torch.zeros(())], lr=rate)
    optimizer.step()  # else torch warns of the order
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, eps=0.0, **options)
    found = []
    for loss in losses:
        scheduler.step(float(loss))
        found.append(optimizer.param_groups[0]["lr"])
    return found


def rates_after(schedule, losses):
    """Of every epoch after the first, with what is known by then: the losses after 0, 1, … epochs."""
    found = []
    for done in range(1, len(losses)):
        rates = schedule(
            np.arange(done * EPOCH, (done + 1) * EPOCH), Run(len(losses) * EPOCH, EPOCH, losses[: done + 1])
        )
        assert rates.shape == (EPOCH, *losses.shape[1:])
        assert (rates == rates[0]).all()
        found.append(rates[0])
    return np.stack(found)


@given(
    seed=st.integers(0, 2**32 - 1),
    factor=st.sampled_from([0.1, 0.5, 0.9]),
    patience=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 1e-4, 0.1]),
    cooldown=st.integers(0, 3),
)
def test_reducing_on_a_plateau_is_that_of_torch(oracle, seed, factor, patience, threshold, cooldown):
    """For each member of a population; the loss before the first epoch does not count; NaN is no improvement."""
    torch = oracle("torch")
    rng = np.random.default_rng(seed)
    losses = np.exp(np.cumsum(rng.normal(size=(30, 3)) * 0.05, axis=0)) * np.linspace(1, 0.8, 30)[:, None]
    losses[0] = 1e-9
    losses[rng.random(losses.shape) < 0.05] = np.nan
    losses[rng.random(losses.shape) < 0.02] = np.inf
    losses[12:15] = losses[11]  # ties
    options = {"factor": factor, "patience": patience, "threshold": threshold, "cooldown": cooldown}
    rates = np.array([0.1, 1.0, 0.01])
    found = rates_after(schedules.reduce_on_plateau(rates, **options), losses)
    shared = rates_after(schedules.reduce_on_plateau(0.1, **options), losses)
    for i in range(3):
        expected = in_torch(torch, rates[i], losses[1:, i], **options)
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-12)
        np.testing.assert_allclose(shared[:, i], found[:, i] * (0.1 / rates[i]), rtol=1e-12)
        alone = rates_after(schedules.reduce_on_plateau(rates[i], **options), losses[:, i])
        np.testing.assert_allclose(alone, found[:, i], rtol=1e-12)


def test_the_defaults_of_reducing_on_a_plateau_are_torchs(oracle):
    losses = np.concatenate([[1.0], np.repeat([0.5, 0.49999, 0.4], [15, 15, 15])])
    found = rates_after(schedules.reduce_on_plateau(0.1), losses)
    np.testing.assert_allclose(found, in_torch(oracle("torch"), 0.1, losses[1:]), rtol=1e-12)
    assert found[-1] < found[0]


def test_reductions_by_hand():
    """Two epochs without an improvement, then half the rate; an epoch of rest after it."""
    losses = np.array([0.0, 5, 4, 4, 4, 4, 4, 4, 3, 3, 3])
    found = rates_after(plateau(0.8), losses)
    np.testing.assert_allclose(found, [0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.2, 0.2, 0.1])
    found = rates_after(plateau(0.8, cooldown=1), losses)
    np.testing.assert_allclose(found, [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2, 0.2, 0.1])


def test_before_the_first_epoch_nothing_is_reduced():
    found = plateau(np.array([0.1, 0.2]), patience=0)(np.arange(EPOCH), Run(STEPS, EPOCH, np.ones((1, 2))))
    np.testing.assert_array_equal(found, [[0.1, 0.2]] * EPOCH)


# Properties.

fractions = st.floats(0, 1)
peaks = st.floats(1e-6, 1e3)
totals = st.integers(1, 200)


def within(rates, low, high):
    assert np.isfinite(rates).all()
    assert (rates >= low * (1 - 1e-12)).all()
    assert (rates <= high * (1 + 1e-12)).all()


@given(peak=peaks, warmup=fractions, start=fractions, final=fractions, total=totals)
def test_a_cosine_rises_to_the_peak_and_falls(peak, warmup, start, final, total):
    rates = schedules.cosine(peak, warmup=warmup, start=start, final=final)(np.arange(total), Run(total))
    assert rates.shape == (total,)
    rise = int(np.ceil(warmup * total))
    within(rates[:rise], peak * start, peak)
    within(rates[rise:], peak * final, peak)
    assert (np.diff(rates[:rise]) >= -peak * 1e-12).all()
    assert (np.diff(rates[rise:]) <= peak * 1e-12).all()


@given(peak=peaks, warmup=fractions, start=fractions, final=fractions, total=totals)
def test_one_cycle_rises_to_the_peak_and_falls(peak, warmup, start, final, total):
    rates = schedules.one_cycle(peak, warmup=warmup, start=start, final=final)(np.arange(total), Run(total))
    rise = int(np.ceil(warmup * total))
    within(rates[:rise], peak * start, peak)
    within(rates[rise:], peak * start * final, peak)
    assert (np.diff(rates[:rise]) >= -peak * 1e-12).all()
    assert (np.diff(rates[rise:]) <= peak * 1e-12).all()


@given(peak=peaks, power=st.floats(0.1, 5), final=fractions, duration=st.floats(0.01, 3), total=totals)
def test_a_polynomial_falls(peak, power, final, duration, total):
    rates = schedules.polynomial(peak, power=power, final=final, duration=duration)(np.arange(total), Run(total))
    within(rates, peak * final, peak)
    assert rates[0] == pytest.approx(peak, rel=1e-12)
    assert (np.diff(rates) <= peak * 1e-12).all()


@given(peak=peaks, every=st.floats(0.05, 30), factor=fractions, unit=st.sampled_from(schedules.UNITS), total=totals)
def test_steps_and_exponentials_fall_between_each_other(peak, every, factor, unit, total):
    """A staircase is never below the curve through its feet, nor above that curve one stair earlier."""
    run, steps = Run(total, 7), np.arange(total)
    stairs = schedules.step(peak, every, factor=factor, unit=unit)(steps, run)
    curve = schedules.exponential(peak, every, factor=factor, unit=unit)(steps, run)
    for rates in (stairs, curve):
        within(rates, 0, peak)
        assert rates[0] == peak
        assert (np.diff(rates) <= 0).all()
    tiny = 1e-300  # below it floats lose their digits
    assert (stairs >= curve * (1 - 1e-9) - tiny).all()
    assert (stairs * factor <= curve * (1 + 1e-9) + tiny).all()


@given(
    losses=st.lists(st.floats(0, 1e3) | st.just(float("nan")), min_size=1, max_size=30),
    factor=fractions,
    patience=st.integers(0, 5),
    cooldown=st.integers(0, 5),
)
def test_a_plateau_only_reduces(losses, factor, patience, cooldown):
    """At most once in patience + 1 epochs, and more patience never reduces more."""
    history = np.array([1.0, *losses])
    options = {"factor": factor, "cooldown": cooldown}
    rates = rates_after(schedules.reduce_on_plateau(2.0, patience=patience, **options), history)
    within(rates, 0, 2.0)
    assert (np.diff(rates) <= 0).all()
    counts = np.log2(rates_after(schedules.reduce_on_plateau(1.0, factor=0.5, patience=patience), history))
    assert (np.diff(counts, prepend=0) >= -1).all()
    assert -counts[-1] <= len(losses) / (patience + 1)


# Bad arguments, by name.

NAN, INF = float("nan"), float("inf")
BAD = {
    "learning_rate": {
        "of a constant": (lambda wrong: schedules.constant(wrong), (-0.1, NAN, INF, [0.1, -0.1], [0.1, NAN], "fast")),
        "of step": (lambda wrong: schedules.step(wrong, 3), (-0.1, NAN, INF)),
        "of exponential": (lambda wrong: schedules.exponential(wrong, 3), (-0.1, NAN, INF)),
        "of polynomial": (schedules.polynomial, (-0.1, NAN, INF)),
        "of cosine": (schedules.cosine, (-0.1, NAN, INF)),
        "of one_cycle": (schedules.one_cycle, (-0.1, NAN, INF)),
        "of reduce_on_plateau": (schedules.reduce_on_plateau, (-0.1, NAN, INF)),
    },
    "every": {
        "of step": (lambda wrong: schedules.step(0.1, wrong), (0, -1, NAN, [3, -1], [NAN])),
        "of exponential": (lambda wrong: schedules.exponential(0.1, wrong), (0, -1, NAN, [3, 4])),
    },
    "factor": {
        "of step": (lambda wrong: schedules.step(0.1, 3, factor=wrong), (-0.1, NAN, INF)),
        "of exponential": (lambda wrong: schedules.exponential(0.1, 3, factor=wrong), (-0.1, NAN, INF)),
        "of reduce_on_plateau": (lambda wrong: schedules.reduce_on_plateau(0.1, factor=wrong), (-0.1, 1.1, NAN)),
    },
    "power": {"of polynomial": (lambda wrong: schedules.polynomial(0.1, power=wrong), (-1.0, NAN, INF))},
    "duration": {"of polynomial": (lambda wrong: schedules.polynomial(0.1, duration=wrong), (0, -1, NAN))},
    "final": {
        "of polynomial": (lambda wrong: schedules.polynomial(0.1, final=wrong), (-0.1, 1.1, NAN)),
        "of cosine": (lambda wrong: schedules.cosine(0.1, final=wrong), (-0.1, 1.1, NAN)),
        "of one_cycle": (lambda wrong: schedules.one_cycle(0.1, final=wrong), (-0.1, 1.1, NAN)),
    },
    "start": {
        "of cosine": (lambda wrong: schedules.cosine(0.1, start=wrong), (-0.1, 1.1, NAN)),
        "of one_cycle": (lambda wrong: schedules.one_cycle(0.1, start=wrong), (-0.1, 1.1, NAN)),
    },
    "warmup": {
        "of cosine": (lambda wrong: schedules.cosine(0.1, warmup=wrong), (-0.1, 1.1, NAN)),
        "of one_cycle": (lambda wrong: schedules.one_cycle(0.1, warmup=wrong), (-0.1, 1.1, NAN)),
        "of cosine in epochs": (lambda wrong: schedules.cosine(0.1, warmup=wrong, unit="epochs"), (-0.1, NAN)),
        "of one_cycle in steps": (lambda wrong: schedules.one_cycle(0.1, warmup=wrong, unit="steps"), (-0.1, NAN)),
    },
    "unit": {
        "of step": (lambda wrong: schedules.step(0.1, 3, unit=wrong), ("epoch", None)),
        "of exponential": (lambda wrong: schedules.exponential(0.1, 3, unit=wrong), ("epoch", None)),
        "of polynomial": (lambda wrong: schedules.polynomial(0.1, unit=wrong), ("epoch", None)),
        "of cosine": (lambda wrong: schedules.cosine(0.1, unit=wrong), ("epoch", None)),
        "of one_cycle": (lambda wrong: schedules.one_cycle(0.1, unit=wrong), ("epoch", None)),
    },
    "patience": {"of reduce_on_plateau": (lambda wrong: schedules.reduce_on_plateau(0.1, patience=wrong), (-1, NAN))},
    "threshold": {
        "of reduce_on_plateau": (lambda wrong: schedules.reduce_on_plateau(0.1, threshold=wrong), (-0.1, 1.1, NAN))
    },
    "cooldown": {"of reduce_on_plateau": (lambda wrong: schedules.reduce_on_plateau(0.1, cooldown=wrong), (-1, NAN))},
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in BAD.items() for case in cases])
def test_a_bad_argument_is_refused_by_name(name, case):
    make, values = BAD[name][case]
    for wrong in values:
        with pytest.raises(ValueError, match=rf"^{name}: expected .*got"):
            make(wrong)


def test_a_function_of_one_step_is_a_schedule():
    """As Optax and torch have them, also where it cannot take an array."""
    halved = schedules.get(lambda step: 0.1 if step < 3 else 0.05)
    np.testing.assert_array_equal(halved(np.arange(5), schedules.Run(5)), [0.1, 0.1, 0.1, 0.05, 0.05])


def test_an_optax_schedule_is_a_schedule(oracle):
    theirs = oracle("optax").cosine_decay_schedule(0.1, 10)
    expected = schedules.cosine(0.1)(np.arange(10), schedules.Run(10))
    np.testing.assert_allclose(schedules.get(theirs)(np.arange(10), schedules.Run(10)), expected, rtol=1e-5, atol=1e-8)


def test_a_function_of_the_run_keeps_its_two_arguments():
    given = lambda steps, run, *, scale=1.0: np.full(len(steps), scale / run.steps)  # noqa: E731
    assert schedules.get(given) is given
