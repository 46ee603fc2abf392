"""L-BFGS against SciPy's: by hand in float64, over a population, and through gradient descent."""

import numpy as np
import pytest

import minimodel as mm
from minimodel import optimizers, tree
from minimodel.problem import prepare, run_keys
from minimodel.search.lbfgs import TRIALS, Pairs, descend
from minimodel.search.training import fit

NETWORK = mm.Network((3, 2))  # 8 parameters
SIZE = NETWORK.parameters


def unflat(theta):
    """θ (*population, 8) as the parameters of the network."""
    lead = theta.shape[:-1]
    return (mm.Layer(theta[..., :6].reshape(*lead, 3, 2).copy(), theta[..., 6:].copy()),)


def flat(params):
    (weight, bias), lead = params[0], params[0].bias.shape[:-1]
    return np.concatenate([weight.reshape(*lead, 6), bias], axis=-1)


def over(objective):
    """``evaluate`` of an objective θ (8,) -> (value, gradient), for each member by itself."""

    def evaluate(params):
        theta = flat(params)
        found = [objective(row) for row in theta.reshape(-1, SIZE)]
        value, gradient = (np.array(part) for part in zip(*found, strict=True))
        return value.reshape(theta.shape[:-1]), unflat(gradient.reshape(theta.shape))

    return evaluate


@np.errstate(over="ignore", invalid="ignore")
def minimize(objective, start, steps, rate=1.0, memory=10):
    """The losses, and θ at the end, of that many evaluations."""
    rule = optimizers.lbfgs(memory=memory).rule
    params, losses = unflat(np.asarray(start)), []
    state = rule.init(params)
    for _ in range(steps):
        loss, params, state = rule.update((), np.asarray(rate), over(objective), state, params)
        losses.append(np.array(loss))
    return np.stack(losses), flat(rule.read(params, state))


def quadratic(seed=0, condition=1e4):
    """½(θ − c)ᵀA(θ − c) with eigenvalues from 1/condition to 1."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    a, c = (basis * np.geomspace(1 / condition, 1, SIZE)) @ basis.T, rng.normal(size=SIZE)
    return lambda theta: (0.5 * (theta - c) @ a @ (theta - c), a @ (theta - c))


def rosenbrock(theta):
    """Σ 100(θ_{i+1} − θ_i²)² + (1 − θ_i)²: 0 at (1, …, 1), along a bent valley."""
    ahead, behind = theta[1:] - theta[:-1] ** 2, 1 - theta[:-1]
    gradient = np.zeros_like(theta)
    gradient[:-1] = -400 * theta[:-1] * ahead - 2 * behind
    gradient[1:] += 200 * ahead
    return 100 * ahead @ ahead + behind @ behind, gradient


def logistic(seed=0, strength=0.01):
    """mean log(1 + exp(−y xᵀθ)) + ½λ‖θ‖², y ±1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, SIZE)) * np.geomspace(0.1, 10, SIZE)
    y = np.where(rng.random(60) < 1 / (1 + np.exp(-x @ rng.normal(size=SIZE))), 1.0, -1.0)

    def objective(theta):
        margin = y * (x @ theta)
        wrong = 0.5 * (1 - np.tanh(margin / 2))
        value = np.logaddexp(0, -margin).mean() + 0.5 * strength * theta @ theta
        return value, -(y * wrong) @ x / len(x) + strength * theta

    return objective


OBJECTIVES = {"quadratic": (quadratic(), 200), "rosenbrock": (rosenbrock, 300), "logistic": (logistic(), 100)}


def in_scipy(oracle, objective, start):
    options = {"ftol": 1e-16, "gtol": 1e-11, "maxiter": 5000, "maxfun": 50_000}
    return oracle("scipy.optimize").minimize(objective, start, jac=True, method="L-BFGS-B", options=options)


def start_of(name, population=None):
    rng = np.random.default_rng(7)
    lead = () if population is None else (population,)
    return rng.normal(size=(*lead, SIZE)) * (0.5 if name == "rosenbrock" else 1.0)


# Against SciPy.


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_reaches_the_optimum_of_scipy(name, oracle):
    """In about as many evaluations: at most twice as many to come as near."""
    objective, steps = OBJECTIVES[name]
    start = start_of(name)
    theirs = in_scipy(oracle, objective, start)
    losses, theta = minimize(objective, start, steps)
    assert losses[0] == objective(start)[0]
    assert losses[-1] <= theirs.fun + 1e-12 * (1 + theirs.fun)
    assert objective(theta)[0] == losses[-1]
    np.testing.assert_allclose(theta, theirs.x, rtol=1e-4, atol=1e-4)
    near = theirs.fun + 1e-8
    assert int((losses > near).sum()) <= 2 * theirs.nfev


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_never_increases(name, population):
    """Beyond rounding, within which the line search looks at the slope instead; nor does where it has got."""
    objective, steps = OBJECTIVES[name]
    losses, theta = minimize(objective, start_of(name, population), steps)
    assert np.isfinite(losses).all()
    assert (np.diff(losses, axis=0) <= 16 * np.finfo(float).eps * np.abs(losses[:-1])).all()
    np.testing.assert_array_equal(over(objective)(unflat(theta))[0], losses[-1])


@pytest.mark.parametrize(("memory", "steps"), [(1, 600), (3, 300), (20, 120)])
def test_any_memory_will_do(memory, steps):
    losses, theta = minimize(rosenbrock, start_of("rosenbrock"), steps, memory=memory)
    assert losses[-1] < 1e-9
    np.testing.assert_allclose(theta, 1, atol=1e-3)


@pytest.mark.parametrize(("rate", "steps"), [(0.05, 600), (0.3, 300), (10.0, 600)])
def test_a_bad_first_trial_is_mended_by_the_line_search(rate, steps):
    losses, theta = minimize(rosenbrock, start_of("rosenbrock"), steps, rate=rate)
    assert losses[-1] < 1e-9
    np.testing.assert_allclose(theta, 1, atol=1e-3)


def test_the_two_loops_give_the_matrix_of_the_formula():
    """H ← (I − ρsyᵀ)H(I − ρysᵀ) + ρssᵀ from H₀ = sᵀy/yᵀy of the newest pair, the oldest first."""
    rng = np.random.default_rng(0)
    hessian = np.diag(np.geomspace(0.1, 10, SIZE))
    s = rng.normal(size=(5, SIZE))
    y = s @ hessian
    rho = 1 / (s * y).sum(axis=1)
    inverse = np.eye(SIZE) * (s[-1] @ y[-1]) / (y[-1] @ y[-1])
    for i in range(5):
        v = np.eye(SIZE) - rho[i] * np.outer(y[i], s[i])
        inverse = v.T @ inverse @ v + rho[i] * np.outer(s[i], s[i])
    g = rng.normal(size=SIZE)
    found = flat(descend(Pairs(unflat(s), unflat(y), rho), unflat(g), np.zeros(())))
    np.testing.assert_allclose(found, -inverse @ g, rtol=1e-10)
    nothing = Pairs(unflat(0 * s), unflat(0 * y), 0 * rho)
    np.testing.assert_array_equal(flat(descend(nothing, unflat(g), np.zeros(()))), -g)


# Over a population.


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_member_is_its_single_run(name):
    """Whatever the others do: each has its own line search, memory and first trial."""
    objective, steps = OBJECTIVES[name]
    starts, rates = start_of(name, 3), np.array([1.0, 0.2, 5.0])
    losses, theta = minimize(objective, starts, steps, rate=rates)
    for i in range(3):
        alone, end = minimize(objective, starts[i], steps, rate=rates[i])
        np.testing.assert_allclose(losses[:30, i], alone[:30], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(losses[-1, i], alone[-1], rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(theta[i], end, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_a_member_without_a_finite_loss_does_not_disturb_the_others(bad):
    objective, steps = OBJECTIVES["rosenbrock"]
    starts = start_of("rosenbrock", 3)
    clean, end = minimize(objective, starts, steps)
    starts[1] = bad
    losses, theta = minimize(objective, starts, steps)
    np.testing.assert_array_equal(losses[:, [0, 2]], clean[:, [0, 2]])
    np.testing.assert_array_equal(theta[[0, 2]], end[[0, 2]])
    assert not np.isfinite(losses[:, 1]).any()


def test_a_trial_without_a_finite_loss_is_taken_back():
    """log's domain ends within reach of the first trials: −Σ log θ + θ, smallest at 1."""

    def barrier(theta):
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sum(theta - np.log(theta)), 1 - 1 / theta

    losses, theta = minimize(barrier, np.linspace(0.1, 5, SIZE), 200, rate=20.0)
    assert np.isfinite(losses).all()
    assert (np.diff(losses) <= 1e-14).all()
    np.testing.assert_allclose(theta, 1, atol=1e-7)


def test_it_rests_at_an_optimum():
    """No gradient, no step and nothing to divide by, for longer than a line search lasts."""
    losses, theta = minimize(lambda theta: (0.5 * theta @ theta, theta.copy()), np.zeros(SIZE), 3 * TRIALS)
    np.testing.assert_array_equal(losses, 0)
    np.testing.assert_array_equal(theta, 0)


def test_one_trial_after_another_is_evaluated():
    """Each update evaluates once, at the parameters it was given, and gives back where to evaluate next."""
    calls, objective = [], OBJECTIVES["rosenbrock"][0]
    rule, start = optimizers.lbfgs().rule, unflat(start_of("rosenbrock"))
    state, params = rule.init(start), start

    def evaluate(params):
        calls.append(flat(params))
        return over(objective)(params)

    for step in range(12):
        before = flat(params)
        _, params, state = rule.update((), np.asarray(1.0), evaluate, state, params)
        assert len(calls) == step + 1
        np.testing.assert_array_equal(calls[-1], before)
    assert len({tuple(call) for call in calls}) == 12


# Through gradient descent.

REGRESSION = mm.Network((4, 3))


def noisy(classes=3, rows=120, features=4):
    """Labels that no plane separates, so that the loss has its minimum somewhere; validation is train."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, features)).astype(np.float32)
    y = (x @ rng.normal(size=(features, classes)) + rng.gumbel(size=(rows, classes))).argmax(1)
    part = mm.Dataset(x, y.astype(np.int32))
    return mm.Splits(part, part, part)


def softmax_regression(x, y, classes=3):
    """The mean cross-entropy of W and b in one vector, in float64."""
    x, hot = np.hstack([x, np.ones((len(x), 1))]).astype(np.float64), np.eye(classes)[y]

    def objective(theta):
        z = x @ theta.reshape(-1, classes)
        z = z - z.max(axis=1, keepdims=True)
        logp = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return -(hot * logp).sum() / len(x), (x.T @ (np.exp(logp) - hot) / len(x)).ravel()

    return objective


@pytest.mark.parametrize("name", ["numpy", "jax"])
def test_softmax_regression_reaches_the_optimum_of_scipy(name, oracle):
    pytest.importorskip(name)
    data = noisy()
    best = in_scipy(oracle, softmax_regression(*data.train), np.zeros(15)).fun
    model = mm.gradient_descent(REGRESSION, data, seed=0, backend=name, epochs=60, optimizer=optimizers.lbfgs())
    losses = model.history["loss"]
    assert losses.shape == (60,)
    np.testing.assert_allclose(losses[-1], best, rtol=1e-5)
    np.testing.assert_allclose(model.history["validation_loss"].min(), best, rtol=1e-5)
    np.testing.assert_allclose(model.evaluate(data.train).loss, best, rtol=1e-5)
    assert (np.diff(losses) <= 16 * np.finfo(np.float32).eps * losses[:-1]).all()


def test_every_backend_goes_the_same_way(backend):
    network, options = mm.Network((4, 5, 3), "tanh"), {"seed": 0, "epochs": 12, "optimizer": optimizers.lbfgs(memory=3)}
    ours = mm.gradient_descent(network, noisy(), backend=backend, **options).history["loss"]
    numpy = mm.gradient_descent(network, noisy(), backend="numpy", **options).history["loss"]
    np.testing.assert_allclose(ours, numpy, rtol=1e-3)
    assert ours[-1] < 0.8 * ours[0]


def test_members_masks_and_a_start_that_overflows(backend, oracle):
    """Each member is its single run and reaches SciPy's optimum without the masked input; masked weights are exactly 0;
    a member whose loss is not finite stays where it is and disturbs nobody."""
    data, mask = noisy(), np.ones((4, 3), np.float32)
    mask[2] = 0
    smaller = np.delete(data.train.x, 2, axis=1), data.train.y
    best = in_scipy(oracle, softmax_regression(*smaller), np.zeros(12)).fun
    start = tree.map(np.copy, REGRESSION.init(mm.random.key(np.array([0, 1, 2], np.uint64))))
    start[0].weight[1] = 3e38
    options = {"seed": 0, "backend": backend, "epochs": 40, "masks": (mask,), "optimizer": optimizers.lbfgs(memory=3)}
    with pytest.warns(RuntimeWarning, match=r"members \[1\] diverged"):
        model = mm.gradient_descent(REGRESSION, data, params=start, population=3, **options)
    losses = model.history["loss"]
    assert not np.isfinite(losses[:, 1]).any()
    np.testing.assert_allclose(losses[-1, [0, 2]], best, rtol=1e-5)
    assert (np.diff(losses[:, [0, 2]], axis=0) <= 16 * np.finfo(np.float32).eps * losses[:-1, [0, 2]]).all()
    alone = mm.gradient_descent(REGRESSION, data, params=tree.map(lambda leaf: leaf[2], start), **options)
    np.testing.assert_allclose(losses[:, 2], alone.history["loss"], rtol=1e-3)
    for found in (model, alone):
        for params in (found.params, found.state.params, found.state.opt_state.point):
            np.testing.assert_array_equal(params[0].weight[..., 2, :], 0)
        assert (found.params[0].weight[..., [0, 1, 3], :] != 0).all()
        kept = tree.leaves(found.state.opt_state.pairs.s, found.state.opt_state.pairs.y)
        assert all((leaf[..., 2, :] == 0).all() for leaf in kept if leaf.shape[-2:] == (4, 3))


@pytest.mark.parametrize("when", [2, 5])
def test_new_masks_begin_the_search_anew_where_it_has_got(when, population):
    """From the point it accepted last, not from the trial that comes next, whose loss may be anything."""
    ones, seen = (np.ones((4, 3), bool),), []

    def remask(done, masks, params, opt_state):
        seen.append(params[0].weight.shape)
        return (ones, None) if done == when else None

    backend, keys = mm.backends.load("numpy", debug=True), run_keys(0, population)
    run = fit(
        prepare(REGRESSION, noisy(), None, backend, fitted=noisy()),
        keys=keys,
        params=REGRESSION.init(keys),
        optimizer=optimizers.lbfgs(50.0, memory=4),
        epochs=8,
        remask=remask,
    )
    losses = run.history["loss"]
    assert (np.diff(losses, axis=0) <= 16 * np.finfo(np.float32).eps * losses[:-1]).all()
    assert len(seen) == 8


def test_the_batch_size_does_not_matter():
    data = noisy()
    runs = [
        mm.gradient_descent(REGRESSION, data, seed=0, epochs=8, batch_size=size, optimizer=optimizers.lbfgs())
        for size in (1, 32, 10_000)
    ]
    for run in runs:
        assert run.history["loss"].shape == (8,)
        np.testing.assert_array_equal(run.history["loss"], runs[0].history["loss"])


def test_a_stream_is_refused():
    """It never gives all rows at once."""
    data = noisy()
    stream = mm.stream_batches(lambda epoch: [data.train], data.validation, data.test)
    with pytest.raises(ValueError, match="lbfgs needs all rows"):
        mm.gradient_descent(REGRESSION, stream, seed=0, epochs=1, optimizer=optimizers.lbfgs())
